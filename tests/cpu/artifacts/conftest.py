"""The tiny bundle, and copies of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cpu.artifacts import tiny


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    return tiny.write(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def victim(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle for one test to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "victim"))
