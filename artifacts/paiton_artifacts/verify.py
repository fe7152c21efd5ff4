"""Verifies every byte of a bundle against the digests in its manifest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from paiton_artifacts.consistency import files_of
from paiton_artifacts.digest import sha256_of_ranges
from paiton_artifacts.errors import DigestMismatchError, FileSizeError, VerificationError
from paiton_artifacts.reader import Bundle
from paiton_artifacts.schema import Blob, FileEntry

Progress = Callable[[int, int], None]
"""Called with the bytes verified so far and the total."""

_HINT = "the bundle is damaged; build or fetch it again"


class FileCheck(NamedTuple):
    """The outcome for one file: None, or the first error found in it."""

    path: str
    error: VerificationError | None


def verify_files(bundle: Bundle, progress: Progress | None = None, *, strict: bool = True) -> list[FileCheck]:
    """Hashes every file that the manifest lists, and decodes and checks every plan.

    Args:
        bundle: as opened; the manifest itself was verified then.
        progress: called as bytes are verified.
        strict: raises the first error instead of listing it.

    Returns:
        One entry per file: blobs by rank, then the others in manifest order.

    Raises:
        DigestMismatchError: (strict) names the file, and for a blob the offset and size of the first damaged chunk.
        VerificationError: (strict) anything else that is wrong with a file.
        StoreError: a file cannot be read.
    """
    manifest = bundle.manifest
    entries: list[Blob | FileEntry] = [*manifest.blobs, *files_of(manifest)]
    plans = {plan.file.path: plan for plan in manifest.plans}
    counter = _Counter(progress, sum(entry.size for entry in entries))
    checks: list[FileCheck] = []
    for entry in entries:
        error: VerificationError | None = None
        try:
            if isinstance(entry, Blob):
                _verify_blob(bundle, entry, counter)
            elif entry.path in plans:
                bundle.load_plan(plans[entry.path])
            else:
                bundle.read_file(entry)
        except VerificationError as failure:
            if strict:
                raise
            error = failure
        counter.finish(entry.size)
        checks.append(FileCheck(entry.path, error))
    return checks


def verify_blobs(bundle: Bundle) -> None:
    """Hashes the weights of every rank.

    Raises:
        DigestMismatchError: names the blob, and offset and size of the first damaged chunk.
        VerificationError: anything else that is wrong with it.
    """
    counter = _Counter(None, 0)
    for blob in bundle.manifest.blobs:
        _verify_blob(bundle, blob, counter)


class _Counter:
    """Adds up verified bytes. Within a file by chunk; a file that fails early still counts whole in the end."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._finished = 0
        self._file = 0

    def add(self, count: int) -> None:
        self._file += count
        self._report()

    def finish(self, size: int) -> None:
        self._finished += size
        self._file = 0
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._finished + self._file, self._total)


def _verify_blob(bundle: Bundle, blob: Blob, counter: _Counter) -> None:
    ranges = [(chunk.offset, chunk.size) for chunk in blob.chunks]
    path = bundle.path / blob.path
    with (
        bundle.open_blob(blob.rank) as descriptor,
        closing(sha256_of_ranges(descriptor, ranges, counter.add)) as digests,
    ):
        for chunk, found in zip(blob.chunks, digests, strict=True):
            if found is None:
                raise FileSizeError(f"{path}: ends inside the chunk at offset {chunk.offset}", hint=_HINT)
            if found != chunk.sha256:
                raise DigestMismatchError(
                    f"{path}: SHA-256 of the {chunk.size} bytes at offset {chunk.offset} is {found},"
                    f" the manifest declares {chunk.sha256}",
                    hint=_HINT,
                )
