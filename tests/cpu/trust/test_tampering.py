"""One changed byte anywhere in a signed bundle is noticed before anything uses it.

Every byte of the manifest and of the signature is changed in turn, every byte of the other small files, and a sample of
the weights. `PAITON_TAMPER_SAMPLES` sets how many (100,000 take about ten minutes), `PAITON_TAMPER_VALUES` in how many
ways each byte of the manifest and the signature is changed (255 are all).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from paiton_artifacts.errors import PaitonError, VerificationError
from paiton_artifacts.layout import MANIFEST_NAME, SIGNATURE_NAME
from paiton_artifacts.reader import Bundle, open_bundle
from paiton_artifacts.trust.companions import check_companions
from paiton_artifacts.trust.policy import Policy, Trust
from paiton_artifacts.verify import verify_files
from tests.cpu.trust.pair import KeyPair

SAMPLES = int(os.environ.get("PAITON_TAMPER_SAMPLES", "300"))
VALUES = int(os.environ.get("PAITON_TAMPER_VALUES", "1"))


def changed_bytes(size: int, seed: int) -> Iterator[tuple[int, int]]:
    """Yields every position, with what to change its byte by (never by nothing)."""
    rng = random.Random(seed)
    for position in range(size):
        for change in rng.sample(range(1, 256), VALUES):
            yield position, change


def accepted(policy: Policy, manifest: bytes, signature: bytes) -> Trust | None:
    """Returns what the policy says to a bundle from a URL, None where it refuses it."""
    try:
        return policy.check(manifest, pinned=False, signature=signature, from_url=True)
    except VerificationError:
        return None


def test_every_byte_of_the_manifest(signed_bundle: Path, pairs: dict[str, KeyPair]) -> None:
    manifest = bytearray((signed_bundle / MANIFEST_NAME).read_bytes())
    signature = (signed_bundle / SIGNATURE_NAME).read_bytes()
    policy = pairs["p256"].policy()
    assert accepted(policy, bytes(manifest), signature)
    for position, change in changed_bytes(len(manifest), 0):
        manifest[position] ^= change
        assert accepted(policy, bytes(manifest), signature) is None, position
        manifest[position] ^= change


def test_every_byte_of_the_signature(signed_bundle: Path, pairs: dict[str, KeyPair]) -> None:
    """No byte of the file can change, not even where nothing depends on it: there is no such place."""
    manifest = (signed_bundle / MANIFEST_NAME).read_bytes()
    signature = bytearray((signed_bundle / SIGNATURE_NAME).read_bytes())
    policy = pairs["p256"].policy()
    for position, change in changed_bytes(len(signature), 1):
        signature[position] ^= change
        assert accepted(policy, manifest, bytes(signature)) is None, (position, bytes(signature[position - 9 :][:20]))
        signature[position] ^= change
    assert accepted(policy, manifest, bytes(signature))


def test_every_byte_of_the_manifest_without_a_signature(signed_bundle: Path, tmp_path: Path) -> None:
    """The reader alone notices damage (not malice) in all of the manifest."""
    good = (signed_bundle / MANIFEST_NAME).read_bytes()
    victim = tmp_path / "bundle"
    victim.mkdir()
    for entry in signed_bundle.iterdir():
        if entry.name != MANIFEST_NAME:
            (victim / entry.name).symlink_to(entry)
    for position, change in changed_bytes(len(good), 2):
        (victim / MANIFEST_NAME).write_bytes(good[:position] + bytes([good[position] ^ change]) + good[position + 1 :])
        with pytest.raises(PaitonError) as caught:
            open_bundle(victim)
        assert caught.value.exit_code in (3, 4), position


def test_every_byte_of_the_small_files(victim: Path, pairs: dict[str, KeyPair]) -> None:
    bundle = open_bundle(victim)
    manifest = (victim / MANIFEST_NAME).read_bytes()
    trust = accepted(pairs["p256"].policy(), manifest, (victim / SIGNATURE_NAME).read_bytes())
    assert trust is not None
    blobs = {blob.path for blob in bundle.manifest.blobs}
    files = [str(path.relative_to(victim)) for path in victim.rglob("*") if path.is_file()]
    small = sorted(set(files) - blobs - {MANIFEST_NAME, SIGNATURE_NAME})
    assert len(small) >= 8
    for name in small:
        good = (victim / name).read_bytes()
        for position, change in changed_bytes(len(good), 3):
            _write(victim / name, position, good[position] ^ change)
            assert _refuses(bundle, name, manifest, trust), (name, position)
            _write(victim / name, position, good[position])
        assert not _refuses(bundle, name, manifest, trust)


def _refuses(bundle: Bundle, name: str, manifest: bytes, trust: Trust) -> bool:
    """Says whether a small file is refused by whatever uses it."""
    entries = {plan.file.path: plan.file for plan in bundle.manifest.plans}
    entries |= {code.file.path: code.file for code in bundle.manifest.code_objects}
    tokenizer = bundle.manifest.tokenizer
    entries |= {entry.path: entry for entry in (tokenizer.file, tokenizer.chat_template) if entry is not None}
    if name not in entries:
        return any(check.error for check in check_companions(bundle, manifest, trust.signed) if check.path == name)
    try:
        bundle.read_file(entries[name])
    except PaitonError:
        return True
    return False


def test_sampled_bytes_of_the_weights(victim: Path) -> None:
    """Every sample is written to the file, and the error names the chunk that it lies in."""
    bundle = open_bundle(victim)
    rng = random.Random(4)
    for _ in range(SAMPLES):
        blob = rng.choice(bundle.manifest.blobs)
        position = rng.randrange(blob.size)
        path = victim / blob.path
        with path.open("rb") as file:
            file.seek(position)
            good = file.read(1)[0]
        _write(path, position, good ^ rng.randrange(1, 256))
        failed = [check for check in verify_files(bundle, strict=False) if check.error]
        assert [check.path for check in failed] == [blob.path], position
        chunk = next(c for c in blob.chunks if c.offset <= position < c.offset + c.size)
        assert f"bytes at offset {chunk.offset} is" in str(failed[0].error)
        _write(path, position, good)
    verify_files(bundle)


def _write(path: Path, position: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(bytes([value]))
