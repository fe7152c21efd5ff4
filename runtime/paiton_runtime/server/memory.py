"""Memory that goes back to the system once nobody uses it."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3  # of malloc.h
_MAPPED_BYTES = 1 << 20


def return_large_blocks() -> None:
    """Lets malloc map every block of a megabyte or more by itself, so that freeing it gives it back.

    Left alone, glibc raises the limit to the size of the largest such block that was freed (mallopt(3)): after one
    request of 10 MB, or a tokenizer.json of that size, later ones leave holes in the heap, 17 MiB after a few dozen.
    """
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
