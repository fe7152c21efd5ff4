"""Checks of the files beside a manifest, and of what a signature lists besides it. A boot needs none of this."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from paiton_artifacts.consistency import files_of
from paiton_artifacts.errors import DigestMismatchError, SignatureError, VerificationError
from paiton_artifacts.files import read_bounded
from paiton_artifacts.layout import COMPANIONS, MANIFEST_NAME, PROVENANCE_NAME, SBOM_NAME
from paiton_artifacts.limits import MAX_COMPANION_BYTES
from paiton_artifacts.reader import Bundle
from paiton_artifacts.rules import apply, choice, pattern, sequence
from paiton_artifacts.trust.bounded_json import anything, member, parse_json
from paiton_artifacts.trust.statement import IGNORED, STATEMENT_TYPE, SignedFiles
from paiton_artifacts.verify import FileCheck

_SHA256 = pattern("[0-9a-f]{64}", 64, "a SHA-256 in lower-case hexadecimal")
_HINT = "the file is damaged or belongs to another bundle; build or fetch the bundle again"


def check_companions(bundle: Bundle, manifest: bytes, signed: SignedFiles | None) -> list[FileCheck]:
    """Checks the SBOM and the provenance, where they are there, and everything else that a signature lists.

    Args:
        bundle: as opened.
        manifest: the bytes of its manifest's file.
        signed: what a verified signature says, None where there is none.

    Returns:
        One entry per file beside the manifest, and one per further file that the signature contradicts.
    """
    checks = []
    listed = {} if signed is None else dict(signed.digests)
    for name in (SBOM_NAME, PROVENANCE_NAME):
        declared = listed.pop(name, None)
        if declared is None and not os.path.lexists(bundle.path / name):
            continue
        try:
            data = read_bounded(bundle.path, name, MAX_COMPANION_BYTES)
            check_companion(name, data, hashlib.sha256(manifest).hexdigest(), str(bundle.path / name))
            found = hashlib.sha256(data).hexdigest()
            if declared is None and signed is not None:
                raise SignatureError(
                    f"{bundle.path / name}: is not covered by the signature", hint="sign the bundle again"
                )
            if declared not in (None, found):
                raise DigestMismatchError(
                    f"{bundle.path / name}: SHA-256 is {found}, the signature declares {declared}", hint=_HINT
                )
        except VerificationError as error:
            checks.append(FileCheck(name, error))
        else:
            checks.append(FileCheck(name, None))
    return checks + _contradictions(bundle, listed)


def unlisted_files(bundle: Bundle) -> list[str]:
    """Returns the files in a bundle's directory that neither the manifest nor the format knows, sorted.

    Those that the signature's format leaves out (`.git` and the like) are not among them.
    """
    known = {MANIFEST_NAME, *COMPANIONS, *(entry.path for entry in files_of(bundle.manifest))}
    known |= {blob.path for blob in bundle.manifest.blobs}
    return sorted(found for found in _walk(bundle.path) if found not in known)


def check_companion(name: str, data: bytes, manifest_sha256: str, what: str) -> None:
    """Checks that an SBOM or a provenance statement is one, and that provenance is that of this manifest.

    Args:
        name: which, one of `layout.COMPANIONS`.
        data: its contents.
        manifest_sha256: digest of the manifest's file, in lower-case hex.
        what: names the file in messages.

    Raises:
        VerificationError: it is malformed.
        DigestMismatchError: the provenance is that of another manifest.
    """
    value = parse_json(data, VerificationError, what)
    if name == SBOM_NAME:
        apply(lambda v: member(v, "bomFormat", choice("CycloneDX")), value, VerificationError, what)
    elif name == PROVENANCE_NAME:
        declared = apply(_provenance_subject, value, VerificationError, what)
        if declared != manifest_sha256:
            raise DigestMismatchError(
                f"{what}: is about a manifest of SHA-256 {declared}, not {manifest_sha256}", hint=_HINT
            )


def _provenance_subject(value: object) -> str:
    member(value, "_type", choice(STATEMENT_TYPE))
    (subject,) = member(value, "subject", sequence(anything, 1, low=1))
    member(subject, "name", choice(MANIFEST_NAME))
    return member(member(subject, "digest", anything), "sha256", _SHA256)


def _contradictions(bundle: Bundle, listed: dict[str, str]) -> list[FileCheck]:
    """Returns the files that a signature lists otherwise than the manifest.

    Blobs are compared by path alone: the manifest has digests of their chunks, and a signature those of the whole.
    """
    declared: dict[str, str | None] = {entry.path: entry.sha256 for entry in files_of(bundle.manifest)}
    declared |= {blob.path: None for blob in bundle.manifest.blobs}
    checks = []
    for path, digest in listed.items():
        if path in (MANIFEST_NAME, *COMPANIONS):
            continue
        if path not in declared:
            error = SignatureError(f"the signature lists {path!r}, which the bundle does not have", hint=_HINT)
            checks.append(FileCheck(path, error))
        elif declared[path] not in (None, digest):
            error = SignatureError(
                f"{bundle.path / path}: the signature declares SHA-256 {digest}, the manifest {declared[path]}",
                hint=_HINT,
            )
            checks.append(FileCheck(path, error))
    return checks


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        here = Path(folder).relative_to(root)
        ignored = IGNORED if here == Path() else ()
        folders[:] = [name for name in folders if name not in ignored]
        # A link to a directory is among the folders, and not walked into.
        links = [name for name in folders if Path(folder, name).is_symlink()]
        yield from (str(here / name) for name in [*files, *links] if name not in ignored)
