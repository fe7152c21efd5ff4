"""A bundle's directory while it is filled: resumes after a crash, and becomes a bundle in one step at the very end.

Blobs are written in place, chunk by chunk, in any order. What makes the directory a bundle is its manifest, which is
renamed to its name once everything else is verified and durable. A journal remembers which objects were complete; it
is a hint only, for after a crash every one of them is hashed again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from paiton_artifacts.digest import sha256_of_range
from paiton_artifacts.errors import DiskFullError, PaitonError, StoreError
from paiton_artifacts.layout import MANIFEST_NAME
from paiton_artifacts.schema import Manifest
from paiton_artifacts.store.items import Item, file_sizes, items_of
from paiton_artifacts.writer import FULL_ERRNOS

PARTIAL_MANIFEST = ".manifest.partial"
JOURNAL = ".journal"
_DONE = b"\1"


class Assembly:
    """A directory that becomes the bundle of a manifest. One process at a time: the caller holds a lock.

    Args:
        directory: made if need be. What an earlier process left there is used if it verifies.
        data: bytes of the manifest file.
        manifest: what they say.

    Raises:
        DiskFullError: there is no space for the bundle.
        StoreError: the directory cannot be written.
    """

    def __init__(self, directory: Path, data: bytes, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self.items = items_of(manifest)
        self._data = data
        self._numbers = {item: number for number, item in enumerate(self.items)}
        self._files: dict[str, int] = {}
        self._journal = -1
        self._complete: set[Item] = set()
        with system_errors(directory):
            self._open()
            self._marks = os.pread(self._journal, len(self.items), 0).ljust(len(self.items), b"\0")

    def close(self) -> None:
        """Closes every file; what is complete is found again by the next assembly in this directory."""
        for descriptor in (*self._files.values(), self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._files, self._journal = {}, -1

    def holds(self, item: Item) -> bool:
        """Says whether all bytes of an item are there; hashes those of an earlier process."""
        if item in self._complete:
            return True
        number = self._numbers[item]
        if self._marks[number : number + 1] != _DONE:
            return False
        return all(
            sha256_of_range(self._files[place.path], place.offset, item.size) == item.digest for place in item.places
        )

    def write(self, item: Item, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes of an item, which start `offset` bytes into it, to all its places.

        Raises:
            DiskFullError: there is no space.
            StoreError: writing failed.
        """
        if offset + len(data) > item.size:
            raise PaitonError(f"{item.digest}: {offset + len(data)} bytes for an object of {item.size}")
        with system_errors(self.directory):
            for place in item.places:
                view, at = memoryview(data), place.offset + offset
                while view:
                    count = os.pwrite(self._files[place.path], view, at)
                    view, at = view[count:], at + count

    def done(self, item: Item) -> None:
        """Notes that all bytes of an item are there and have its digest."""
        self._complete.add(item)
        with system_errors(self.directory):
            os.pwrite(self._journal, _DONE, self._numbers[item])

    def descriptor(self, path: str) -> int:
        """Returns the descriptor of one of the bundle's files, open for reading and writing."""
        return self._files[path]

    def add(self, name: str, data: bytes) -> None:
        """Writes a file that the manifest does not list, such as a signature, in one step."""
        with system_errors(self.directory):
            write_durably(self.directory / name, data)

    def finish(self, before: Callable[[], object] | None = None) -> None:
        """Makes everything durable, then gives the manifest its name.

        Args:
            before: called when all files are complete and closed, before the directory becomes a bundle.

        Raises:
            DiskFullError: there is no space.
            StoreError: writing failed.
        """
        with system_errors(self.directory):
            for path, descriptor in self._files.items():
                os.fsync(descriptor)
                if os.fstat(descriptor).st_nlink == 1:
                    os.fchmod(descriptor, 0o444)  # so that nobody writes there by mistake
                sync_directory((self.directory / path).parent)
            self.close()
            if before is not None:
                before()
            _sync_file(self.directory / PARTIAL_MANIFEST)
            (self.directory / PARTIAL_MANIFEST).rename(self.directory / MANIFEST_NAME)
            (self.directory / JOURNAL).unlink()
            sync_directory(self.directory)

    def replace(self, path: str, source: Path) -> bool:
        """Makes one of the bundle's files a hard link to a file with the same contents; False where that is impossible.

        The caller verifies them, and never writes to the file.
        """
        target = self.directory / path
        aside = target.with_name(f".{target.name}.link")  # no manifest lists such a name
        try:
            aside.unlink(missing_ok=True)
            os.link(source, aside)
            aside.rename(target)
        except OSError:
            return False
        os.close(self._files[path])
        self._files[path] = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return True

    def reset(self, path: str) -> None:
        """Makes one of the bundle's files an empty one of the right size, nobody else's."""
        target = self.directory / path
        with system_errors(self.directory):
            if (descriptor := self._files.pop(path, -1)) >= 0:
                os.close(descriptor)
            target.unlink(missing_ok=True)
            self._files[path] = _open_sized(target, file_sizes(self.manifest)[path])

    def _open(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / MANIFEST_NAME).unlink(missing_ok=True)
        for stale in self.directory.glob(".*.tmp"):  # of a process that was killed in `add`
            stale.unlink()
        (self.directory / PARTIAL_MANIFEST).write_bytes(self._data)
        sizes = file_sizes(self.manifest)
        present = 0
        for path, size in sizes.items():
            target = self.directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if target.lstat().st_nlink > 1:
                    target.unlink()  # a link into another bundle: never written to
                else:
                    target.chmod(0o644, follow_symlinks=True)
            self._files[path] = _open_sized(target, size)
            present += os.fstat(self._files[path]).st_blocks * 512
        system = os.statvfs(self.directory)
        free, wanted = system.f_bavail * system.f_frsize, sum(sizes.values()) - present
        if wanted > free:
            raise DiskFullError(
                f"{self.directory}: the bundle needs {wanted} bytes more, and {free} are free",
                hint="free space (paiton-run cache prune), or set PAITON_CACHE to a larger file system",
            )
        self._journal = os.open(self.directory / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def _open_sized(path: Path, size: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file so that after any crash it has either its old contents or the new ones.

    Raises:
        OSError: the system refuses.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable.

    Raises:
        OSError: the system refuses.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turns the system's errors into ours; `path` is what is written if the error does not say.

    Raises:
        DiskFullError: there is no space.
        StoreError: anything else.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL_ERRNOS:
            raise DiskFullError(
                f"no space left while writing {path}: {error.strerror}",
                hint="free space (paiton-run cache prune) and run the same command again: it resumes",
            ) from error
        raise StoreError(
            f"writing {error.filename or path} failed: {error.strerror}", hint="check the path and its permissions"
        ) from error
