"""Tool calls in the text of a model: how each family writes them."""
