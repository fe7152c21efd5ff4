"""Decides whether a bundle may be used: before its manifest is parsed, a blob fetched or a code object loaded.

A bundle holds native code. One from a URL needs a signature of a trusted key, a pinned `@sha256:` digest, or an
explicit opt-out; one on disk is taken as it is unless a signature is required. Whatever is decided is decided over the
bytes of the manifest, whose digests cover everything else that a boot uses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paiton_artifacts.errors import FileSizeError, SignatureError, UntrustedBundleError, UsageError
from paiton_artifacts.files import read_bounded
from paiton_artifacts.layout import MANIFEST_NAME, SIGNATURE_NAME
from paiton_artifacts.limits import MAX_COMPANION_BYTES
from paiton_artifacts.record import dataclass

if TYPE_CHECKING:
    from paiton_artifacts.trust.keys import TrustedKey
    from paiton_artifacts.trust.statement import SignedFiles


@dataclass(frozen=True, slots=True)
class Trust:
    """Why a bundle was accepted.

    Attributes:
        by: "signature", "pin", "opt-out", or "path" for a bundle on disk that nothing had to vouch for.
        key: that signed it, where `by` is "signature".
        signed: the files that the signature lists, likewise.
    """

    by: Literal["signature", "pin", "opt-out", "path"]
    key: TrustedKey | None = None
    signed: SignedFiles | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be booted.

    Attributes:
        keys: whose signatures count.
        require_signature: nothing but a signature of one of them will do, wherever the bundle comes from.
        allow_untrusted: a bundle from a URL that nothing vouches for is accepted.

    Raises:
        UsageError: the fields contradict each other.
    """

    keys: tuple[TrustedKey, ...] = ()
    require_signature: bool = False
    allow_untrusted: bool = False

    def __post_init__(self) -> None:
        if self.require_signature and self.allow_untrusted:
            raise UsageError("--require-signature and --allow-untrusted contradict each other", hint="give one of them")
        if self.require_signature and not self.keys:
            raise UsageError(
                "--require-signature needs a key to trust", hint="add --trusted-key FILE, or set PAITON_TRUSTED_KEYS"
            )

    def check(
        self, manifest: bytes, *, pinned: bool, signature: bytes | None, from_url: bool, what: str = "the bundle"
    ) -> Trust:
        """Returns why a bundle may be used.

        Args:
            manifest: the bytes of the manifest's file, as they will be parsed.
            pinned: whoever asked for the bundle named their SHA-256, and it was compared.
            signature: the bytes of the signature's file, None where there is none.
            from_url: the bundle does not come from a path on this machine.
            what: names the bundle in messages.

        Raises:
            SignatureError: there is a signature that counts, and it is not one of a trusted key over this manifest.
            UntrustedBundleError: nothing vouches for the bundle.
        """
        if self.require_signature and signature is None:
            raise UntrustedBundleError(
                f"{what} is not signed", hint=f"sign it with paiton-build sign, which writes {SIGNATURE_NAME}"
            )
        if not self.require_signature:
            if pinned:
                return Trust("pin")
            if from_url and self.allow_untrusted:
                return Trust("opt-out")
        if signature is not None and self.keys:
            return self._check_signature(manifest, signature, what)
        if not from_url:
            return Trust("path")
        lacking = "is not signed" if signature is None else "is signed, but no key is trusted"
        raise UntrustedBundleError(
            f"{what} comes from a URL and {lacking}",
            hint="name the signer's key with --trusted-key FILE, pin the digest with URL@sha256:HEX, or say"
            " --allow-untrusted",
        )

    def for_directory(self, path: Path) -> Callable[[bytes], Trust]:
        """Returns what `open_bundle` is to ask about a directory's manifest: `check`, with its signature.

        Raises (the function returned):
            VerificationError: as `check`, or the signature is a link or too large.
        """

        def accept(manifest: bytes) -> Trust:
            signature = read_signature(path) if self.keys else None
            return self.check(manifest, pinned=False, signature=signature, from_url=False, what=str(path))

        return accept

    def _check_signature(self, manifest: bytes, signature: bytes, what: str) -> Trust:
        from paiton_artifacts.trust.envelope import unseal  # noqa: PLC0415  (most boots from a path need no JSON)
        from paiton_artifacts.trust.statement import decode_statement  # noqa: PLC0415

        where = f"signature of {what}"
        payload, key = unseal(signature, self.keys, where)
        signed = decode_statement(payload, where)
        declared = signed.digests.get(MANIFEST_NAME)
        found = hashlib.sha256(manifest).hexdigest()
        if found != declared:
            listed = (
                "lists no manifest" if declared is None else f"is for a manifest of SHA-256 {declared}, not {found}"
            )
            raise SignatureError(f"{where} {listed}", hint="the signature belongs to another bundle; sign this one")
        return Trust("signature", key, signed)


def read_signature(path: Path) -> bytes | None:
    """Returns the signature in a bundle's directory; None where there is none.

    Raises:
        VerificationError: it is a link, no regular file, or too large.
    """
    try:
        return read_bounded(path, SIGNATURE_NAME, MAX_COMPANION_BYTES)
    except FileSizeError:
        if (path / SIGNATURE_NAME).exists():
            raise
        return None
