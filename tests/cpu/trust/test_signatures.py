"""Signatures that are right, wrong, somebody else's, about something else, or no signatures at all."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from paiton_artifacts.errors import SignatureError, UsageError, VerificationError
from paiton_artifacts.layout import MANIFEST_NAME, PROVENANCE_NAME, SBOM_NAME, SIGNATURE_NAME
from paiton_artifacts.limits import MAX_COMPANION_BYTES
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.trust.bounded_json import parse_json
from paiton_artifacts.trust.companions import check_companions
from paiton_artifacts.trust.keys import PASSWORD_VARIABLE, load_signing_key, load_trusted_keys
from paiton_artifacts.trust.policy import Policy, Trust
from paiton_artifacts.trust.sign import sign_bundle
from tests.cpu.artifacts import tiny
from tests.cpu.trust.forged import opened, rebundled, resealed, restated
from tests.cpu.trust.pair import KeyPair


def check(bundle: Path, policy: Policy, signature: bytes | None = None) -> Trust:
    """Asks the policy about a bundle, with another signature if one is given."""
    data = (bundle / SIGNATURE_NAME).read_bytes() if signature is None else signature
    manifest = (bundle / MANIFEST_NAME).read_bytes()
    return policy.check(manifest, pinned=False, signature=data, from_url=True)


@pytest.mark.parametrize("curve", ["p256", "p384", "p521"])
def test_what_is_signed_verifies(victim: Path, pairs: dict[str, KeyPair], curve: str) -> None:
    signed = sign_bundle(victim, load_signing_key(pairs[curve].private))
    trust = check(victim, pairs[curve].policy())
    assert trust.signed == signed
    on_disk = {str(path.relative_to(victim)) for path in victim.rglob("*") if path.is_file()}
    assert signed.digests.keys() == on_disk - {SIGNATURE_NAME}
    assert signed.digests == {name: file_digest(victim / name) for name in signed.digests}


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a whole file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_signing_twice_gives_the_same_bytes(victim: Path, pairs: dict[str, KeyPair]) -> None:
    before = (victim / SIGNATURE_NAME).read_bytes()
    sign_bundle(victim, load_signing_key(pairs["p256"].private))
    assert (victim / SIGNATURE_NAME).read_bytes() == before
    assert not [path for path in victim.iterdir() if path.name.startswith(".")]


def test_another_key_is_named(signed_bundle: Path, pairs: dict[str, KeyPair]) -> None:
    with pytest.raises(SignatureError, match=r"made with the key [0-9a-f]{16}, trusted are: .*stranger.pub.pem"):
        check(signed_bundle, pairs["stranger"].policy())


def test_one_of_several_keys_is_enough(signed_bundle: Path, pairs: dict[str, KeyPair], tmp_path: Path) -> None:
    ring = tmp_path / "ring.pem"
    ring.write_bytes(pairs["stranger"].public.read_bytes() + pairs["p256"].public.read_bytes())
    keys = load_trusted_keys([ring, pairs["p384"].public, ring])
    assert len(keys) == 3
    trust = check(signed_bundle, Policy(keys, require_signature=True))
    assert trust.key is not None
    assert trust.key.origin == str(ring)


def test_a_claimed_key_is_held_to_it(signed_bundle: Path, pairs: dict[str, KeyPair]) -> None:
    """A stranger's signature that claims to be ours, and ours that claims nothing."""
    signature = (signed_bundle / SIGNATURE_NAME).read_bytes()
    _, statement = opened(signature)
    forged = resealed(signature, pairs["stranger"].private, json.dumps(statement).encode())
    with pytest.raises(SignatureError, match=r"is not a signature of its content"):
        check(signed_bundle, pairs["p256"].policy(), forged)
    nameless = rebundled(
        signature, lambda bundle: bundle["verificationMaterial"].update(publicKey={"rawBytes": "AA=="})
    )
    assert check(signed_bundle, pairs["p256"].policy(), nameless).by == "signature"


def test_a_signature_of_another_bundle(signed_bundle: Path, pairs: dict[str, KeyPair], tmp_path: Path) -> None:
    other = tiny.write(tmp_path / "other")
    data = (other / MANIFEST_NAME).read_bytes()
    (other / MANIFEST_NAME).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    shutil.copy(signed_bundle / SIGNATURE_NAME, other)
    with pytest.raises(SignatureError, match="is for a manifest of SHA-256"):
        check(other, pairs["p256"].policy())


def rename_manifest(statement: dict[str, Any]) -> None:
    for resource in statement["predicate"]["resources"]:
        resource["name"] = resource["name"].replace("manifest", "manifesto")


