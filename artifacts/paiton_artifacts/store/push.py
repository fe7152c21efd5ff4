"""Uploads a bundle: what the store lacks, hashed on its way, then the manifest, then the tag."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from paiton_artifacts.errors import DigestMismatchError, FileSizeError, LockTimeoutError, StoreError
from paiton_artifacts.files import open_inside, read_bounded
from paiton_artifacts.layout import COMPANIONS, MANIFEST_NAME, SIGNATURE_NAME
from paiton_artifacts.limits import MAX_COMPANION_BYTES
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.store.address import Address
from paiton_artifacts.store.client import Store
from paiton_artifacts.store.fetch import default_workers
from paiton_artifacts.store.items import Item, items_of
from paiton_artifacts.store.keys import COLLECTING, blob_key, companion_key, manifest_key, pending_key
from paiton_artifacts.store.opening import open_store
from paiton_artifacts.store.remote import MAX_MANIFEST_FILE, read_tag, write_tag
from paiton_artifacts.verify import Progress

UPLOADS = 4
"""Objects uploaded at once: with the parts of each that are in flight this bounds the memory of a push."""

COLLECTOR_ALIVE = 300.0
"""Seconds since its last sign of life after which a gc is taken for dead."""

_READ_BYTES = 1 << 20
_HINT = "the bundle is damaged; build or fetch it again"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did.

    Attributes:
        address: of the bundle, with its digest.
        digest: of the manifest.
        replaced: what the tag held before, None if nothing.
        objects: of the bundle, the manifest and its companions aside.
        uploaded: how many of them were not there.
        uploaded_bytes: their size; the manifest and its companions included.
        bytes: of all objects.
        artifact: digest of the OCI manifest, in a registry.
    """

    address: Address
    digest: str
    replaced: str | None
    objects: int
    uploaded: int
    uploaded_bytes: int
    bytes: int
    artifact: str | None = None


