"""Writes a bundle: into a temporary directory beside the output, made durable, then renamed in one step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from paiton_artifacts import container
from paiton_artifacts.digest import GrowingDigests, Range, cut_chunks
from paiton_artifacts.errors import (
    DiskFullError,
    FileSizeError,
    ManifestError,
    OutputExistsError,
    StoreError,
    UsageError,
)
from paiton_artifacts.layout import EXTENT_ALIGNMENT, MANIFEST_NAME
from paiton_artifacts.rules import apply, relative_path
from paiton_artifacts.schema import Blob, Chunk, FileEntry, Manifest, Tensor
from paiton_artifacts.temporary import LOCK_NAME, LockedDirectory, remove_stale, remove_tree
from paiton_artifacts.validate import parse_manifest
from paiton_artifacts.wire import to_wire

_BUG = "this is a bug in the build"

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when a file system, a quota or a file size limit is exhausted."""


class BundleWriter:
    """Writes one bundle; a context manager that leaves either a complete bundle at the output, or nothing.

    ::

        with BundleWriter(path) as writer:
            entry = writer.add_file("tokenizer/tokenizer.json", data)
            with writer.create_blob(0) as file:
                os.pwrite(file.fileno(), ...)
            blob = writer.finish_blob(0, size, tensors)
            writer.write_manifest(manifest)
            writer.commit()

    Leaving the context without `commit` removes everything. A process that is killed leaves a temporary directory,
    which the next writer of the same output removes; that of a living process is never touched.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        """Prepares to write to `path`; creates nothing yet.

        Args:
            path: the output. Its parent is created if need be.
            force: replaces a bundle that is there.

        Raises:
            OutputExistsError: the output exists, and `force` is off or it is not a bundle.
        """
        self.path = path.absolute()
        self._force = force
        self._temporary: LockedDirectory | None = None
        self._made_parents: list[Path] = []  # innermost first
        self._pool = ThreadPoolExecutor(1, "paiton-sync")
        self._syncs: dict[int, Future[None]] = {}  # by rank
        self._check_output()

    @property
    def directory(self) -> Path:
        """The temporary directory."""
        if self._temporary is None:
            raise UsageError("a BundleWriter writes only inside its with block", hint="enter it, and commit last")
        return self._temporary.path

    def __enter__(self) -> Self:
        with _full_disk(self.path):
            self._made_parents = [parent for parent in self.path.parents if not parent.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(self.path)
            self._temporary = LockedDirectory(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._temporary is not None:
            with _full_disk(self.path):
                self._temporary.remove()
            self._temporary = None
            for parent in self._made_parents:
                if any(parent.iterdir()):  # somebody else has moved in
                    break
                parent.rmdir()
        if isinstance(error, OSError) and error.errno in FULL_ERRNOS:
            raise _disk_full(self.path, error) from error

    def add_file(self, path: str, data: bytes) -> FileEntry:
        """Writes a file durably; returns its entry for the manifest.

        Args:
            path: relative to the bundle, plain names joined by "/".
            data: its contents.

        Raises:
            ManifestError: the path is not one that a reader accepts.
            UsageError: the path was used before.
            DiskFullError: there is no space.
        """
        with _full_disk(self.path), self._create(path) as file:
            _write_all(file, data)
            os.fsync(file.fileno())
        return FileEntry(path, len(data), hashlib.sha256(data).hexdigest())

    def create_blob(self, rank: int) -> BinaryIO:
        """Creates the blob of a rank; returns it open, unbuffered, for os.pwrite at any offset.

        Bytes that are never written are zeros. Write nothing after `finish_blob`.
        """
        with _full_disk(self.path):
            return self._create(_blob_path(rank))

    def blob_path(self, rank: int) -> Path:
        """Returns where the blob of a rank is written, in a folder that exists: for blobs that come from elsewhere."""
        path = self.directory / _blob_path(rank)
        with _full_disk(self.path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish_blob(
        self, rank: int, size: int, tensors: Sequence[Tensor], digests: GrowingDigests | None = None
    ) -> Blob:
        """Pads a blob with zeros and digests it in chunks; it is made durable beside what follows, until `commit`.

        Args:
            rank: of the blob.
            size: its final size in bytes, a multiple of EXTENT_ALIGNMENT.
            tensors: by offset; chunks end where a tensor starts, if possible.
            digests: of these chunks, begun while the blob was written: see `blob_chunks`.

        Raises:
            ManifestError: the size is misaligned.
            FileSizeError: more than `size` bytes were written.
            DiskFullError: there is no space.
        """
        path = _blob_path(rank)
        if size % EXTENT_ALIGNMENT:
            raise ManifestError(f"blob {path!r} of {size} bytes is not padded to {EXTENT_ALIGNMENT}", hint=_BUG)
        with _full_disk(self.path), open(self.directory / path, "rb", buffering=0) as file:
            written = os.fstat(file.fileno()).st_size
            if written > size:
                raise FileSizeError(f"blob {path!r}: {written} bytes written of {size}", hint=_BUG)
            if written < size:  # a blob that is shared with a cache is whole, and read-only
                os.truncate(self.directory / path, size)
            ranges = blob_chunks(size, tensors)
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                digests = GrowingDigests(file.fileno(), ranges, pool) if digests is None else digests
                found = digests.finish()
            if None in found:
                raise FileSizeError(f"blob {path!r} became shorter while it was digested", hint="build again")
            chunks = [Chunk(*where, digest or "") for where, digest in zip(ranges, found, strict=True)]
        self._syncs[rank] = self._pool.submit(_sync, self.directory / path)
        return Blob(rank, path, size, tuple(chunks))

    def write_manifest(self, manifest: Manifest) -> FileEntry:
        """Writes the manifest, in place of an earlier one, after proving that a reader accepts it and reads the same.

        Returns:
            Size and digest of its file, for what refers to it.

        Raises:
            ManifestError: the manifest contradicts itself or exceeds a limit.
            BoundsError: it has an extent outside of its region.
            DiskFullError: there is no space.
        """
        data = container.pack(container.MANIFEST, to_wire(manifest))
        if parse_manifest(container.unpack(container.MANIFEST, data, MANIFEST_NAME)) != manifest:
            raise ManifestError("the manifest does not survive a round trip", hint=_BUG)
        (self.directory / MANIFEST_NAME).unlink(missing_ok=True)
        with _full_disk(self.path), self._create(MANIFEST_NAME) as file:
            _write_all(file, data)
            os.fsync(file.fileno())
        return FileEntry(MANIFEST_NAME, len(data), hashlib.sha256(data).hexdigest())

    def commit(self) -> None:
        """Moves the bundle to the output, durably, in one step.

        With `force` an existing bundle changes places with the new one in that step and is then removed.

        Raises:
            ManifestError: no manifest was written.
            OutputExistsError: something appeared at the output meanwhile.
            DiskFullError: there is no space.
        """
        directory = self.directory
        if not (directory / MANIFEST_NAME).exists():
            raise ManifestError("commit without a manifest", hint="call write_manifest first")
        with _full_disk(self.path):
            for sync in self._syncs.values():
                sync.result()
            for folder, _, _ in os.walk(directory):
                _sync(Path(folder))
            self._check_output()
            replaced = self._rename(directory)
            # The lock file moves with the directory: while it lay in the temporary place it had to be there.
            (self.path / LOCK_NAME).unlink()
            _sync(self.path)
            _sync(self.path.parent)
            if self._temporary is not None:
                self._temporary.renamed()
                self._temporary = None
            if replaced is not None:
                remove_tree(replaced)

    def _rename(self, directory: Path) -> Path | None:
        """Puts the directory at the output; returns where the bundle is that it replaced, if any."""
        if not os.path.lexists(self.path):
            try:
                directory.rename(self.path)
            except (FileExistsError, NotADirectoryError) as error:
                raise _exists(self.path) from error
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:
                    raise _exists(self.path) from error
                raise
            return None
        if _exchange(directory, self.path):
            return directory
        # A file system without RENAME_EXCHANGE: for an instant there is nothing at the output.
        aside = directory.with_name(directory.name + "-old")
        self.path.rename(aside)
        directory.rename(self.path)
        return aside

    def _create(self, path: str) -> BinaryIO:
        """Creates a file, and the folders that lead to it, in the temporary directory."""
        full = self.directory / apply(relative_path, path, ManifestError, "path of a file to write")
        full.parent.mkdir(parents=True, exist_ok=True)
        try:
            return open(full, "x+b", buffering=0)
        except FileExistsError as error:
            raise UsageError(f"the file {path!r} is written twice", hint=_BUG) from error

    def _check_output(self) -> None:
        """Refuses an output that is taken; with `force`, one that is anything but a bundle or an empty directory."""
        if not os.path.lexists(self.path):
            return
        if not self._force:
            raise _exists(self.path)
        is_directory = self.path.is_dir() and not self.path.is_symlink()
        if not is_directory or (not (self.path / MANIFEST_NAME).is_file() and any(self.path.iterdir())):
            raise OutputExistsError(
                f"output {self.path} exists and is not a bundle",
                hint="--force replaces only a bundle; choose another path",
            )


def blob_chunks(size: int, tensors: Sequence[Tensor]) -> list[Range]:
    """Returns the chunks that a blob is digested in."""
    return cut_chunks(size, [tensor.offset for tensor in tensors])


def _blob_path(rank: int) -> str:
    return f"blobs/rank-{rank}.bin"


def _exists(path: Path) -> OutputExistsError:
    return OutputExistsError(f"output {path} exists", hint="choose another path, or replace it with --force")


def _disk_full(path: Path, error: OSError) -> DiskFullError:
    return DiskFullError(
        f"no space left while writing {path}: {error.strerror}",
        hint="free space, or write to another file system; nothing was left behind",
    )


@contextlib.contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    """Turns the system's errors into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_ERRNOS:
            raise _disk_full(path, error) from error
        raise StoreError(
            f"writing {error.filename or path} failed: {error.strerror}", hint="check the path and its permissions"
        ) from error


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two paths in one step with renameat2(2); False where the kernel or the file system cannot."""
    at_fdcwd, rename_exchange = -100, 2
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):  # glibc before 2.28
        return False
    done: int = library.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange)
    if done == 0:
        return True
    if (number := ctypes.get_errno()) in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number), str(other))
