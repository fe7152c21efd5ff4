"""Garbage collection of a store: deletes blobs that no manifest refers to.

A push and a gc may run at once, without locks that a store might not have. A push announces its manifest before it
looks which blobs are there, and then waits for a gc that is under way; a gc says that it is under way before it looks
for announcements and manifests. So whichever comes second sees the other. All ages are by the store's own clock.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from paiton_artifacts.errors import LockTimeoutError, ObjectNotFoundError, StoreError
from paiton_artifacts.layout import COMPANIONS
from paiton_artifacts.store.client import ObjectInfo, Store
from paiton_artifacts.store.items import items_of
from paiton_artifacts.store.keys import BLOBS, COLLECTING, MANIFESTS, PENDING, clock_key
from paiton_artifacts.store.push import COLLECTOR_ALIVE
from paiton_artifacts.store.remote import MAX_MANIFEST_FILE, decode_manifest, read_tag, tags

_BATCH = 1000
_REFRESH = COLLECTOR_ALIVE / 5


@dataclass(frozen=True, slots=True)
class Garbage:
    """What nothing needs, and the number of blobs that are needed or young."""

    objects: tuple[ObjectInfo, ...]
    kept: int

    @property
    def bytes(self) -> int:
        """The size of the objects."""
        return sum(info.size for info in self.objects)


def collect_garbage(store: Store, age: timedelta, *, untagged: bool = False, dry_run: bool = False) -> Garbage:
    """Deletes what nothing refers to.

    Args:
        store: the store.
        age: younger objects stay, whatever refers to them.
        untagged: manifests that no tag holds are garbage as well, although somebody may have pinned their digests.
        dry_run: delete nothing.

    Raises:
        LockTimeoutError: another gc is under way.
        VerificationError: a manifest is damaged: what it refers to is unknown, so nothing is deleted.
        StoreError: the store fails.
    """
    if dry_run:
        return _find(store, datetime.now(UTC) - age, lambda: None, untagged=untagged)
    presence = _Presence(store)
    try:
        garbage = _find(store, presence.now - age, presence.refresh, untagged=untagged)
        keys = [info.key for info in garbage.objects]
        for start in range(0, len(keys), _BATCH):
            presence.refresh(force=True)
            store.delete(keys[start : start + _BATCH])
        return garbage
    finally:
        presence.end()


class _Presence:
    """Says in the store that a gc is under way, for as long as it is; knows the store's time at its begin."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._mark = secrets.token_hex(16).encode()
        self.now = self._ask_time()
        other = store.info(COLLECTING)
        if other is not None and (self.now - other.modified).total_seconds() < COLLECTOR_ALIVE:
            raise self._taken()
        # A store without conditional writes lets two in at once; the one that was overwritten ends at its next refresh.
        if not store.put(COLLECTING, self._mark, other.etag if other is not None and other.etag else None):
            raise self._taken()
        self._refreshed = time.monotonic()

    def refresh(self, *, force: bool = False) -> None:
        """Says so again before others take us for dead."""
        if force or time.monotonic() - self._refreshed > _REFRESH:
            if not self._is_ours():
                raise self._taken()
            self._store.put(COLLECTING, self._mark)
            self._refreshed = time.monotonic()

    def end(self) -> None:
        """Takes it back."""
        if self._is_ours():
            self._store.delete([COLLECTING])

    def _is_ours(self) -> bool:
        try:
            return self._store.read(COLLECTING, len(self._mark)) == self._mark
        except ObjectNotFoundError:
            return False

    def _ask_time(self) -> datetime:
        key = clock_key(self._mark.decode())
        self._store.put(key, b"")
        info = self._store.info(key)
        self._store.delete([key])
        if info is None:
            raise StoreError(f"{self._store.url}: what was just written is not there", hint="is the store consistent?")
        return info.modified

    def _taken(self) -> LockTimeoutError:
        return LockTimeoutError(
            f"{self._store.url}: another gc is under way, or died less than {COLLECTOR_ALIVE:.0f} s ago",
            hint="run it again later",
        )


def _find(store: Store, before: datetime, alive: Callable[[], object], *, untagged: bool) -> Garbage:
    """Returns what was written before a point in time and is not needed."""
    # In this order: a push that ends between the two lists has moved from the first to the second.
    pending = list(store.objects(PENDING))
    manifests = list(store.objects(MANIFESTS))
    tagged = {read_tag(store, name, tag) for name, tag, _ in tags(store)} if untagged else set()
    garbage = [info for info in pending if info.modified < before]
    roots = {_digest(info): info for info in pending if info.modified >= before}
    for info in manifests:
        digest = _digest(info)
        if len(digest) == 64 and (not untagged or digest in tagged or digest in roots or info.modified >= before):
            roots[digest] = info
    for info in manifests:
        digest, _, companion = _digest(info).partition(".")
        if digest not in roots and info.modified < before and (not companion or companion in COMPANIONS):
            garbage.append(info)
    needed: set[str] = set()
    for info in roots.values():
        alive()
        try:
            data = store.read(info.key, MAX_MANIFEST_FILE)
        except ObjectNotFoundError:
            continue  # a push has just ended; its manifest is among the others
        needed.update(item.digest for item in items_of(decode_manifest(data, f"{store.url}/{info.key}")))
    kept = 0
    for info in store.objects(BLOBS):
        alive()
        if _digest(info) in needed or info.modified >= before:
            kept += 1
        else:
            garbage.append(info)
    return Garbage(tuple(garbage), kept)


def _digest(info: ObjectInfo) -> str:
    return info.key.rpartition("/")[2]
