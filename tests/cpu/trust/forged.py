"""Signatures that lie: built from plain JSON, and signed with a real key where a forger would have one."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

Edit = Callable[[dict[str, Any]], object]


def opened(signature: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a signature's file and the statement in it, to be edited."""
    bundle = json.loads(signature)
    return bundle, json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))


def resealed(signature: bytes, private: Path, payload: bytes, kind: str = "application/vnd.in-toto+json") -> bytes:
    """Returns a signature's file around another payload, properly signed."""
    bundle, _ = opened(signature)
    key = load_pem_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    bundle["dsseEnvelope"] = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"sig": base64.b64encode(key.sign(message, ec.ECDSA(hashes.SHA256()))).decode()}],
    }
    return json.dumps(bundle).encode()


def restated(signature: bytes, private: Path, edit: Edit, *, root: bool = True) -> bytes:
    """Returns a signature whose statement was edited and then properly signed.

    Args:
        signature: to begin with.
        private: key to sign with.
        edit: changes the statement in place.
        root: puts the digest over all files right again.
    """
    _, statement = opened(signature)
    statement = copy.deepcopy(statement)
    edit(statement)
    if root:
        digests = (bytes.fromhex(resource["digest"]) for resource in statement["predicate"]["resources"])
        statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(b"".join(digests)).hexdigest()
    return resealed(signature, private, json.dumps(statement).encode())


def rebundled(signature: bytes, edit: Edit) -> bytes:
    """Returns a signature's file edited outside of what is signed."""
    bundle, _ = opened(signature)
    edit(bundle)
    return json.dumps(bundle).encode()
