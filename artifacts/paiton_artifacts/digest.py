"""SHA-256 of byte ranges of files, in parallel: hashlib and pread free the GIL."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from paiton_artifacts.layout import CHUNK_BYTES

_BUFFER_BYTES = 1 << 20

Range = tuple[int, int]
"""Offset and size in bytes."""


def sha256_of_range(descriptor: int, offset: int, size: int) -> str | None:
    """Returns the SHA-256 of `size` bytes at `offset` in lower-case hex; None if the file ends before."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, size)))
    end = offset + size
    while offset < end:
        count = os.preadv(descriptor, [buffer[: end - offset]], offset)
        if not count:
            return None
        digest.update(buffer[:count])
        offset += count
    return digest.hexdigest()


def sha256_of_ranges(
    descriptor: int, ranges: Sequence[Range], progress: Callable[[int], None] | None = None, workers: int | None = None
) -> Generator[str | None, None, None]:
    """Yields the digest of each range, in order, computed by several threads.

    Who stops before the end closes it (`contextlib.closing`): if that is left to the garbage collector, it may wait for
    the threads in a place where they cannot end.

    Args:
        descriptor: an open file.
        ranges: what to digest.
        progress: called with the bytes of each range once it is done, in order.
        workers: threads; by default one per processor that this process may use.
    """
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        digests = pool.map(lambda item: sha256_of_range(descriptor, *item), ranges)
        for (_, size), digest in zip(ranges, digests, strict=True):
            if progress is not None:
                progress(size)
            yield digest


class GrowingDigests:
    """SHA-256 of ranges of a file that is being written: of each as soon as its bytes are final.

    Args:
        descriptor: the file, open for reading.
        ranges: what to digest, in order.
        pool: threads that do it.
    """

    def __init__(self, descriptor: int, ranges: Sequence[Range], pool: Executor) -> None:
        self._descriptor = descriptor
        self._waiting = deque(ranges)
        self._pool = pool
        self._digests: list[Future[str | None]] = []

    def settle(self, end: int) -> None:
        """Tells that all bytes before `end` are final."""
        while self._waiting and sum(self._waiting[0]) <= end:
            self._digests.append(self._pool.submit(sha256_of_range, self._descriptor, *self._waiting.popleft()))

    def finish(self) -> list[str | None]:
        """Returns the digests in order, once all bytes are final; None for ranges behind the end of the file."""
        self.settle(sys.maxsize)
        return [digest.result() for digest in self._digests]


def cut_chunks(size: int, boundaries: Sequence[int], limit: int = CHUNK_BYTES) -> list[Range]:
    """Cuts a blob into chunks of at most `limit` bytes, at the last boundary that fits, else at the limit.

    Args:
        size: bytes of the blob.
        boundaries: where tensors start, ascending.
        limit: largest chunk in bytes.

    Returns:
        Ranges that cover the blob in order, without gap or overlap.
    """
    chunks: list[Range] = []
    start, n = 0, 0
    while start < size:
        end = min(start + limit, size)
        if end < size:
            cut = start
            while n < len(boundaries) and boundaries[n] <= end:
                cut = boundaries[n]
                n += 1
            end = cut if cut > start else end
        chunks.append((start, end - start))
        start = end
    return chunks
