"""The in-toto statement of a signature: which files it lists, with which digests.

Format: OpenSSF Model Signing specification 1.0, sections 5 and 6, with the `files` serialisation and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from paiton_artifacts.errors import SignatureError
from paiton_artifacts.limits import MAX_FREE_TEXT, MAX_JSON_VALUES
from paiton_artifacts.record import dataclass
from paiton_artifacts.rules import RejectedError, apply, choice, pattern, sequence, text
from paiton_artifacts.trust.bounded_json import anything, member, parse_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"

IGNORED = (".git", ".gitattributes", ".github", ".gitignore")
"""Paths that the specification leaves out of every signature, besides the signature itself."""

_SHA256 = pattern("[0-9a-f]{64}", 64, "a SHA-256 in lower-case hexadecimal")


@dataclass(frozen=True, slots=True)
class SignedFiles:
    """What a signature says.

    Attributes:
        name: of the model, as the signer's directory was called; nothing depends on it.
        digests: SHA-256 in lower-case hex by path relative to the bundle.
    """

    name: str
    digests: Mapping[str, str]


def encode_statement(signed: SignedFiles, signature_name: str) -> bytes:
    """Returns a statement as JSON; the same files give the same bytes.

    Args:
        signed: what it says.
        signature_name: path of the signature, which verifiers are told to leave out.
    """
    resources = [
        {"name": path, "algorithm": "sha256", "digest": digest} for path, digest in sorted(signed.digests.items())
    ]
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": signed.name, "digest": {"sha256": _root_digest(resources)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": sorted([*IGNORED, signature_name]),
            },
            "resources": resources,
        },
    }
    return json.dumps(statement, separators=(",", ":"), sort_keys=True).encode()


def decode_statement(payload: bytes, what: str) -> SignedFiles:
    """Returns what a statement says; call it for a payload whose signature has been verified.

    Raises:
        SignatureError: it is malformed, of another kind, or contradicts itself.
    """
    value = parse_json(payload, SignatureError, f"{what}: statement")
    return apply(_signed_files, value, SignatureError, f"{what}: statement")


def _signed_files(value: object) -> SignedFiles:
    member(value, "_type", choice(STATEMENT_TYPE))
    member(value, "predicateType", choice(PREDICATE_TYPE))
    (subject,) = member(value, "subject", sequence(anything, 1, low=1))
    predicate = member(value, "predicate", anything)
    serialization = member(predicate, "serialization", anything)
    # Another tool may also sign slices of files ("shards"); a manifest's digest is that of the whole file.
    member(serialization, "method", choice("files"))
    member(serialization, "hash_type", choice("sha256"))
    resources = member(predicate, "resources", sequence(_resource, MAX_JSON_VALUES, low=1))
    digests = {resource["name"]: resource["digest"] for resource in resources}
    if len(digests) != len(resources):
        raise RejectedError("lists a file twice").inside(".predicate.resources")
    root = member(member(subject, "digest", anything), "sha256", _SHA256)
    if root != _root_digest(resources):
        raise RejectedError(f"is {root}, which is not that of the files listed").inside(".subject[0].digest.sha256")
    return SignedFiles(member(subject, "name", text(MAX_FREE_TEXT)), digests)


def _resource(value: object) -> dict[str, str]:
    member(value, "algorithm", choice("sha256"))
    return {
        "name": member(value, "name", text(MAX_FREE_TEXT)),
        "digest": member(value, "digest", _SHA256),
    }


def _root_digest(resources: list[dict[str, str]] | tuple[dict[str, str], ...]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(resource["digest"]) for resource in resources)).hexdigest()
