"""SHA-256 of byte ranges of files, in parallel: hashlib and pread free the GIL."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from threading import Lock

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
    """SHA-256 of ranges of a file that is being written, which follow the writer: little is left to do when it ends.

    Args:
        descriptor: the file, open for reading.
        ranges: what to digest, in order.
        pool: threads that do it.
    """

    def __init__(self, descriptor: int, ranges: Sequence[Range], pool: Executor) -> None:
        self._all = [_GrowingDigest(descriptor, offset, size, pool) for offset, size in ranges]
        self._growing = deque(self._all)

    def settle(self, end: int) -> None:
        """Tells that all bytes before `end` are final."""
        while self._growing:
            self._growing[0].settle(end)
            if end < self._growing[0].end:
                return
            self._growing.popleft()

    def finish(self) -> list[str | None]:
        """Returns the digests in order, once all bytes are final; None for ranges behind the end of the file."""
        self.settle(sys.maxsize)
        return [digest.future.result() for digest in self._all]


class _GrowingDigest:
    """The digest of one range; at most one thread at a time works on it."""

    def __init__(self, descriptor: int, offset: int, size: int, pool: Executor) -> None:
        self.end = offset + size
        self.future: Future[str | None] = Future()
        self._descriptor = descriptor
        self._pool = pool
        self._digest = hashlib.sha256()
        self._position = offset
        self._final = offset
        self._busy = False
        self._lock = Lock()

    def settle(self, end: int) -> None:
        with self._lock:
            self._final = max(self._final, min(end, self.end))
            if self._busy or not self._is_worth_it():
                return
            self._busy = True
        self._pool.submit(self._follow)

    def _is_worth_it(self) -> bool:
        return self._final == self.end or self._final - self._position >= _BUFFER_BYTES

    def _follow(self) -> None:
        """Digests what is final, until little is left or all is done."""
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        try:
            while (size := self._next_size()) > 0:
                count = os.preadv(self._descriptor, [buffer[:size]], self._position)
                if not count:
                    self.future.set_result(None)
                    return
                self._digest.update(buffer[:count])
                self._position += count
        except BaseException as error:
            self.future.set_exception(error)
            raise

    def _next_size(self) -> int:
        """Returns how many bytes to digest next; with 0, another thread may go on from here."""
        with self._lock:
            if self._position == self.end:
                self.future.set_result(self._digest.hexdigest())
            elif self._is_worth_it():
                return min(self._final - self._position, _BUFFER_BYTES)
            self._busy = False
            return 0


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
