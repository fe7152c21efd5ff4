"""The checkout itself: what must be there, what must not, and what documents promise."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cpu.house.conftest import ROOT

COMMANDS = ("scripts/demo", "scripts/test", "scripts/check", ".ci/run")
TOP_LEVEL = (".ci", "artifacts", "benchmarks", "kernels", "paiton_aot", "runtime", "scripts", "tests")
TEXT = {".c", ".h", ".jinja", ".json", ".md", ".py", ".sh", ".toml", ".txt", ""}
MODULES = {"paiton-build": "paiton_aot.cli", "paiton-run": "paiton_runtime.cli"}

# Somebody's machine: absolute paths below a home or a workplace.
PRIVATE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/\w")


def text_files() -> Iterator[Path]:
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT)
    for top in TOP_LEVEL:
        for path in (ROOT / top).rglob("*"):
            below = path.relative_to(ROOT / top).parts
            cached = any(part.startswith(".") or part == "__pycache__" for part in below)
            if path.is_file() and path.suffix in TEXT and not cached:
                yield path


def readme_commands() -> list[list[str]]:
    """Returns every command line of ours in the README's console blocks, split into words."""
    blocks = re.findall(
        r"^```(?:console|bash|sh)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = (shlex.split(line.removeprefix("$ "), comments=True) for line in lines)
    return [w for w in words if w and w[0] in MODULES]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_executable_bash(command: str) -> None:
    path = ROOT / command
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", path], check=True)


def test_readme_names_the_two_commands_and_links_resolve() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "scripts/demo" in readme
    assert "scripts/test" in readme
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("command", readme_commands(), ids=" ".join)
def test_readme_flags_exist(command: list[str]) -> None:
    subcommand = command[1:2] if command[0] == "paiton-run" else []
    done = subprocess.run(
        [sys.executable, "-m", MODULES[command[0]], *subcommand, "--help"], capture_output=True, text=True, check=True
    )
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", done.stdout))
    assert {word.partition("=")[0] for word in command if re.match(r"--?[a-z]", word)} <= known


def test_readme_shows_both_programs() -> None:
    assert {command[0] for command in readme_commands()} == set(MODULES)


def test_changelog_has_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_no_file_names_a_private_path() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {m[0]}" for path in text_files() if (m := PRIVATE_PATH.search(path.read_text()))
    ]
    assert found == []


def test_namespace_folders_hold_no_module() -> None:
    """A module or `__init__.py` there would land in site-packages beside other people's packages."""
    assert [p for top in ("runtime", "kernels", "artifacts") for p in (ROOT / top).glob("*.py")] == []
