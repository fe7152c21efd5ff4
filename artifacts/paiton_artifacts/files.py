"""Opening the files of a bundle without ever leaving it.

Paths come from an untrusted manifest. `rules.relative_path` has refused "..", absolute paths and the like; what is
left is the file system itself: a symbolic link anywhere below the bundle could lead outside, a FIFO could block, a
device could do anything. So every component is opened without following links, and only regular files are read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paiton_artifacts.errors import FileSizeError, StoreError, VerificationError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HINT = "the bundle is incomplete or was altered; build or fetch it again"


@contextmanager
def open_inside(root: Path, path: str) -> Iterator[int]:
    """Opens a regular file of a bundle for reading; yields its file descriptor and closes it.

    Args:
        root: the bundle's directory; may itself be reached through links.
        path: relative, as `rules.relative_path` accepts it.

    Raises:
        FileSizeError: there is no such file.
        VerificationError: it is a symbolic link, lies behind one, or is not a regular file.
        StoreError: the system refuses to open it.
    """
    descriptor = _walk(root, path)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise VerificationError(f"{root / path}: not a regular file", hint=_HINT)
        yield descriptor
    finally:
        os.close(descriptor)


def _walk(root: Path, path: str) -> int:
    *directories, name = path.split("/")
    here: int | None = None
    try:
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for directory in directories:
            inner = os.open(directory, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = inner
        return os.open(name, _FILE, dir_fd=here)
    except FileNotFoundError as error:
        raise FileSizeError(f"{root / path}: the file is missing", hint=_HINT) from error
    except OSError as error:
        # ELOOP: the last component is a link. ENOTDIR: an earlier one is (or is a file).
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise VerificationError(f"{root / path}: a symbolic link, or not a regular file", hint=_HINT) from error
        raise StoreError(f"{root / path}: {error.strerror}", hint="check the permissions of the bundle") from error
    finally:
        if here is not None:
            os.close(here)


def check_size(root: Path, path: str, size: int) -> None:
    """Checks that a file of a bundle exists and has the declared size in bytes.

    Raises:
        FileSizeError: it is missing, shorter or longer.
        VerificationError: it is not a regular file inside the bundle.
    """
    with open_inside(root, path) as descriptor:
        found = os.fstat(descriptor).st_size
    if found != size:
        raise FileSizeError(f"{root / path}: {found} bytes, the manifest declares {size}", hint=_HINT)


def read_bounded(root: Path, path: str, limit: int) -> bytes:
    """Returns a file of a bundle whole; one of more than `limit` bytes is refused before it is read.

    Raises:
        FileSizeError: it is missing, or longer than `limit`.
        VerificationError: it is not a regular file inside the bundle.
    """
    with open_inside(root, path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise FileSizeError(f"{root / path}: {size} bytes, more than {limit}", hint=_HINT)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
