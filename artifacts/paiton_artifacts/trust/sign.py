"""Signs a bundle: checks every byte against the manifest, then lists every file in a signature beside it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from paiton_artifacts.consistency import files_of
from paiton_artifacts.errors import DigestMismatchError, FileSizeError, SignatureError, StoreError
from paiton_artifacts.files import read_bounded
from paiton_artifacts.layout import COMPANIONS, MANIFEST_NAME, SIGNATURE_NAME
from paiton_artifacts.limits import MAX_COMPANION_BYTES
from paiton_artifacts.reader import Bundle, open_bundle
from paiton_artifacts.schema import Blob
from paiton_artifacts.trust.companions import check_companion, unlisted_files
from paiton_artifacts.trust.envelope import seal
from paiton_artifacts.trust.keys import SigningKey
from paiton_artifacts.trust.statement import SignedFiles, encode_statement

_BUFFER_BYTES = 1 << 20
_HINT = "the bundle is damaged; build or fetch it again"


def sign_bundle(path: Path, key: SigningKey, progress: Callable[[int], object] | None = None) -> SignedFiles:
    """Writes the signature of a bundle, in place of an earlier one, in one step.

    Args:
        path: the bundle's directory.
        key: to sign with.
        progress: called with the bytes of weights that were read since the last call; from several threads.

    Returns:
        What was signed.

    Raises:
        VerificationError: a file is not what the manifest declares, or there is one that belongs to no bundle.
        StoreError: the signature cannot be written.
    """
    manifests: list[bytes] = []
    bundle = open_bundle(path, manifests.append)
    if strays := unlisted_files(bundle):
        raise SignatureError(
            f"{path} holds {strays[0]!r}, which is no part of the bundle",
            hint="remove it: a signature covers every file of the directory",
        )
    digests = {MANIFEST_NAME: hashlib.sha256(manifests[0]).hexdigest()}
    digests |= dict(_companions(bundle, digests[MANIFEST_NAME]))
    for entry in files_of(bundle.manifest):
        bundle.read_file(entry)
        digests[entry.path] = entry.sha256
    digests |= _blob_digests(bundle, progress)
    signed = SignedFiles(path.resolve().name, digests)
    write_atomically(path / SIGNATURE_NAME, seal(encode_statement(signed, SIGNATURE_NAME), key))
    return signed


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file durably, in one step.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"writing {path} failed: {error.strerror}", hint="check the path and the space") from error


def _companions(bundle: Bundle, manifest_sha256: str) -> Iterator[tuple[str, str]]:
    """Yields name and digest of the files beside the manifest that a signature covers."""
    for name in COMPANIONS:
        if name == SIGNATURE_NAME or not os.path.lexists(bundle.path / name):
            continue
        data = read_bounded(bundle.path, name, MAX_COMPANION_BYTES)
        check_companion(name, data, manifest_sha256, str(bundle.path / name))
        yield name, hashlib.sha256(data).hexdigest()


def _blob_digests(bundle: Bundle, progress: Callable[[int], object] | None) -> dict[str, str]:
    """Returns the digest of each blob as a whole, of bytes that were compared with its chunks' digests."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        blobs = bundle.manifest.blobs
        found = pool.map(lambda blob: _blob_digest(bundle, blob, progress), blobs)
        return {blob.path: digest for blob, digest in zip(blobs, found, strict=True)}


def _blob_digest(bundle: Bundle, blob: Blob, progress: Callable[[int], object] | None) -> str:
    path = bundle.path / blob.path
    whole = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with bundle.open_blob(blob.rank) as descriptor:
        for chunk in blob.chunks:
            digest = hashlib.sha256()
            offset, end = chunk.offset, chunk.offset + chunk.size
            while offset < end:
                count = os.preadv(descriptor, [buffer[: end - offset]], offset)
                if not count:
                    raise FileSizeError(f"{path}: ends inside the chunk at offset {chunk.offset}", hint=_HINT)
                digest.update(buffer[:count])
                whole.update(buffer[:count])
                offset += count
            if digest.hexdigest() != chunk.sha256:
                raise DigestMismatchError(
                    f"{path}: SHA-256 of the {chunk.size} bytes at offset {chunk.offset} is {digest.hexdigest()},"
                    f" the manifest declares {chunk.sha256}",
                    hint=_HINT,
                )
            if progress is not None:
                progress(chunk.size)
    return whole.hexdigest()
