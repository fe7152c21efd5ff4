"""The same formats as read and written by other people's tools: model-signing, CycloneDX's and in-toto's libraries."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from paiton_artifacts.layout import SIGNATURE_NAME
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.trust.keys import load_signing_key
from paiton_artifacts.trust.sign import sign_bundle
from tests.cpu.trust.pair import KeyPair

VALIDATE = """
import sys
from pathlib import Path
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

bundle = Path(sys.argv[1])
problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str((bundle / "sbom.cdx.json").read_text())
assert problem is None, problem
parsed = json_format.Parse((bundle / "provenance.json").read_text(), statement_pb2.Statement())
Statement.copy_from_pb(parsed).validate()
assert parsed.predicate_type == "https://slsa.dev/provenance/v1"
"""


def run(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), *map(str, arguments)], capture_output=True, text=True, check=False)


def verify(tools: Path, bundle: Path, pair: KeyPair) -> subprocess.CompletedProcess[str]:
    signature = bundle / SIGNATURE_NAME
    flags = ("--signature", signature, "--public_key", pair.public)
    return run(tools, "-m", "model_signing", "verify", "key", *flags, bundle)


@pytest.mark.parametrize("curve", ["p256", "p384", "p521"])
def test_what_we_sign_model_signing_verifies(tools: Path, victim: Path, pairs: dict[str, KeyPair], curve: str) -> None:
    sign_bundle(victim, load_signing_key(pairs[curve].private))
    done = verify(tools, victim, pairs[curve])
    assert done.returncode == 0, done.stdout + done.stderr
    blob = next((victim / "blobs").iterdir())
    with blob.open("r+b") as file:
        file.write(b"\xff")
    assert verify(tools, victim, pairs[curve]).returncode != 0


@pytest.mark.parametrize("curve", ["p256", "p384", "p521"])
def test_what_model_signing_signs_we_verify(tools: Path, victim: Path, pairs: dict[str, KeyPair], curve: str) -> None:
    signature = victim / SIGNATURE_NAME
    signature.unlink()
    flags = ("--signature", signature, "--private_key", pairs[curve].private)
    done = run(tools, "-m", "model_signing", "sign", "key", *flags, victim)
    assert done.returncode == 0, done.stdout + done.stderr
    assert open_bundle(victim, pairs[curve].policy().for_directory(victim)).manifest.tp == 2
    theirs = pairs[curve].policy().for_directory(victim)((victim / "manifest.msgpack").read_bytes()).signed
    assert theirs == sign_bundle(victim, load_signing_key(pairs[curve].private))


def test_sbom_and_provenance_are_valid(tools: Path, attested_bundle: Path) -> None:
    done = run(tools, "-c", VALIDATE, attested_bundle)
    assert done.returncode == 0, done.stderr