STATEMENTS: dict[str, Any] = {
    "lists no manifest": rename_manifest,
    "_type": lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    "predicateType": lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"),
    "subject has 2": lambda s: s["subject"].append(s["subject"][0]),
    "subject has 0": lambda s: s.update(subject=[]),
    "method": lambda s: s["predicate"]["serialization"].update(method="shards"),
    "hash_type": lambda s: s["predicate"]["serialization"].update(hash_type="blake3"),
    "algorithm": lambda s: s["predicate"]["resources"][0].update(algorithm="md5"),
    "lists a file twice": lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
    "resources has 0": lambda s: s["predicate"].update(resources=[]),
    "which is not that of the files": lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
    "resources.0..digest": lambda s: s["predicate"]["resources"][0].update(digest="AB" * 32),
    "predicate is missing": lambda s: s.pop("predicate"),
}


@pytest.mark.parametrize("message", STATEMENTS)
def test_statements_that_are_properly_signed_and_wrong(
    signed_bundle: Path, pairs: dict[str, KeyPair], message: str
) -> None:
    signature = (signed_bundle / SIGNATURE_NAME).read_bytes()
    fix_root = message in {"lists no manifest", "lists a file twice", "algorithm"}
    forged = restated(signature, pairs["p256"].private, STATEMENTS[message], root=fix_root)
    with pytest.raises(SignatureError, match=message):
        check(signed_bundle, pairs["p256"].policy(), forged)


def two_signatures(bundle: dict[str, Any]) -> None:
    bundle["dsseEnvelope"]["signatures"] *= 2


def certificate(bundle: dict[str, Any]) -> None:
    bundle["verificationMaterial"] = {"certificate": {"rawBytes": "AAAA"}}


