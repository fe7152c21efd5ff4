"""What the shell scripts say on machines that they cannot serve, and what they do not do twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cpu.house.conftest import ROOT

TOOLS = ("basename", "bash", "cat", "dirname", "env", "id", "mkdir", "rm")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing but the scripts, and beside it a `bin` folder with nothing but what they may use."""
    shutil.copytree(ROOT / "scripts", tmp_path / "checkout" / "scripts")
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path / "checkout"


def plant_python(checkout: Path, name: str, script: str) -> None:
    path = checkout.parent / "bin" / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def refusal(checkout: Path, script: str = "demo", **environment: str) -> str:
    """Runs a script that must refuse: exit code 2, one line on stderr, and nothing left in the checkout."""
    done = subprocess.run(
        ["bash", checkout / "scripts" / script],
        env={"PATH": str(checkout.parent / "bin"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{script}: ")
    assert [path.name for path in checkout.iterdir()] == ["scripts"]
    return done.stderr


@pytest.mark.parametrize("script", ["demo", "test"])
def test_other_processor_is_refused(checkout: Path, script: str) -> None:
    assert "aarch64" in refusal(checkout, script, HOSTTYPE="aarch64")


def test_other_c_library_is_refused(checkout: Path) -> None:
    assert "linux-musl" in refusal(checkout, OSTYPE="linux-musl")


def test_no_python_is_refused_with_the_command(checkout: Path) -> None:
    assert "apt-get install python3" in refusal(checkout)


def test_old_python_is_refused_by_name(checkout: Path) -> None:
    plant_python(checkout, "python3", "exit 1")
    assert "Python 3.11 or newer is needed, which none of these is: python3\n" in refusal(checkout)


def test_missing_venv_without_apt_names_the_package(checkout: Path) -> None:
    """Where python3 is too old, python3.12 is taken; without `ensurepip` it cannot make an environment."""
    plant_python(checkout, "python3", "exit 1")
    plant_python(checkout, "python3.12", f'[[ "$*" != *ensurepip* ]] && exec {sys.executable} "$@"')
    version = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    assert f"python3.12 lacks the venv module; run: sudo apt-get install -y {version}\n" in refusal(checkout)


def test_stamped_work_is_done_once_per_digest_and_again_after_failure(tmp_path: Path) -> None:
    script = f"""
        set -u
        source {ROOT}/scripts/lib.sh
        unless_stamped stamp one echo first
        unless_stamped stamp one echo skipped
        unless_stamped stamp two echo second
        (set -e; unless_stamped stamp three false)
        unless_stamped stamp three echo third
    """
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["first", "second", "third"]
    assert done.stderr == ""


def test_digest_changes_with_content_and_with_names(tmp_path: Path) -> None:
    def digest() -> str:
        script = f'source {ROOT}/scripts/lib.sh; source_digest "{sys.executable}" tree'
        return subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.py").write_text("1")
    seen = {digest()}
    (tmp_path / "tree" / "a.py").write_text("2")
    seen.add(digest())
    (tmp_path / "tree" / "a.py").rename(tmp_path / "tree" / "b.py")
    seen.add(digest())
    (tmp_path / "tree" / "__pycache__").mkdir()
    (tmp_path / "tree" / "__pycache__" / "b.pyc").write_text("not a source")
    assert digest() in seen
    assert len(seen) == 3
