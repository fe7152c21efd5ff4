"""Where checkpoints come from besides paths: ids of the Hugging Face hub, and URLs that are read by ranges.

::

    locate   from what a person writes to a path that `open_checkpoint` opens
    hub      fetches what a build reads of a model on the hub
    view     a directory that stands for a URL: small files are copies, weights stay where they are
    remote   weights that stay where they are, read by ranges with read-ahead
"""
