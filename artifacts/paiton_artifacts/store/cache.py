"""Bundles on this machine by digest: complete or not there, for many processes at once. `docs/store.md` has the layout.

What makes an entry complete is its manifest (`assembly`). Its stamp, written just before, holds size and modification
time of every file as they were when each byte had been verified: an entry that differs from it is verified anew before
it is used, and set aside if it is damaged. A process that uses an entry holds a lock on it until it ends, so that
nothing is removed under it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from paiton_artifacts.errors import (
    DiskFullError,
    LockTimeoutError,
    PaitonError,
    StoreError,
    UsageError,
    VerificationError,
)
from paiton_artifacts.files import read_bounded
from paiton_artifacts.layout import MANIFEST_NAME
from paiton_artifacts.limits import MAX_COMPANION_BYTES
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.schema import Manifest
from paiton_artifacts.store.assembly import PARTIAL_MANIFEST, Assembly, system_errors, write_durably
from paiton_artifacts.store.items import bundle_bytes, file_sizes
from paiton_artifacts.store.locks import FileLock
from paiton_artifacts.store.remote import MAX_MANIFEST_FILE, decode_manifest
from paiton_artifacts.temporary import remove_tree
from paiton_artifacts.user_cache import user_cache_dir
from paiton_artifacts.verify import FileCheck, Progress, verify_files

LIMIT_VARIABLE = "PAITON_CACHE_LIMIT"
SHARED_VARIABLE = "PAITON_CACHE_SHARED"
LOCK_TIMEOUT = 3600.0
"""Seconds to wait for another process that fetches the same bundle."""

ABANDONED = 7 * 24 * 3600.0
"""Seconds after which nobody is expected to resume a pull."""

_held: list[FileLock] = []
"""Entries that this process uses; the system drops the locks when it ends."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A bundle in a cache.

    Attributes:
        digest: of its manifest.
        path: its directory.
        complete: False for a pull that was interrupted or goes on.
        name: of the model.
        size: bytes on disk, those shared with other bundles included.
        used: when it was last used, in seconds since the epoch.
    """

    digest: str
    path: Path
    complete: bool
    name: str
    size: int
    used: float


class Cache:
    """A folder of bundles.

    Args:
        root: the folder; made when something is put there.
        limit: bytes that it may hold; None: what the file system has.
        shared: other caches, which are only read, and asked first.
        remark: told what a person may want to know: waits, damage.
    """

    def __init__(
        self,
        root: Path,
        *,
        limit: int | None = None,
        shared: tuple[Path, ...] = (),
        remark: Callable[[str], object] | None = None,
    ) -> None:
        self.root = root
        self.limit = limit
        self.shared = shared
        self.remark = remark or (lambda _: None)

    @classmethod
    def from_environment(cls, remark: Callable[[str], object] | None = None) -> Cache:
        """Returns the user's cache: `bundles` below `user_cache_dir`, with the limit and shared caches that are set.

        Raises:
            UsageError: the limit is no number of bytes.
        """
        text = os.environ.get(LIMIT_VARIABLE)
        shared = tuple(Path(part) / "bundles" for part in os.environ.get(SHARED_VARIABLE, "").split(os.pathsep) if part)
        return cls(user_cache_dir() / "bundles", limit=parse_size(text) if text else None, shared=shared, remark=remark)

    def path(self, digest: str) -> Path:
        """Returns where a bundle is or will be."""
        return self.root / "sha256" / digest

    def manifest(self, digest: str) -> bytes | None:
        """Returns the manifest file of a complete bundle; None where there is none, or one with another digest."""
        for root in (*self.shared, self.root):
            data = _read(root / "sha256" / digest / MANIFEST_NAME)
            if data is not None and hashlib.sha256(data).hexdigest() == digest:
                return data
        return None

    def companion(self, digest: str, name: str) -> bytes | None:
        """Returns a file beside the manifest of a complete bundle (`layout.COMPANIONS`); None where there is none."""
        for root in (*self.shared, self.root):
            with suppress(OSError, VerificationError):
                return read_bounded(root / "sha256" / digest, name, MAX_COMPANION_BYTES)
        return None

    def find(self, digest: str) -> Path | None:
        """Returns a bundle's directory, to be used until this process ends; None where it has to be fetched.

        A damaged bundle of our own is set aside, one of a shared cache left alone.

        Raises:
            StoreError: the cache cannot be used.
        """
        for root in self.shared:
            if self._intact(root, digest, repair=False):
                return root / "sha256" / digest
        if not (self.path(digest) / MANIFEST_NAME).exists():
            return None
        lock = FileLock(self._lock(digest), shared=True, timeout=LOCK_TIMEOUT)
        if self._intact(self.root, digest, repair=True):
            _held.append(lock)
            with suppress(OSError):
                os.utime(self._stamp(digest))
            return self.path(digest)
        lock.release()
        return None

    @contextmanager
    def filling(self, digest: str, data: bytes, manifest: Manifest) -> Iterator[Assembly | None]:
        """Yields the assembly of a bundle that is to be filled and finished by `finish`, while no other process can.

        Yields None if another process was quicker: then `find` has it.

        Raises:
            LockTimeoutError: another process takes too long.
            DiskFullError: there is no space, or the limit leaves none.
            StoreError: the cache cannot be written.
        """
        waiting = f"waiting for another process that fetches sha256:{digest[:12]}"
        with FileLock(self._lock(f"{digest}.fill"), timeout=LOCK_TIMEOUT, waiting=lambda: self.remark(waiting)):
            if (self.path(digest) / MANIFEST_NAME).exists() and self._intact(self.root, digest, repair=False):
                yield None
                return
            self.set_aside(digest)
            self._make_room(digest, bundle_bytes(manifest))
            assembly = Assembly(self.path(digest), data, manifest)
            try:
                yield assembly
            finally:
                assembly.close()

    def finish(self, assembly: Assembly, digest: str) -> None:
        """Makes a complete assembly a bundle of this cache.

        Raises:
            DiskFullError: there is no space.
            StoreError: writing failed.
        """
        assembly.finish(lambda: self._write_stamp(digest, assembly.manifest))

    def set_aside(self, digest: str) -> None:
        """Moves a complete bundle, which must be damaged, to the quarantine. Whoever uses it keeps what it has open."""
        path = self.path(digest)
        if not (path / MANIFEST_NAME).exists():
            return
        target = self.root / "quarantine" / f"{digest}-{int(time.time())}-{secrets.token_hex(4)}"
        with system_errors(path), suppress(FileNotFoundError):
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        self.remark(f"sha256:{digest[:12]} was damaged in the cache and is now {target}")

    def entries(self) -> list[Entry]:
        """Returns what the cache holds, least recently used first."""
        folder = self.root / "sha256"
        names = sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208  (names alone)
        found = [entry for name in names if len(name) == 64 and (entry := self._entry(name)) is not None]
        return sorted(found, key=lambda entry: (entry.used, entry.digest))

    def size(self) -> int:
        """Returns the bytes on disk of everything in the cache, each file once."""
        return _disk_bytes(self.root)

    def prune(self, target: int, *, keep: str = "", abandoned: float = ABANDONED) -> list[Entry]:
        """Removes what is least recently used until `target` bytes are left, and what nobody will resume or look at.

        Args:
            target: bytes that may stay.
            keep: a digest to leave alone.
            abandoned: seconds since its last progress after which an incomplete bundle goes in any case.

        Returns:
            What was removed. Bundles in use stay.
        """
        now = time.time()
        removed = []
        for path in self._quarantined():
            if now - path.stat().st_ctime > abandoned or not target:
                remove_tree(path)
        for entry in self.entries():
            stale = not entry.complete and now - entry.used > abandoned
            if entry.digest != keep and (stale or self.size() > target) and self._remove(entry.digest):
                removed.append(entry)
        return removed

    def verify(self, digest: str, progress: Progress | None = None) -> list[FileCheck]:
        """Hashes every byte of a complete bundle; sets it aside if anything is wrong.

        Returns:
            The outcome for each file.

        Raises:
            VerificationError: the manifest itself is damaged.
            StoreError: there is no such bundle.
        """
        with FileLock(self._lock(f"{digest}.fill"), timeout=LOCK_TIMEOUT):
            try:
                checks = self._check(self.root, digest, progress)
            except PaitonError:
                self.set_aside(digest)
                raise
            if any(check.error for check in checks):
                self.set_aside(digest)
            else:
                self._write_stamp(digest, open_bundle(self.path(digest)).manifest)
            return checks

    def _lock(self, name: str) -> Path:
        return self.root / "locks" / name

    def _stamp(self, digest: str) -> Path:
        return self.root / "stamps" / f"{digest}.json"

    def _quarantined(self) -> list[Path]:
        folder = self.root / "quarantine"
        return list(folder.iterdir()) if folder.is_dir() else []

    def _intact(self, root: Path, digest: str, *, repair: bool) -> bool:
        """Says whether a complete bundle is what it was when it was verified; verifies it anew if it has changed."""
        path = root / "sha256" / digest
        data = _read(path / MANIFEST_NAME)
        if data is None:
            return False
        try:
            if hashlib.sha256(data).hexdigest() == digest:
                sizes = file_sizes(decode_manifest(data, str(path / MANIFEST_NAME)))
                states = _states(path, sizes)
                if len(states) == len(sizes) and states == _read_stamp(root / "stamps" / f"{digest}.json"):
                    return True
            self.remark(f"{path} has changed since it was verified: verifying it again")
            if repair:
                return not any(check.error for check in self.verify(digest))
            return not any(check.error for check in self._check(root, digest, None))
        except PaitonError:
            return False

    def _check(self, root: Path, digest: str, progress: Progress | None) -> list[FileCheck]:
        path = root / "sha256" / digest
        data = _read(path / MANIFEST_NAME)
        if data is None:
            raise StoreError(f"no bundle sha256:{digest} in {root}", hint="paiton-run cache ls lists them")
        if (found := hashlib.sha256(data).hexdigest()) != digest:
            raise StoreError(f"{path / MANIFEST_NAME}: SHA-256 is {found}", hint="fetch the bundle again")
        return verify_files(open_bundle(path), progress, strict=False)

    def _write_stamp(self, digest: str, manifest: Manifest) -> None:
        states = _states(self.path(digest), file_sizes(manifest))
        stamp = self._stamp(digest)
        with system_errors(stamp):
            stamp.parent.mkdir(parents=True, exist_ok=True)
            write_durably(stamp, json.dumps({"version": 1, "files": states}).encode())

    def _entry(self, digest: str) -> Entry | None:
        path = self.path(digest)
        data = _read(path / MANIFEST_NAME)
        complete = data is not None
        data = data or _read(path / PARTIAL_MANIFEST)
        try:
            name = decode_manifest(data, str(path)).model.name if data else "?"
        except PaitonError:
            name = "?"
        try:
            used = (self._stamp(digest) if complete else path).stat().st_mtime
        except OSError:
            used = 0.0
        return Entry(digest, path, complete, name, _disk_bytes(path), used) if path.is_dir() else None

    def _make_room(self, digest: str, wanted: int) -> None:
        """Removes what is least recently used until a bundle fits the limit and the file system."""
        have = _disk_bytes(self.path(digest))
        if self.limit is not None:
            if wanted > self.limit:
                raise DiskFullError(
                    f"the bundle has {wanted} bytes, the cache may hold {self.limit}", hint=f"raise {LIMIT_VARIABLE}"
                )
            if self.size() + wanted - have > self.limit:
                self.prune(max(0, self.limit - wanted), keep=digest)
        with suppress(FileNotFoundError):
            system = os.statvfs(self.root)
            lacking = wanted - have - system.f_bavail * system.f_frsize
            if lacking > 0:
                self.prune(max(0, self.size() - lacking), keep=digest)

    def _remove(self, digest: str) -> bool:
        """Removes an entry that nobody uses or fills; False for any other."""
        try:
            with FileLock(self._lock(f"{digest}.fill")), FileLock(self._lock(digest)):
                aside = self.root / "quarantine" / f"{digest}-removed-{secrets.token_hex(4)}"
                with system_errors(aside), suppress(FileNotFoundError):
                    aside.parent.mkdir(parents=True, exist_ok=True)
                    self.path(digest).rename(aside)
                    remove_tree(aside)
                self._stamp(digest).unlink(missing_ok=True)
        except LockTimeoutError:
            return False
        return True


def parse_size(text: str) -> int:
    """Parses a number of bytes such as 50G, 1.5TiB or 1000000.

    Raises:
        UsageError: it is none.
    """
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    factor = 1
    if number and number[-1] in "KMGT":
        factor = 1 << 10 * ("KMGT".index(number[-1]) + 1)
        number = number[:-1]
    try:
        value = float(number) * factor
    except ValueError:
        value = -1.0
    if not 0 <= value < 1 << 63:
        raise UsageError(f"{text!r} is no size", hint="write 200G, 1.5T or a number of bytes")
    return int(value)


def _read(path: Path) -> bytes | None:
    """Returns a manifest file; None where there is none that could be one."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_FILE + 1)
    except OSError:
        return None
    return data if len(data) <= MAX_MANIFEST_FILE else None


def _states(path: Path, sizes: dict[str, int]) -> dict[str, list[int]]:
    """Returns size and modification time in nanoseconds of each file; none of a file that is missing."""
    states = {}
    for name in sizes:
        with suppress(OSError):
            status = (path / name).lstat()
            states[name] = [status.st_size, status.st_mtime_ns]
    return states


def _read_stamp(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _disk_bytes(path: Path) -> int:
    """Returns the bytes on disk of all files below a folder, each once however many names it has."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                status = os.lstat(os.path.join(folder, name))  # noqa: PTH118  (many files)
                seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())
