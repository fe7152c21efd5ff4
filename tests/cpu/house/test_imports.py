"""Who may import whom, shown on an installation without extras and by planting what the linters must catch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cpu.house.conftest import ROOT

# Run by the bare environment's Python: blocks the names even where a dependency would bring them along.
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

FORBIDDEN = {
    "accelerate", "gguf", "jinja2", "ml_dtypes", "numpy", "paiton_aot", "paiton_kernels",
    "safetensors", "torch", "transformers", "triton", "ziglang",
}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise AssertionError(f"{name} was imported")

sys.meta_path.insert(0, Blocker())
imported = 0
for package in map(importlib.import_module, ("paiton_artifacts", "paiton_runtime")):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        imported += 1
"""


def run(
    *command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_every_runtime_and_format_module_imports_without_extras(bare_bin: Path, tmp_path: Path) -> None:
    done = run(bare_bin / "python", "-c", IMPORT_EVERYTHING + "print(imported)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(list(ROOT.glob("artifacts/paiton_artifacts/*.py"))) - 1


def test_a_bundle_boots_without_extras(bare_bin: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    boot = f"""{IMPORT_EVERYTHING}
from paiton_runtime.cli import main
sys.argv = ["paiton-run", "verify", {str(tiny_bundle)!r}]
sys.exit(main())
"""
    done = run(bare_bin / "python", "-c", boot, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("command", "word"), [("paiton-run", "generate"), ("paiton-build", "--plan-only")])
def test_both_commands_help_without_extras(bare_bin: Path, command: str, word: str) -> None:
    done = run(bare_bin / command, "--help")
    assert done.returncode == 0, done.stderr
    assert word in done.stdout


def test_the_build_command_without_extras_says_what_to_install(bare_bin: Path, tmp_path: Path) -> None:
    done = run(bare_bin / "paiton-build", tmp_path, "-o", tmp_path / "bundle")
    assert done.returncode not in {0, 1}
    assert "Traceback" not in done.stderr
    assert "paiton-aot[build]" in done.stderr


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A copy of the packages and of the rules, for a test to plant something forbidden in."""
    ignore = shutil.ignore_patterns("__pycache__", "_native")
    for name in ("paiton_aot", "runtime", "kernels", "artifacts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("runtime/paiton_runtime/planted.py", "import triton"),
        ("runtime/paiton_runtime/planted.py", "from paiton_kernels import spec"),
        ("runtime/paiton_runtime/planted.py", "import paiton_aot"),
        ("artifacts/paiton_artifacts/planted.py", "import numpy"),
        ("artifacts/paiton_artifacts/planted.py", "from paiton_runtime import cli"),
        ("kernels/paiton_kernels/planted.py", "from paiton_runtime import cli"),
    ],
)
def test_linters_catch_a_forbidden_import_inside_a_function(planted: Path, file: str, line: str) -> None:
    (planted / file).write_text(f"def planted():\n    {line}\n")
    path = os.pathsep.join(str(planted / folder) for folder in ("", "runtime", "kernels", "artifacts"))
    lint = (sys.executable, "-c", "from importlinter.cli import import_linter; import_linter()", "lint")
    contracts = run(*lint, "--no-logo", "--no-cache", cwd=planted, env={**os.environ, "PYTHONPATH": path})
    assert contracts.returncode == 1, contracts.stdout + contracts.stderr
    assert "planted" in contracts.stdout
    ruff = run(sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", file, cwd=planted)
    assert ruff.returncode == 1, ruff.stdout + ruff.stderr
