"""Puts a bundle in a second place without copying its bytes, where the file system can."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

from paiton_artifacts.consistency import files_of
from paiton_artifacts.layout import COMPANIONS, MANIFEST_NAME, SIGNATURE_NAME
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.writer import BundleWriter

_FICLONE = 0x40049409
"""ioctl_ficlone(2): shares a file's blocks copy-on-write (btrfs, xfs)."""

_CANNOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES})


def files_of_bundle(path: Path) -> list[str]:
    """Returns the files that a build writes, relative to the bundle: manifest last, no signature, nothing unlisted.

    Raises:
        PaitonError: there is no bundle, or a damaged one.
    """
    manifest = open_bundle(path).manifest
    names = [blob.path for blob in manifest.blobs] + [entry.path for entry in files_of(manifest)]
    names += [name for name in COMPANIONS if name != SIGNATURE_NAME and (path / name).is_file()]
    return [*names, MANIFEST_NAME]


def place(source: Path, writer: BundleWriter) -> None:
    """Writes the bundle at `source` to another output: by sharing blocks, else by hard links, else by copying.

    Raises:
        PaitonError: as `BundleWriter.commit`, and as `files_of_bundle`.
        OSError: the file system refuses; `writer` turns what it knows into errors of ours.
    """
    with writer:
        for name in files_of_bundle(source):
            target = writer.directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            share(source / name, target)
        writer.commit()


def share(source: Path, target: Path) -> None:
    """Makes a file that has another's bytes: blocks shared with it, else the same file, else a copy.

    Raises:
        OSError: the file system refuses all three.
    """
    if _clone(source, target):
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def _clone(source: Path, target: Path) -> bool:
    with source.open("rb") as read, target.open("xb") as written:
        try:
            fcntl.ioctl(written, _FICLONE, read.fileno())
        except OSError:
            cloned = False
        else:
            cloned = True
    if not cloned:
        target.unlink()
    return cloned
