"""Keys of signatures: ECDSA on the curves of the OpenSSF Model Signing algorithm registry (P-256, P-384, P-521).

`cryptography` is imported when a key is loaded, so that a boot without signatures does without it (25 ms).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from paiton_artifacts.errors import UsageError
from paiton_artifacts.limits import MAX_TRUSTED_KEYS
from paiton_artifacts.record import dataclass

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

TRUSTED_KEYS_VARIABLE = "PAITON_TRUSTED_KEYS"
"""Environment variable with files of trusted keys, separated by ":"."""

PASSWORD_VARIABLE = "PAITON_SIGNING_PASSWORD"  # noqa: S105  (the variable's name, not a password)
"""Environment variable with the password of an encrypted private key."""

_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
_MAX_KEY_FILE = 1 << 20
_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\s]+-----END PUBLIC KEY-----")
_NEW_KEY = (
    "openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out public.pem"
)


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key that may vouch for bundles.

    Attributes:
        key: the key itself.
        fingerprint: SHA-256 of its PEM form, in lower-case hex: the hint by which a signature names its key.
        origin: the file that it was read from, for messages.
    """

    key: ec.EllipticCurvePublicKey
    fingerprint: str
    origin: str

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Returns whether this key made the signature (DER) of a message."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  (25 ms that most boots do not need)

        try:
            self.key.verify(signature, message, _scheme(self.key.curve.name))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key.

    Attributes:
        key: the key itself.
        fingerprint: of its public key.
    """

    key: ec.EllipticCurvePrivateKey
    fingerprint: str

    def sign(self, message: bytes) -> bytes:
        """Returns the signature (DER) of a message; the same one each time (RFC 6979)."""
        return self.key.sign(message, _scheme(self.key.curve.name, deterministic=True))


def load_trusted_keys(paths: Iterable[Path]) -> tuple[TrustedKey, ...]:
    """Returns the public keys (PEM) of files that hold one or more each.

    Raises:
        UsageError: a file is unreadable, holds no public key, or one of another kind than signatures are made with.
    """
    found: dict[str, TrustedKey] = {}
    for path in paths:
        blocks = _PUBLIC.findall(_read(path, "trusted key"))
        if not blocks:
            raise UsageError(
                f"trusted key {path} holds no PEM public key", hint=f"openssl ec -in KEY -pubout -out {path.name}"
            )
        for block in blocks:
            key = _public_key(block + b"\n", path)
            found.setdefault(key.fingerprint, key)
    if len(found) > MAX_TRUSTED_KEYS:
        raise UsageError(f"{len(found)} trusted keys are more than {MAX_TRUSTED_KEYS}", hint="name fewer")
    return tuple(found.values())


def trusted_key_paths() -> tuple[Path, ...]:
    """Returns the files that the environment names."""
    return tuple(Path(word) for word in os.environ.get(TRUSTED_KEYS_VARIABLE, "").split(":") if word)


def load_signing_key(path: Path) -> SigningKey:
    """Returns the private key (PEM, encrypted or not) in a file.

    Raises:
        UsageError: the file is unreadable, holds no private key of a kind that signs, or needs another password.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  (25 ms that most commands do not need)
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    data = _read(path, "key")
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is not None and b"ENCRYPTED" not in data:
        password = None  # one environment for several keys
    try:
        key = load_pem_private_key(data, None if password is None else password.encode())
    except TypeError:
        raise UsageError(f"key {path} is encrypted", hint=f"put its password into {PASSWORD_VARIABLE}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(
            f"key {path} is no PEM private key, or has another password", hint=f"make one: {_NEW_KEY}"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise _wrong_kind(path)
    return SigningKey(key, _fingerprint(key.public_key()))


def _public_key(block: bytes, path: Path) -> TrustedKey:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  (25 ms that most boots do not need)
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    try:
        key = load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"trusted key {path} is damaged", hint="export the public key again") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise _wrong_kind(path)
    return TrustedKey(key, _fingerprint(key), str(path))


def _fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415  (as above)

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _scheme(curve: str, *, deterministic: bool = False) -> ec.ECDSA:
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415  (as above)
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    return ec.ECDSA(getattr(hashes, _HASHES[curve])(), deterministic_signing=deterministic)


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_FILE)
    except OSError as error:
        raise UsageError(
            f"{what} {path} cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from error


def _wrong_kind(path: Path) -> UsageError:
    return UsageError(
        f"key {path} is not an elliptic-curve key on P-256, P-384 or P-521, which model signatures are made with",
        hint=f"make one: {_NEW_KEY}",
    )