class Push:
    """One push of one bundle.

    Args:
        path: the bundle's directory.
        address: where to. A digest in it must be the bundle's.
        expected: what the tag must hold (`remote.write_tag`).
        progress: called with bytes done and in all, those included that were there already.
        remark: told what a person may want to know.
    """

    def __init__(
        self,
        path: Path,
        address: Address,
        *,
        expected: str | None = None,
        progress: Progress | None = None,
        remark: Callable[[str], object] | None = None,
    ) -> None:
        self._bundle = open_bundle(path)
        self._path = path
        self._data = read_bounded(path, MANIFEST_NAME, MAX_MANIFEST_FILE)
        self._digest = hashlib.sha256(self._data).hexdigest()
        if address.digest not in (None, self._digest):
            raise DigestMismatchError(
                f"{path}: the manifest has SHA-256 {self._digest}, the URL says {address.digest}",
                hint="leave the digest out of the URL, or push the right bundle",
            )
        self._address = address
        self._expected = expected
        self._progress = progress
        self._remark = remark or (lambda _: None)
        self._items = items_of(self._bundle.manifest)
        self._total = sum(item.size for item in self._items)
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(UPLOADS)
        self._stop = threading.Event()
        self._done = self._uploaded = self._uploaded_bytes = 0
        self._store = open_store(address.root, create=True, stop=self._stop)

    def run(self) -> Pushed:
        """Uploads what is missing and publishes the bundle. Interrupted, it goes on where it was when run again.

        Raises:
            DigestMismatchError: a file of the bundle is not what its manifest says.
            TagMovedError: the tag holds something else than was expected.
            LockTimeoutError: a gc of the store does not end.
            StoreError: the store fails.
        """
        address, digest, artifact = self._address, self._digest, None
        if isinstance(self._store, Store):
            replaced = self._publish(self._store)
        else:
            from paiton_artifacts.store.oci.publish import publish  # noqa: PLC0415  (http.client is heavy)

            self._upload_all()
            companions = self._companions()
            done = publish(self._store, self._bundle.manifest, self._data, companions, address.tag, self._expected)
            replaced, artifact = done.replaced, done.artifact
            self._uploaded_bytes += done.uploaded_bytes
        pinned = Address(address.root, address.name, address.tag, digest)
        objects = len(self._items)
        return Pushed(pinned, digest, replaced, objects, self._uploaded, self._uploaded_bytes, self._total, artifact)

    def _publish(self, store: Store) -> str | None:
        """Uploads what is missing, then what makes it a bundle of an object store; returns what the tag held."""
        address, digest = self._address, self._digest
        published = store.info(manifest_key(digest)) is not None
        changed = not published or read_tag(store, address.name, address.tag) != digest
        if changed:
            self._announce(store)
        self._upload_all()
        self._put_companions(store)
        if not published:
            store.put(manifest_key(digest), self._data)
            self._uploaded_bytes += len(self._data)
        replaced = write_tag(store, address.name, address.tag, digest, self._expected)
        if changed:
            store.delete([pending_key(digest)])
        return replaced

    def _announce(self, store: Store) -> None:
        """Tells a gc that what this bundle refers to is not garbage; waits for one that may not have heard it."""
        key = pending_key(self._digest)
        store.put(key, self._data)
        announced = store.info(key)
        end = time.monotonic() + 2 * COLLECTOR_ALIVE
        told = False
        while (collector := store.info(COLLECTING)) is not None and announced is not None:
            # Both times are the store's own: this machine's clock does not matter.
            if (announced.modified - collector.modified).total_seconds() > COLLECTOR_ALIVE:
                return
            if time.monotonic() > end:
                raise LockTimeoutError(f"{store.url}: a gc does not end", hint="run the push again later")
            if not told:
                told = True
                self._remark("waiting for a gc of the store to end")
            time.sleep(1.0)
            store.put(key, self._data)
            announced = store.info(key)

    def _put_companions(self, store: Store) -> None:
        """Uploads what lies beside the manifest; never what would not fit a signature that is there already.

        Another build of the same bytes says other things about itself, and a signature covers what is said.
        """
        companions = self._companions()
        if SIGNATURE_NAME not in companions and store.info(companion_key(self._digest, SIGNATURE_NAME)) is not None:
            return
        for name, data in companions.items():
            key = companion_key(self._digest, name)
            try:
                there = store.read(key, MAX_COMPANION_BYTES) == data
            except StoreError:
                there = False
            if not there:
                store.put(key, data)
                self._uploaded_bytes += len(data)

    def _companions(self) -> dict[str, bytes]:
        """Returns what lies beside the manifest, by name."""
        names = [name for name in COMPANIONS if (self._path / name).is_file()]
        return {name: read_bounded(self._path, name, MAX_COMPANION_BYTES) for name in names}

    def _upload_all(self) -> None:
        """Uploads what is missing, several objects at once; after the first error no more begin."""
        with ThreadPoolExecutor(default_workers(), "paiton-push") as pool:
            futures = [pool.submit(self._upload_missing, item) for item in self._items]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _upload_missing(self, item: Item) -> None:
        """Uploads an item unless the store has it; what is there has the right bytes if it has the right size."""
        key = blob_key(item.digest)
        missing = self._store.size(key) != item.size
        if missing:
            with self._slots:
                if self._stop.is_set():
                    return
                self._store.put_pieces(key, item.size, lambda: self._read(item))
        with self._lock:
            self._done += item.size
            self._uploaded += missing
            self._uploaded_bytes += item.size * missing
            if self._progress is not None:
                self._progress(self._done, self._total)

    def _read(self, item: Item) -> Iterator[bytes]:
        """Yields the bytes of an item; raises instead of ending if they have not its digest, which voids the upload."""
        place = item.places[0]
        digest = hashlib.sha256()
        offset, end = place.offset, place.offset + item.size
        with open_inside(self._path, place.path) as descriptor:
            while offset < end:
                if self._stop.is_set():
                    raise StoreError(f"uploading {place.path} was stopped")
                data = os.pread(descriptor, min(_READ_BYTES, end - offset), offset)
                if not data:
                    raise FileSizeError(f"{self._path / place.path}: ends at byte {offset} of {end}", hint=_HINT)
                digest.update(data)
                offset += len(data)
                if offset == end and (found := digest.hexdigest()) != item.digest:
                    raise DigestMismatchError(
                        f"{self._path / place.path}: SHA-256 of the {item.size} bytes at offset {place.offset} is"
                        f" {found}, the manifest declares {item.digest}",
                        hint=_HINT,
                    )
                yield data