BUNDLES: dict[str, Any] = {
    "signatures has 2 items": two_signatures,
    "signatures has 0 items": lambda b: b["dsseEnvelope"].update(signatures=[]),
    "signatures without a key are for other tools": certificate,
    "mediaType": lambda b: b.update(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1"),
    "payloadType": lambda b: b["dsseEnvelope"].update(payloadType="application/json"),
    "payload is not base64": lambda b: b["dsseEnvelope"].update(payload="e30"),
    "payload is missing": lambda b: b["dsseEnvelope"].pop("payload"),
    "sig is not base64": lambda b: b["dsseEnvelope"]["signatures"][0].update(sig="MEQ\n"),
    "dsseEnvelope is missing": lambda b: b.pop("dsseEnvelope"),
    "hint is 'DC75'": lambda b: b["verificationMaterial"]["publicKey"].update(hint="DC75"),
    "hint is missing": lambda b: b["verificationMaterial"].update(publicKey={}),
}


@pytest.mark.parametrize("message", BUNDLES)
def test_files_that_are_no_signature(signed_bundle: Path, pairs: dict[str, KeyPair], message: str) -> None:
    signature = rebundled((signed_bundle / SIGNATURE_NAME).read_bytes(), BUNDLES[message])
    with pytest.raises(SignatureError, match=message):
        check(signed_bundle, pairs["p256"].policy(), signature)


def test_a_type_is_part_of_what_is_signed(signed_bundle: Path, pairs: dict[str, KeyPair]) -> None:
    """A signature made for something of another type says nothing here, even with the same payload."""
    signature = (signed_bundle / SIGNATURE_NAME).read_bytes()
    payload = base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"])
    other = resealed(signature, pairs["p256"].private, payload, "application/vnd.in-toto+jsoN")
    moved = other.replace(b"+jsoN", b"+json")
    with pytest.raises(SignatureError, match="is not a signature of its content"):
        check(signed_bundle, pairs["p256"].policy(), moved)


BOMBS = {
    "depth": b"[" * 1_000_000,
    "closed depth": b"[" * 30_000 + b"]" * 30_000,
    "lists": b"[" + b"[]," * 1_300_000 + b"[]]",
    "maps": b"[" + b"{}," * 1_300_000 + b"{}]",
    "numbers": b"[" + b"1," * 2_000_000 + b"1]",
    "digits": b"9" * 4_000_000,
    "size": b'"' + b" " * (MAX_COMPANION_BYTES + 1) + b'"',
    "open string": b'"' + b"\\" * 4_000_001,
    "quotes": b'"\\' * 2_000_000,
    "escaped quotes": b'"' + b'\\"' * 2_000_000,
    "closing brackets": b"]" * 4_000_000,
    "space": b" " * 4_000_000,
    "key twice": b'{"a":1,"a":1}',
    "not a number": b'{"a":NaN}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "not UTF-8": b'{"a":"\xff"}',
    "nothing": b"",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_bounded_time_and_memory(
    signed_bundle: Path, pairs: dict[str, KeyPair], name: str
) -> None:
    """As the file of a signature, and as what a trusted key has signed."""
    policy = pairs["p256"].policy()
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(SignatureError):
        check(signed_bundle, policy, BOMBS[name])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - start < 1.0
    assert peak < 32 << 20
    if 0 < len(BOMBS[name]) < 1 << 20:
        signature = (signed_bundle / SIGNATURE_NAME).read_bytes()
        with pytest.raises(SignatureError):
            check(signed_bundle, policy, resealed(signature, pairs["p256"].private, BOMBS[name]))


def test_json_within_bounds_is_what_json_says() -> None:
    value = {"a": [1, -2.5, 'x\\"[{,', {"b": None}], "ü": [True, False, [[]]], "\\": "]"}
    text = json.dumps(value).encode()
    assert parse_json(text, VerificationError, "it") == json.loads(text, object_hook=tupled)


def tupled(value: dict[str, Any]) -> dict[str, Any]:
    """Returns a map whose lists are tuples, all the way down."""

    def frozen(inner: Any) -> Any:
        return tuple(map(frozen, inner)) if isinstance(inner, list) else inner

    return {key: frozen(inner) for key, inner in value.items()}


def test_signing_refuses_what_is_not_as_the_manifest_says(victim: Path, pairs: dict[str, KeyPair]) -> None:
    key = load_signing_key(pairs["p256"].private)
    before = (victim / SIGNATURE_NAME).read_bytes()
    blob = next((victim / "blobs").iterdir())
    with blob.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"\1")
    with pytest.raises(VerificationError, match=r"rank-.\.bin: SHA-256 of the"):
        sign_bundle(victim, key)
    assert (victim / SIGNATURE_NAME).read_bytes() == before


@pytest.mark.parametrize("stray", ["README", "code/extra.so", ".hidden"])
def test_signing_refuses_files_that_belong_to_no_bundle(victim: Path, pairs: dict[str, KeyPair], stray: str) -> None:
    (victim / stray).write_text("x")
    with pytest.raises(SignatureError, match=f"holds '{stray}', which is no part of the bundle"):
        sign_bundle(victim, load_signing_key(pairs["p256"].private))


def test_signing_refuses_the_provenance_of_another_manifest(victim: Path, pairs: dict[str, KeyPair]) -> None:
    statement = json.loads((victim / PROVENANCE_NAME).read_bytes())
    statement["subject"][0]["digest"]["sha256"] = "0" * 64
    (victim / PROVENANCE_NAME).write_text(json.dumps(statement))
    with pytest.raises(VerificationError, match="is about a manifest of SHA-256 0000"):
        sign_bundle(victim, load_signing_key(pairs["p256"].private))


def test_a_signature_answers_for_the_files_beside_the_manifest(victim: Path, pairs: dict[str, KeyPair]) -> None:
    manifest = (victim / MANIFEST_NAME).read_bytes()
    signed = check(victim, pairs["p256"].policy()).signed
    bundle = open_bundle(victim)
    assert [(c.path, c.error) for c in check_companions(bundle, manifest, signed)] == [
        (SBOM_NAME, None),
        (PROVENANCE_NAME, None),
    ]
    (victim / SBOM_NAME).write_bytes((victim / SBOM_NAME).read_bytes() + b"\n")
    (victim / PROVENANCE_NAME).unlink()
    errors = {c.path: str(c.error) for c in check_companions(bundle, manifest, signed)}
    assert "the signature declares" in errors[SBOM_NAME]
    assert "is missing" in errors[PROVENANCE_NAME]
    assert {c.path: c.error for c in check_companions(bundle, manifest, None)} == {SBOM_NAME: None}


def test_a_signature_that_contradicts_the_manifest_is_reported(signed_bundle: Path, pairs: dict[str, KeyPair]) -> None:
    def edit(statement: dict[str, Any]) -> None:
        for resource in statement["predicate"]["resources"]:
            if resource["name"] == "code/cpu/generic.so":
                resource["digest"] = "0" * 64
            if resource["name"] == "tokenizer/tokenizer.json":
                resource["name"] = "tokenizer/other.json"

    forged = restated((signed_bundle / SIGNATURE_NAME).read_bytes(), pairs["p256"].private, edit)
    signed = check(signed_bundle, pairs["p256"].policy(), forged).signed
    manifest = (signed_bundle / MANIFEST_NAME).read_bytes()
    failed = [c.path for c in check_companions(open_bundle(signed_bundle), manifest, signed) if c.error]
    assert failed == ["code/cpu/generic.so", "tokenizer/other.json"]


def test_keys_that_cannot_be_used(pairs: dict[str, KeyPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(UsageError, match="is damaged"):
        load_trusted_keys([nonsense])
    with pytest.raises(UsageError, match="holds no PEM public key"):
        load_trusted_keys([pairs["p256"].private])
    with pytest.raises(UsageError, match="No such file"):
        load_trusted_keys([tmp_path / "absent.pem"])
    with pytest.raises(UsageError, match="is no PEM private key"):
        load_signing_key(pairs["p256"].public)
    with pytest.raises(UsageError, match="is encrypted"):
        load_signing_key(pairs["encrypted"].private)
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    with pytest.raises(UsageError, match="has another password"):
        load_signing_key(pairs["encrypted"].private)
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    encrypted = load_signing_key(pairs["encrypted"].private).fingerprint
    assert encrypted == load_trusted_keys([pairs["encrypted"].public])[0].fingerprint
    assert load_signing_key(pairs["p256"].private).fingerprint  # the password of another key does not matter
