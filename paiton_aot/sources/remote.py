"""Files of an object store or a web server that are read like local ones: by position, in blocks, with read-ahead.

Nothing is kept but the blocks that were read last. A file stands at a path (`view`), by which everything that reads
checkpoints finds it here.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from paiton_aot.sources.remembered import recall, remember
from paiton_artifacts.errors import CheckpointFormatError
from paiton_artifacts.store.client import ObjectInfo, Store

if TYPE_CHECKING:
    from obstore import Bytes

BLOCK_BYTES = 4 << 20
AHEAD = 8
"""Blocks that are fetched before they are asked for, where a file is read in order."""

KEPT = 32
"""Blocks of all files in memory: with those in use, about 150 MB."""

_STEP = 64 << 20

_files: dict[Path, RemoteFile] = {}


def remote_file(path: Path) -> RemoteFile | None:
    """Returns what stands at a path; None for an ordinary file."""
    return _files.get(path.absolute()) if _files else None


class Blocks:
    """The blocks of a store's objects that are in memory or on their way there; for many threads at once.

    Args:
        store: that they come from.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pool = ThreadPoolExecutor(AHEAD, "paiton-source")
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int], Future[Bytes]] = OrderedDict()

    def want(self, info: ObjectInfo, index: int) -> Future[Bytes]:
        """Returns a block of an object, which may be on its way."""
        key = (info.key, index)
        with self._lock:
            block = self._blocks.get(key)
            if block is None or (block.done() and (block.cancelled() or block.exception() is not None)):
                block = self._blocks[key] = self._pool.submit(self._fetch, info, index)
                while len(self._blocks) > KEPT:
                    self._blocks.popitem(last=False)  # not cancelled: another thread may be waiting for it
            self._blocks.move_to_end(key)
            return block

    def close(self) -> None:
        """Ends the transfers that nobody waits for."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._blocks.clear()

    def _fetch(self, info: ObjectInfo, index: int) -> Bytes:
        offset = index * BLOCK_BYTES
        length = min(BLOCK_BYTES, info.size - offset)
        return self.store.read_range(info.key, offset, length, size=info.size, etag=info.etag)


class RemoteFile:
    """An object that is read by position; for many threads at once.

    Args:
        blocks: of its store.
        info: of the object, as it was found.
    """

    def __init__(self, blocks: Blocks, info: ObjectInfo) -> None:
        self.size = info.size
        self.url = f"{blocks.store.url}/{info.key}"
        self._blocks = blocks
        self._info = info
        self._end = -1

    def stand_at(self, path: Path) -> None:
        """Lets the object be found at a path, until `leave`."""
        _files[path.absolute()] = self

    @staticmethod
    def leave(path: Path) -> None:
        """Forgets what stands at a path."""
        _files.pop(path.absolute(), None)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills a buffer with the bytes from `offset`, all of which the object has.

        Raises:
            StoreError: the store fails, or the object was replaced.
        """
        end = offset + len(buffer)
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        ahead = AHEAD if last > first or offset == self._end else 0
        self._end = end
        final = (self.size - 1) // BLOCK_BYTES
        done = 0
        for index in range(first, last + 1):
            block = self._blocks.want(self._info, index)
            for following in range(index + 1, min(index + ahead, final) + 1):
                self._blocks.want(self._info, following)
            start = offset + done - index * BLOCK_BYTES
            piece = memoryview(block.result())[start : start + len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)

    def digest(self, folder: Path, advance: Callable[[int], object]) -> str:
        """Returns the SHA-256 in lower-case hex: of the whole object, or as it was when it had this ETag and size.

        Args:
            folder: where digests are remembered.
            advance: called with the bytes of each part that is done.

        Raises:
            StoreError: the store fails.
        """
        state = {"etag": self._info.etag, "size": self.size}
        known = recall(folder, self.url, state)
        if known is not None:
            advance(self.size)
            return known
        digest = hashlib.sha256()
        told = end = 0
        for offset, piece in self._blocks.store.pieces(self._info.key, self.size) if self.size else ():
            if not offset:
                digest = hashlib.sha256()  # a server without ranges has begun again
            digest.update(piece)
            end = max(end, offset + len(piece))
            if end - told >= _STEP or end == self.size:
                advance(end - told)
                told = end
        found = digest.hexdigest()
        if self._info.etag is not None:
            remember(folder, self.url, state, found)
        return found

    def check_unchanged(self) -> None:
        """Checks that the object is still the one that was found.

        Raises:
            CheckpointFormatError: it was replaced or removed.
            StoreError: the store fails.
        """
        now = self._blocks.store.info(self._info.key)
        if now is None or (now.size, now.etag) != (self._info.size, self._info.etag):
            raise CheckpointFormatError(
                f"{self.url} changed while it was read", hint="build again once nothing writes to it"
            )
