"""Fills an assembly from a store with several threads, every byte hashed on its way; the engine of pulls and boots."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, Self

from paiton_artifacts.errors import DigestMismatchError, StoreError
from paiton_artifacts.store.assembly import Assembly
from paiton_artifacts.store.client import Readable
from paiton_artifacts.store.items import Item
from paiton_artifacts.store.keys import blob_key
from paiton_artifacts.verify import Progress

DAMAGED_ATTEMPTS = 3
"""How often an object is fetched whose bytes are not what its key says, before we give up on the store."""


class Reuse(Protocol):
    """A place on this machine that may hold an item already, such as other bundles in the cache."""

    def __call__(self, item: Item) -> Iterator[tuple[int, bytes]] | None:
        """Yields the bytes of an item in pieces with their offsets, unverified; None where it has not got them."""


def default_workers() -> int:
    """Returns how many objects to transfer at once: what few processors can hash, or many connections can carry."""
    return min(32, max(4, 2 * len(os.sched_getaffinity(0))))


class Fetch:
    """Brings all items of an assembly there, with threads of its own between `start` and `cancel`.

    Args:
        assembly: to fill. It is marked as it gets on, not finished.
        store: to fetch from.
        reuse: asked before the store.
        progress: called with bytes done and in all, by one thread at a time.
        workers: objects at once.
    """

    def __init__(
        self,
        assembly: Assembly,
        store: Readable,
        *,
        reuse: Reuse | None = None,
        progress: Progress | None = None,
        workers: int | None = None,
    ) -> None:
        self._assembly = assembly
        self._store = store
        self._reuse = reuse
        self._progress = progress
        self._queue = deque(assembly.items)
        self._missing = set(assembly.items)
        self._total = sum(item.size for item in assembly.items)
        self._bytes = 0
        self._counted: dict[str, int] = {}
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"paiton-fetch-{n}", daemon=True)
            for n in range(min(workers or default_workers(), len(assembly.items)))
        ]

    def start(self) -> Self:
        """Starts the threads; `cancel` ends them."""
        for thread in self._threads:
            thread.start()
        return self

    def wait(self, wanted: Callable[[Item], bool] | None = None) -> None:
        """Returns when all items are there, or all that are wanted.

        Raises:
            VerificationError: the store has other bytes than it should, again and again.
            StoreError: the store fails.
            DiskFullError: there is no space.
        """
        self._wait_until(lambda: not (self._missing if wanted is None else any(map(wanted, self._missing))))

    def wait_for_some(self, items: set[Item]) -> set[Item]:
        """Returns those of some items that are there, as soon as there is one.

        Raises:
            PaitonError: as `wait`, and if the fetch is cancelled meanwhile.
        """
        self._wait_until(lambda: not items <= self._missing)
        with self._changed:
            return items - self._missing

    def _wait_until(self, there: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or there() or self._stop.is_set())
            if self._error is not None:
                raise self._error
            if not there():
                raise StoreError("fetching a bundle was stopped", hint="run the same command again: it resumes")

    def cancel(self) -> None:
        """Stops all threads soon, and waits for them."""
        self._stop.set()
        with self._changed:
            self._queue.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                if not self._queue:
                    return
                item = self._queue.popleft()
            try:
                complete = self._bring(item)
            except Exception as error:  # noqa: BLE001  (handed to whoever waits)
                with self._changed:
                    self._error = self._error or error
                    self._queue.clear()
                    self._changed.notify_all()
                self._stop.set()
                return
            if complete:
                with self._changed:
                    self._missing.discard(item)
                    self._changed.notify_all()

    def _bring(self, item: Item) -> bool:
        """Returns whether an item is there now; False only when told to stop."""
        found = item.digest if self._assembly.holds(item) else self._reused(item)
        for _ in range(DAMAGED_ATTEMPTS):
            if found == item.digest:
                self._assembly.done(item)
                self._count(item, item.size)
                return True
            pieces = self._store.pieces(blob_key(item.digest), item.size) if item.size else iter(())
            found = self._copy(item, pieces)
            if self._stop.is_set():
                return False
        if found == item.digest:
            self._assembly.done(item)
            return True
        raise DigestMismatchError(
            f"{self._store.url}/{blob_key(item.digest)}: SHA-256 of its {item.size} bytes is {found},"
            f" {DAMAGED_ATTEMPTS} times in a row",
            hint="the store or something in between damages it; push the bundle again",
        )

    def _reused(self, item: Item) -> str | None:
        """Returns the digest of what this machine has in an item's place now, None where it has nothing."""
        pieces = self._reuse(item) if self._reuse is not None else None
        try:
            return None if pieces is None else self._copy(item, pieces)
        except OSError:
            return None  # whoever had it has lost it meanwhile: the store has it, too

    def _copy(self, item: Item, pieces: Iterator[tuple[int, bytes]]) -> str:
        """Writes an item to its places; returns the digest of what was written, or of a part of it if told to stop."""
        digest = hashlib.sha256()
        for offset, piece in pieces:
            if self._stop.is_set():
                break
            if not offset:
                digest = hashlib.sha256()
            digest.update(piece)
            self._assembly.write(item, offset, piece)
            self._count(item, offset + len(piece))
        return digest.hexdigest()

    def _count(self, item: Item, end: int) -> None:
        """Reports that the first `end` bytes of an item have been there, be it once or more."""
        with self._changed:
            counted = self._counted.get(item.digest, 0)
            if end <= counted:
                return
            self._counted[item.digest] = end
            self._bytes += end - counted
            if self._progress is not None:
                self._progress(self._bytes, self._total)
