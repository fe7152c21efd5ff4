"""Which bundles may be used: the whole table of where they come from, what vouches for them and what was asked for."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from paiton_artifacts.errors import PaitonError, SignatureError, UntrustedBundleError, UsageError, VerificationError
from paiton_artifacts.layout import MANIFEST_NAME, SIGNATURE_NAME
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.trust.keys import load_trusted_keys
from paiton_artifacts.trust.policy import Policy
from tests.conftest import python_environment
from tests.cpu.trust.pair import KeyPair


def expected(*, known: bool, required: bool, allowed: bool, signed: str, pinned: bool, url: bool) -> str:
    """Returns how a bundle is accepted, or the error: the documented rules, written down once more."""
    if required:
        return "signature" if signed == "ours" else "UntrustedBundleError" if signed == "no" else "SignatureError"
    if pinned:
        return "pin"
    if url and allowed:
        return "opt-out"
    if known and signed != "no":
        return "signature" if signed == "ours" else "SignatureError"
    return "UntrustedBundleError" if url else "path"


@pytest.mark.parametrize("signed", ["no", "ours", "stranger's"])
def test_every_combination(signed_bundle: Path, pairs: dict[str, KeyPair], signed: str) -> None:
    manifest = (signed_bundle / MANIFEST_NAME).read_bytes()
    signature = None if signed == "no" else (signed_bundle / SIGNATURE_NAME).read_bytes()
    keys = load_trusted_keys([pairs["stranger" if signed == "stranger's" else "p256"].public])
    seen = set()
    for known, required, allowed, pinned, url in itertools.product((False, True), repeat=5):
        if required and (allowed or not known):
            continue  # refused when the policy is made: below
        policy = Policy(keys if known else (), require_signature=required, allow_untrusted=allowed)
        try:
            found = str(policy.check(manifest, pinned=pinned, signature=signature, from_url=url).by)
        except VerificationError as error:
            found = type(error).__name__
        case = {"known": known, "required": required, "allowed": allowed, "pinned": pinned, "url": url}
        assert found == expected(signed=signed, **case), case
        seen.add(found)
    assert len(seen) >= 4


def test_contradictions_are_refused_before_anything_is_read(pairs: dict[str, KeyPair]) -> None:
    with pytest.raises(UsageError, match="needs a key"):
        Policy(require_signature=True)
    keys = load_trusted_keys([pairs["p256"].public])
    with pytest.raises(UsageError, match="contradict"):
        Policy(keys, require_signature=True, allow_untrusted=True)


def test_a_directory_is_refused_before_its_manifest_is_parsed(victim: Path, pairs: dict[str, KeyPair]) -> None:
    """The manifest is replaced by something that no parser of ours accepts: what is reported is the signature."""
    (victim / MANIFEST_NAME).write_bytes(b"not a manifest")
    policy = pairs["p256"].policy()
    with pytest.raises(SignatureError, match="is for a manifest of SHA-256"):
        open_bundle(victim, policy.for_directory(victim))
    (victim / SIGNATURE_NAME).unlink()
    with pytest.raises(UntrustedBundleError, match="is not signed"):
        open_bundle(victim, policy.for_directory(victim))


def test_a_signed_directory_opens(signed_bundle: Path, pairs: dict[str, KeyPair]) -> None:
    bundle = open_bundle(signed_bundle, pairs["p256"].policy().for_directory(signed_bundle))
    assert bundle.manifest == open_bundle(signed_bundle).manifest


@pytest.mark.parametrize("kind", ["link", "folder", "huge"])
def test_a_signature_that_is_no_plain_file_is_refused(victim: Path, pairs: dict[str, KeyPair], kind: str) -> None:
    signature = victim / SIGNATURE_NAME
    elsewhere = victim.parent / "elsewhere"
    signature.rename(elsewhere)
    if kind == "link":
        signature.symlink_to(elsewhere)
    elif kind == "folder":
        signature.mkdir()
    else:
        signature.write_bytes(b" " * (4 << 20) + elsewhere.read_bytes())
    with pytest.raises(PaitonError) as caught:
        open_bundle(victim, pairs["p256"].policy().for_directory(victim))
    assert caught.value.exit_code == 4


def test_opening_without_keys_imports_no_cryptography(signed_bundle: Path) -> None:
    """A boot from a path that trusts no keys does not pay for them."""
    program = f"""
import sys
from pathlib import Path
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.trust.policy import Policy
path = Path({str(signed_bundle)!r})
open_bundle(path, Policy().for_directory(path))
assert not {{"cryptography", "json", "base64"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-S", "-c", program], env=python_environment(), check=False)
    assert done.returncode == 0
