"""A bundle that is booted while its blobs are still on their way into the cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from paiton_artifacts.errors import PaitonError
from paiton_artifacts.schema import Manifest
from paiton_artifacts.store.assembly import Assembly
from paiton_artifacts.store.cache import Cache
from paiton_artifacts.store.fetch import Fetch


class Arrived(NamedTuple):
    """Bytes of a blob that are there and verified: the rank, the offset of the first, and how many."""

    rank: int
    offset: int
    size: int


class Arrival:
    """The fetch of one bundle into the cache, under the lock that its filling needs.

    Every file but the blobs is there once this is made. Whoever makes it ends it, with `finish`, `keep` or `abandon`.

    Args:
        cache: that is filled.
        digest: of the manifest.
        filling: ends what the assembly needs, its lock above all.
        assembly: in it.
        fetch: of its items, started.

    Raises:
        PaitonError: as `batches`; then there is nothing to end.
    """

    def __init__(
        self,
        cache: Cache,
        digest: str,
        filling: ExitStack,
        assembly: Assembly,
        fetch: Fetch,
    ) -> None:
        self._cache = cache
        self._digest = digest
        self._filling = filling
        self._assembly = assembly
        self._fetch = fetch
        self._keeping: threading.Thread | None = None
        self._ranks = {blob.path: blob.rank for blob in assembly.manifest.blobs}
        try:
            fetch.wait(lambda item: any(place.path not in self._ranks for place in item.places))
        except BaseException:
            self.abandon()
            raise

    @property
    def path(self) -> Path:
        """The directory, which stays the same when it becomes a bundle."""
        return self._assembly.directory

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self._assembly.manifest

    def batches(self) -> Iterator[list[Arrived]]:
        """Yields what has arrived of the blobs, each byte once, until all has; waits in between.

        Raises:
            VerificationError: the store has other bytes than it should, again and again.
            StoreError: the store fails, or the arrival was abandoned.
            DiskFullError: there is no space.
        """
        left = {item for item in self._assembly.items if any(place.path in self._ranks for place in item.places)}
        while left:
            came = self._fetch.wait_for_some(left)
            left -= came
            yield [
                Arrived(self._ranks[place.path], place.offset, item.size)
                for item in came
                for place in item.places
                if place.path in self._ranks
            ]

    def keep(self) -> None:
        """Does what `finish` does in a thread, for which the process waits before it ends; says what goes wrong."""

        def run() -> None:
            try:
                self.finish()
            except PaitonError as error:
                self._cache.remark(f"the bundle was not kept in the cache: {error}")

        self._keeping = threading.Thread(target=run, name="paiton-cache", daemon=False)  # whatever the caller's is
        self._keeping.start()

    def finish(self) -> None:
        """Makes it a bundle of the cache, durably; this process keeps using it.

        Raises:
            PaitonError: not everything has arrived, or the disk fails. Then a later pull resumes.
        """
        try:
            self._fetch.wait()
            self._fetch.cancel()
            self._cache.finish(self._assembly, self._digest)
        finally:
            self._end()
        self._cache.find(self._digest)

    def abandon(self) -> None:
        """Stops soon; what has arrived is found again by the next pull. May be called at any time."""
        if self._keeping is not None:
            self._keeping.join()
        self._fetch.cancel()
        self._end()

    def _end(self) -> None:
        self._filling.close()
