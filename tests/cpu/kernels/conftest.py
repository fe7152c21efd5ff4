"""The levels that this machine can run, as a fixture that every kernel test is repeated for."""

from __future__ import annotations

from pathlib import Path

import pytest

from paiton_kernels.cpu.compile import LEVELS
from tests.cpu.kernels.harness import Level
from tests.probe import runs_here


@pytest.fixture(scope="session")
def compiler_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One compiler cache for the whole run: its first use takes seconds."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session", params=LEVELS)
def level(request: pytest.FixtureRequest, compiler_cache: Path) -> Level:
    """A CPU level whose instructions this machine executes."""
    if not runs_here(request.param, compiler_cache):
        pytest.skip(f"this processor traps on the instructions of level {request.param}")
    return Level(request.param, compiler_cache)
