"""Empty build caches, each with the command that uses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cpu.build.cached import Cached


@pytest.fixture(params=["directory", "store"])
def cached(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Cached:
    """The command with an empty cache of either kind."""
    root = tmp_path / "cache"
    return Cached(tiny_checkpoint, str(root) if request.param == "directory" else f"file://{root}", capsys)


@pytest.fixture
def in_directory(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cached:
    """The command with an empty directory as its cache."""
    return Cached(tiny_checkpoint, str(tmp_path / "cache"), capsys)


@pytest.fixture
def in_store(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cached:
    """The command with an empty store as its cache."""
    return Cached(tiny_checkpoint, f"file://{tmp_path / 'cache'}", capsys)
