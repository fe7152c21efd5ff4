"""Memory for blocks of weights, kept from one read to the next."""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

CAPACITY = 10 << 20
"""Bytes of a buffer: the largest block that a build converts at a time, and the pages around it."""


class ReadBuffers:
    """Buffers of huge pages that are used again once nothing refers to what was read into them; for many threads.

    Fresh memory costs a fault and zeros for every page, and a read around the page cache a request for each few small
    pages. Blocks of 4 MiB, four threads, one disk, GB/s: into fresh memory 1.6, into kept small pages 1.2, into kept
    huge pages 2.4.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def take(self, size: int) -> NDArray[np.uint8]:
        """Returns `size` bytes of any content, at the start of a page. More than `CAPACITY` is not kept."""
        if size > CAPACITY:
            return np.frombuffer(mmap.mmap(-1, size), np.uint8)
        try:
            pages = self._free.pop()
        except IndexError:
            pages = mmap.mmap(-1, CAPACITY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):  # a kernel without them
                pages.madvise(mmap.MADV_HUGEPAGE)
        # Views refer to the array, whatever they are views of: when the last one goes, so does the array.
        whole = np.frombuffer(pages, np.uint8)
        weakref.finalize(whole, self._free.append, pages).atexit = False
        return whole[:size]
