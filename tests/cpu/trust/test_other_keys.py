"""Kinds of keys that the format does not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from paiton_artifacts.errors import UsageError
from paiton_artifacts.trust.keys import load_signing_key, load_trusted_keys

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

KEYS: dict[str, Callable[[], Key]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}


@pytest.mark.parametrize("kind", KEYS)
def test_other_kinds_of_keys_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    key = KEYS[kind]()
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UsageError, match="not an elliptic-curve key on P-256, P-384 or P-521"):
        load_signing_key(private)
    with pytest.raises(UsageError, match="not an elliptic-curve key on P-256, P-384 or P-521"):
        load_trusted_keys([public])
