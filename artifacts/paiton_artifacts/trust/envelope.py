"""The file of a signature: a Sigstore bundle (JSON) of one DSSE envelope, signed with a key.

Formats: Sigstore bundle 0.3 (github.com/sigstore/protobuf-specs), DSSE 1.0 (github.com/secure-systems-lab/dsse) and the
`key` method of the OpenSSF Model Signing specification 1.0, section 4. What is written has no optional members and no
white space, so that no byte of it can change unnoticed.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

from paiton_artifacts.errors import SignatureError
from paiton_artifacts.limits import MAX_COMPANION_BYTES
from paiton_artifacts.record import dataclass
from paiton_artifacts.rules import RejectedError, apply, choice, pattern, sequence
from paiton_artifacts.trust.bounded_json import anything, member, parse_json
from paiton_artifacts.trust.keys import SigningKey, TrustedKey

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"

_FINGERPRINT = pattern("[0-9a-f]{64}", 64, "a SHA-256 in lower-case hexadecimal")
_KEYLESS = ("certificate", "x509CertificateChain")


@dataclass(frozen=True, slots=True)
class _Envelope:
    """An envelope that nothing vouches for yet; `hint` is the fingerprint of the key that it claims."""

    payload: bytes
    signature: bytes
    hint: str | None


def seal(payload: bytes, key: SigningKey) -> bytes:
    """Returns the file of a signature of a payload."""
    envelope = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key.fingerprint}},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(key.sign(_signed_bytes(payload))).decode()}],
        },
    }
    return json.dumps(envelope, separators=(",", ":")).encode()


def unseal(data: bytes, keys: Sequence[TrustedKey], what: str) -> tuple[bytes, TrustedKey]:
    """Returns the payload of a signature, and the key that made it, once it is shown to be of that key.

    Args:
        data: the file.
        keys: that are trusted.
        what: names the file in messages.

    Raises:
        SignatureError: it is malformed, made without a key, or made with none of the keys.
    """
    value = parse_json(data, SignatureError, what)
    envelope = apply(_envelope, value, SignatureError, what)
    # A signature that names its key is held to it; those of tools before 1.1 name none.
    candidates = [key for key in keys if envelope.hint in (None, key.fingerprint)]
    if not candidates:
        known = ", ".join(f"{key.fingerprint[:16]} ({key.origin})" for key in keys) or "none"
        raise SignatureError(
            f"{what}: made with the key {str(envelope.hint)[:16]}, trusted are: {known}",
            hint="name the signer's public key with --trusted-key, if you trust the signer",
        )
    message = _signed_bytes(envelope.payload)
    for key in candidates:
        if key.verifies(envelope.signature, message):
            return envelope.payload, key
    raise SignatureError(
        f"{what}: is not a signature of its content by {candidates[0].origin}",
        hint="the signature was damaged or forged; do not use the bundle, fetch or sign it again",
    )


def _signed_bytes(payload: bytes) -> bytes:
    """Returns DSSE's pre-authentication encoding, which is what gets signed."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _envelope(value: object) -> _Envelope:
    member(value, "mediaType", choice(MEDIA_TYPE))
    material = member(value, "verificationMaterial", anything)
    if isinstance(material, dict) and any(name in material for name in _KEYLESS):
        raise RejectedError(
            "has a certificate: signatures without a key are for other tools to verify; pin the manifest's digest"
        ).inside(".verificationMaterial")
    key = member(material, "publicKey", anything)
    # Tools before 1.1 wrote the key itself there, which says nothing: it is not looked at.
    old = isinstance(key, dict) and "hint" not in key and "rawBytes" in key
    hint = None if old else member(key, "hint", _FINGERPRINT)
    envelope = member(value, "dsseEnvelope", anything)
    member(envelope, "payloadType", choice(PAYLOAD_TYPE))
    # The bundle's format asks for exactly one: with two, tools would differ in which one counts.
    (signature,) = member(envelope, "signatures", sequence(anything, 1, low=1))
    return _Envelope(member(envelope, "payload", _base64), member(signature, "sig", _base64), hint)


def _base64(value: object) -> bytes:
    """Accepts standard base64 in its only correct form: no other characters, no stray bits."""
    if type(value) is not str or len(value) > MAX_COMPANION_BYTES:
        raise RejectedError("is not base64")
    try:
        decoded = base64.b64decode(value.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        decoded = b""
    if not decoded or base64.b64encode(decoded).decode() != value:
        raise RejectedError("is not base64")
    return decoded
