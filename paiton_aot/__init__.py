"""paiton-aot: builds bundles, so that starting a large language model repeats no work whose answer never changes."""

__version__ = "0.1.0"
