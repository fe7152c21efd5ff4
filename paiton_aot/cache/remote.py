"""A build cache in an object store: every bundle under a tag of its key, so that only what is new is uploaded.

::

    tags/builds/<key>       the bundle of a build key
    tags/last/<model>       the last build of a model, to tell why one was built again
    leases/<key>            written by whoever builds it now, every few seconds; with a lease two runners rarely do the
                            same work, and without one, or if it is lost, they merely do it twice
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from paiton_aot.attest.provenance import components_in
from paiton_aot.cache.links import place
from paiton_aot.identity.build_key import BuildKey
from paiton_aot.progress import Progress
from paiton_artifacts.errors import BundleNotFoundError, LockTimeoutError, PaitonError, StoreError, VerificationError
from paiton_artifacts.layout import PROVENANCE_NAME, SIGNATURE_NAME
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.store.address import Address
from paiton_artifacts.store.client import Store
from paiton_artifacts.store.items import items_of
from paiton_artifacts.store.push import Push
from paiton_artifacts.store.remote import read_companion, read_manifest, read_tag, write_tag
from paiton_artifacts.store.resolve import Resolver
from paiton_artifacts.temporary import LockedDirectory, remove_stale
from paiton_artifacts.trust.policy import Policy
from paiton_artifacts.writer import BundleWriter

BUILDS = "builds"
LAST = "last"
LEASES = "leases"

LEASE_SECONDS = 60.0
"""Age by the store's clock from which a lease is that of a dead build."""

_RENEW_SECONDS = 15.0
_POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class RemoteCache:
    """Bundles by build key, in a store.

    Attributes:
        root: URL of the store, without a slash at its end.
        store: the same, opened.
        policy: what a bundle from there needs to be taken.
        progress: where to tell what is going on.
        told: manifests of which was told that they are not used.
    """

    root: str
    store: Store
    policy: Policy
    progress: Progress
    told: set[str] = field(default_factory=set)

    def find(self, key: str) -> Address | None:
        """Returns the bundle of a key, by its digest; None where there is none, or one that the policy refuses.

        Raises:
            StoreError: the store fails.
        """
        digest = read_tag(self.store, BUILDS, key)
        if digest is None:
            return None
        address = Address(self.root, BUILDS, key, digest)
        try:
            manifest = read_manifest(self.store, digest, str(address))
            signature = read_companion(self.store, digest, SIGNATURE_NAME)
            self.policy.check(manifest, pinned=False, signature=signature, from_url=True, what=str(address))
        except (BundleNotFoundError, VerificationError) as error:
            if digest not in self.told:  # once, however often we look
                self.told.add(digest)
                self.progress.event(
                    "refused", f"{address} is not used: {error}", bundle=str(address), reason=str(error)
                )
            return None
        # That it is the bundle of this key is the tag's word: two keys may give the same bytes, and its provenance
        # tells of one of them only.
        return address

    def deliver(self, address: Address, output: Path, *, force: bool) -> None:
        """Writes the bundle at an address to a directory.

        Raises:
            OutputExistsError: something is there, and `force` is off or it is not a bundle.
            PaitonError: it cannot be fetched whole.
        """
        resolver = Resolver(Policy(), progress=None)  # pinned: `find` has asked the policy already
        if not os.path.lexists(output):
            resolver.download(address, output)
            return
        fetched = resolver.cached(address)
        place(fetched, BundleWriter(output, force=force))

    def publish(self, bundle: Path, key: str, model: str) -> Address:
        """Uploads what the store lacks of a bundle, and notes it as that of a key, and as the last of its model.

        Raises:
            StoreError: the store fails.
        """
        total = sum(item.size for item in items_of(open_bundle(bundle).manifest))
        with self.progress.bar("push", total, "B") as advance:
            told = 0

            def tell(done: int, _total: int) -> None:
                nonlocal told
                advance(done - told)
                told = done

            pushed = Push(bundle, Address(self.root, BUILDS, key, None), progress=tell).run()
        write_tag(self.store, LAST, model, pushed.digest)
        return pushed.address

    def previous(self, model: str) -> BuildKey | None:
        """Returns the key of the last build of a model, with its components; None where there is none."""
        with contextlib.suppress(PaitonError):
            digest = read_tag(self.store, LAST, model)
            return None if digest is None else self._key_of(digest)
        return None

    @contextlib.contextmanager
    def lease(self, key: str, timeout: float, done: Callable[[], bool]) -> Iterator[None]:
        """Holds the lease of a key, or goes on without one once `done`.

        Args:
            key: of the build.
            timeout: seconds to wait for another build of the key.
            done: whether there is nothing left to build.

        Raises:
            LockTimeoutError: somebody else held the lease all that time.
            StoreError: the store fails.
        """
        name = f"{LEASES}/{key}"
        if not self._acquire(name, timeout, done):
            yield
            return
        ended = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(name, ended), name="paiton-lease", daemon=True)
        renewal.start()
        try:
            yield
        finally:
            ended.set()
            renewal.join()
            with contextlib.suppress(StoreError):  # it is ignored before long
                self.store.delete([name])

    def _acquire(self, name: str, timeout: float, done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + timeout
        told = False
        while not self._take(name):
            if done():
                return False
            if time.monotonic() >= deadline:
                raise LockTimeoutError(
                    f"{self.store.url}/{name}: another build holds the lease for more than {timeout:g} s",
                    hint="wait for it, or raise --lock-timeout",
                )
            if not told:
                told = True
                self.progress.event("waiting", f"waiting for another build of the same key ({name})", lease=name)
            time.sleep(_POLL_SECONDS)
        return True

    def _take(self, name: str) -> bool:
        """Writes the lease unless somebody alive holds it; where the store knows no conditions, in any case."""
        mine = json.dumps({"holder": secrets.token_hex(8)}).encode()
        try:
            if self.store.put(name, mine, "absent"):
                return True
            held = self.store.info(name)
            if held is None:
                return False  # just given up; the next attempt gets it
            # Both times are the store's own: this machine's clock does not matter.
            probe = f"{name}.{secrets.token_hex(8)}"
            self.store.put(probe, mine)
            now = self.store.info(probe)
            self.store.delete([probe])
            if now is None or (now.modified - held.modified).total_seconds() < LEASE_SECONDS:
                return False
            # Of several who find it dead, two may get it: they do the same work, and nothing else comes of it.
            self.store.delete([name])
            return self.store.put(name, mine, "absent")
        except StoreError:
            return True  # without a lease, then; if the store is down, the upload will say so

    def _renew(self, name: str, ended: threading.Event) -> None:
        while not ended.wait(_RENEW_SECONDS):
            with contextlib.suppress(StoreError):
                self.store.put(name, json.dumps({"holder": secrets.token_hex(8)}).encode())

    def _key_of(self, digest: str) -> BuildKey | None:
        data = read_companion(self.store, digest, PROVENANCE_NAME)
        return None if data is None else components_in(data, f"{self.root}: provenance of {digest}")


@contextlib.contextmanager
def scratch_output(cache_dir: Path) -> Iterator[Path]:
    """Yields a place for a bundle that is built only to be uploaded, and removes it in the end."""
    place_for = cache_dir / "upload"
    place_for.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(place_for)
    temporary = LockedDirectory(place_for)
    try:
        yield temporary.path / "bundle"
    finally:
        temporary.remove()
