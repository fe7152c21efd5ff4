"""Checkpoints that each test gets as a copy of its own, to be damaged at will."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cpu.checkpoint.gguf_maker import write_gguf
from tests.fp8_checkpoints import FORMATS, save_fp8
from tests.make_checkpoints import tiny_llama


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in bf16, in shards, in static FP8, and as a GGUF file."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_llama(folder / "tiny")
    tiny_llama(folder / "sharded", max_shard_size="200KB")
    tiny_llama(folder / "fp8", fp8_static=True)
    write_gguf(folder / "tiny", folder / "tiny.gguf")
    return folder


@pytest.fixture
def tiny(originals: Path, tmp_path: Path) -> Path:
    """A tiny Llama in bf16."""
    return Path(shutil.copytree(originals / "tiny", tmp_path / "tiny"))


@pytest.fixture
def sharded(originals: Path, tmp_path: Path) -> Path:
    """The same in several files with an index."""
    return Path(shutil.copytree(originals / "sharded", tmp_path / "sharded"))


@pytest.fixture
def fp8(originals: Path, tmp_path: Path) -> Path:
    """The same in static FP8."""
    return Path(shutil.copytree(originals / "fp8", tmp_path / "fp8"))


@pytest.fixture
def gguf(originals: Path, tmp_path: Path) -> Path:
    """The same as a GGUF file."""
    return Path(shutil.copy(originals / "tiny.gguf", tmp_path / "tiny.gguf"))


@pytest.fixture(scope="session")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in every FP8 format, by its name in `FORMATS`."""
    folder = tmp_path_factory.mktemp("formats")
    for name in FORMATS:
        save_fp8(folder / name, name)
    return folder


@pytest.fixture
def own_format(formats: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A function that returns a checkpoint of its own in a format."""
    return lambda name: Path(shutil.copytree(formats / name, tmp_path / name, dirs_exist_ok=True))
