"""From what a person writes for a bundle to a directory that `open_bundle` opens: the one place where both meet."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from paiton_artifacts.errors import OutputExistsError
from paiton_artifacts.layout import COMPANIONS, MANIFEST_NAME, SIGNATURE_NAME
from paiton_artifacts.schema import Manifest
from paiton_artifacts.store.address import Address, is_url, parse_address
from paiton_artifacts.store.arrival import Arrival
from paiton_artifacts.store.assembly import Assembly, sync_directory, system_errors
from paiton_artifacts.store.cache import LOCK_TIMEOUT, Cache
from paiton_artifacts.store.client import Readable
from paiton_artifacts.store.fetch import Fetch
from paiton_artifacts.store.locks import FileLock
from paiton_artifacts.store.opening import open_store
from paiton_artifacts.store.remote import decode_manifest, find_digest, read_companion, read_manifest
from paiton_artifacts.store.reuse import LocalItems
from paiton_artifacts.verify import Progress


class Policy(Protocol):
    """Decides whether a bundle may be used: `trust.policy.Policy`."""

    @property
    def require_signature(self) -> bool:
        """Whether a pinned digest is not enough."""

    def check(self, manifest: bytes, *, pinned: bool, signature: bytes | None, from_url: bool, what: str) -> object:
        """Raises VerificationError to refuse; see `trust.policy.Policy.check`."""


@dataclass(frozen=True, slots=True)
class Approved:
    """A bundle in a store that the policy has accepted; no blob of it has been fetched for that.

    Attributes:
        address: what was asked for.
        digest: of the manifest.
        data: bytes of the manifest file, whose digest they have.
        manifest: what they say.
        companions: the files beside the manifest that were read already: name and bytes, None where there is none.
    """

    address: Address
    digest: str
    data: bytes
    manifest: Manifest
    companions: dict[str, bytes | None]


class Resolver:
    """Finds and fetches bundles.

    Args:
        policy: asked about every bundle before a blob of it is fetched.
        cache: where bundles are kept; by default the user's.
        progress: called with bytes fetched and in all.

    Attributes:
        digest: of the manifest of what was found last.
    """

    def __init__(self, policy: Policy, cache: Cache | None = None, progress: Progress | None = None) -> None:
        self.policy = policy
        self.cache = cache or Cache.from_environment()
        self.progress = progress
        self.digest = ""
        self._stores: dict[str, Readable] = {}

    def store(self, address: Address) -> Readable:
        """Returns the store of an address. Opened when something is needed from it: a cached, pinned bundle is not."""
        if address.root not in self._stores:
            self._stores[address.root] = open_store(address.root)
        return self._stores[address.root]

    def approve(self, address: Address) -> Approved:
        """Returns what an address means, once the policy has accepted it.

        Raises:
            BundleNotFoundError: there is no such bundle.
            VerificationError: the policy refuses it, or its manifest is damaged.
            StoreError: the store fails.
        """
        digest, data = address.digest, self.cache.manifest(address.digest) if address.digest else None
        if digest is None or data is None:
            digest = find_digest(self.store(address), address)
            data = self.cache.manifest(digest)
        self.digest = digest
        if data is None:
            data = read_manifest(self.store(address), digest, str(address))
        pinned = address.digest is not None
        companions: dict[str, bytes | None] = {}
        if not pinned or self.policy.require_signature:
            # The newest one for a tag; for a digest the one that is here, so that the store may be out of reach.
            found = self.cache.companion(digest, SIGNATURE_NAME) if pinned else None
            if found is None:
                found = read_companion(self.store(address), digest, SIGNATURE_NAME)
            companions[SIGNATURE_NAME] = found
        self.policy.check(
            data, pinned=pinned, signature=companions.get(SIGNATURE_NAME), from_url=True, what=str(address)
        )
        return Approved(address, digest, data, decode_manifest(data, str(address)), companions)

    def cached(self, address: Address) -> Path:
        """Returns a bundle's directory in the cache, fetched if need be; nobody removes it while this process lives.

        Raises:
            BundleNotFoundError: there is no such bundle.
            VerificationError: the policy refuses it, or the store damages it.
            StoreError: the store fails.
            LockTimeoutError: another process takes too long to fetch it.
            DiskFullError: there is no space.
        """
        approved = self.approve(address)
        while (path := self.cache.find(approved.digest)) is None:
            with self.cache.filling(approved.digest, approved.data, approved.manifest) as assembly:
                if assembly is not None:
                    self._fill(assembly, approved)
                    self.cache.finish(assembly, approved.digest)
        return path

    def arrive(self, address: Address) -> Path | Arrival:
        """Returns a bundle's directory in the cache, or its arrival there: all but its blobs, which are on their way.

        Raises:
            PaitonError: as `cached`.
        """
        approved = self.approve(address)
        while (path := self.cache.find(approved.digest)) is None:
            with ExitStack() as stack:
                filling = self.cache.filling(approved.digest, approved.data, approved.manifest)
                assembly = stack.enter_context(filling)
                if assembly is not None:
                    fetch = self._start(assembly, approved)
                    return Arrival(self.cache, approved.digest, stack.pop_all(), assembly, fetch)
        return path

    def download(self, address: Address, output: Path) -> Path:
        """Fetches a bundle to a directory of its own, around the cache; resumes there after a crash.

        Raises:
            OutputExistsError: something else is there.
            PaitonError: as `cached`.
        """
        approved = self.approve(address)
        output = output.absolute()
        if _holds(output, approved.data):
            return output
        if output.is_symlink() or output.exists():
            raise OutputExistsError(f"output {output} exists", hint="choose another path, or remove it")
        partial = output.with_name(f".{output.name}.pull-{approved.digest[:16]}")
        with FileLock(partial.with_name(f"{partial.name}.lock"), timeout=LOCK_TIMEOUT) as lock:
            if _holds(output, approved.data):  # by another process, meanwhile
                return output
            assembly = Assembly(partial, approved.data, approved.manifest)
            try:
                self._fill(assembly, approved)
                assembly.finish()
            finally:
                assembly.close()
            with system_errors(output):
                partial.rename(output)
                sync_directory(output.parent)
                lock.remove()
        return output

    def _fill(self, assembly: Assembly, approved: Approved) -> None:
        fetch = self._start(assembly, approved)
        try:
            fetch.wait()
        finally:
            fetch.cancel()

    def _start(self, assembly: Assembly, approved: Approved) -> Fetch:
        """Starts to bring everything that the manifest lists; brings what lies beside it meanwhile."""
        store = self.store(approved.address)
        local = LocalItems((self.cache.root, *self.cache.shared))
        local.link_blobs(assembly)
        fetch = Fetch(assembly, store, reuse=local, progress=self.progress).start()
        try:
            for name in COMPANIONS:
                if name not in approved.companions:
                    approved.companions[name] = read_companion(store, approved.digest, name)
                if (found := approved.companions[name]) is not None:
                    assembly.add(name, found)
        except BaseException:
            fetch.cancel()
            raise
        return fetch


def resolve_bundle(
    text: str, policy: Callable[[], Policy], cache: Cache | None = None, progress: Progress | None = None
) -> Path:
    """Returns the directory of a bundle: a path as it is, a URL from the cache, fetched if need be.

    Args:
        text: a path, or a URL (`address`).
        policy: makes what decides on bundles from URLs; not called for a path.
        cache: by default the user's.
        progress: called with bytes fetched and in all.

    Raises:
        PaitonError: as `Resolver.cached`.
    """
    if not is_url(text):
        return Path(text)
    return Resolver(policy(), cache, progress).cached(parse_address(text))


def _holds(directory: Path, data: bytes) -> bool:
    """Says whether a directory is the bundle of a manifest."""
    try:
        return (directory / MANIFEST_NAME).read_bytes() == data
    except OSError:
        return False
