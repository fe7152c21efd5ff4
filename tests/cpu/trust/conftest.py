"""Keys, a small signed bundle, and the tools of others that read the same formats."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from paiton_aot.attest.provenance import provenance
from paiton_aot.attest.sbom import sbom
from paiton_aot.identity.build_key import BuildKey
from paiton_artifacts.layout import PROVENANCE_NAME, SBOM_NAME
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.trust.keys import load_signing_key
from paiton_artifacts.trust.sign import sign_bundle
from tests.conftest import Cache
from tests.cpu.artifacts import tiny
from tests.cpu.trust.pair import KeyPair

CURVES: dict[str, Callable[[], ec.EllipticCurve]] = {"p256": ec.SECP256R1, "p384": ec.SECP384R1, "p521": ec.SECP521R1}
TOOLS = ("model-signing==1.1.1", "pyopenssl", "cyclonedx-python-lib[json-validation]")


def make_pair(folder: Path, name: str, curve: ec.EllipticCurve, password: bytes | None = None) -> KeyPair:
    """Writes a new key pair as PEM."""
    key = ec.generate_private_key(curve)
    protection: KeySerializationEncryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return KeyPair(private, public)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KeyPair]:
    """A key pair per curve, one of a stranger, and one whose private key has the password "secret"."""
    folder = tmp_path_factory.mktemp("keys")
    made = {name: make_pair(folder, name, curve()) for name, curve in CURVES.items()}
    made["stranger"] = make_pair(folder, "stranger", ec.SECP256R1())
    made["encrypted"] = make_pair(folder, "encrypted", ec.SECP256R1(), b"secret")
    return made


@pytest.fixture(scope="session")
def attested_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with an SBOM and provenance, unsigned; no test changes it."""
    path = tiny.write(tmp_path_factory.mktemp("attested") / "bundle")
    manifests: list[bytes] = []
    manifest = open_bundle(path, manifests.append).manifest
    key = BuildKey({"checkpoint/config.json": "0" * 64, "option/tp": "2", "tool/numpy": "2.1"})
    digest = hashlib.sha256(manifests[0]).hexdigest()
    (path / SBOM_NAME).write_bytes(sbom(key, manifest, digest))
    (path / PROVENANCE_NAME).write_bytes(provenance(key, digest))
    return path


@pytest.fixture(scope="session")
def signed_bundle(attested_bundle: Path, pairs: dict[str, KeyPair], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, signed with the P-256 key; no test changes it."""
    path = Path(shutil.copytree(attested_bundle, tmp_path_factory.mktemp("signed") / "bundle"))
    sign_bundle(path, load_signing_key(pairs["p256"].private))
    return path


@pytest.fixture
def victim(signed_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the signed bundle for one test to damage."""
    return Path(shutil.copytree(signed_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def tools(cache: Cache) -> Path:
    """The Python of an environment with other people's tools for the same formats."""

    def install(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        pip = (folder / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q")
        done = subprocess.run([*pip, *TOOLS], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the reference tools cannot be installed: {done.stderr.strip().splitlines()[-1]}")

    return cache.folder("model-signing", install, (), *TOOLS, sys.version) / "venv" / "bin" / "python"
