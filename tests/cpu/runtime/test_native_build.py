"""The host library: the same bytes from any folder, an old glibc, only our symbols, no undefined behaviour."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from paiton_runtime import host

SCRIPT = host.LIBRARY.parents[1] / "native" / "build.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("native_build", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("native") / "deeper" / "libpaiton_host.so"
    script.build(output)
    return output


def test_the_build_is_reproducible(script: ModuleType, built: Path, tmp_path: Path) -> None:
    again = tmp_path / "libpaiton_host.so"
    script.build(again)
    assert again.read_bytes() == built.read_bytes()
    assert [path.name for path in built.parent.iterdir()] == [built.name]


def test_the_library_in_use_is_the_current_one(built: Path) -> None:
    """A checkout's library goes stale when its sources change: build it again."""
    assert host.LIBRARY.read_bytes() == built.read_bytes()


def test_it_runs_on_an_old_glibc(built: Path) -> None:
    versions = {tuple(map(int, v.split(b"."))) for v in re.findall(rb"GLIBC_([0-9.]+)", built.read_bytes())}
    assert versions
    assert max(versions) <= (2, 17)


def test_every_declared_function_is_bound(built: Path) -> None:
    header = (SCRIPT.parent / "paiton_host.h").read_text()
    declared = set(re.findall(r"^PAITON_EXPORT .*?(paiton_\w+)\(", header, re.MULTILINE))
    assert declared == set(host._SIGNATURES)
    loaded = ctypes.CDLL(str(built))
    assert all(hasattr(loaded, name) for name in declared)
    assert not hasattr(loaded, "paiton_barrier_wait")  # internal


def test_no_undefined_behaviour(script: ModuleType, tmp_path: Path) -> None:
    """The tests of C again, on a library that traps on undefined behaviour."""
    library = tmp_path / "libpaiton_host.so"
    script.build(library, extra_flags=("-fsanitize=undefined", "-fsanitize-trap=undefined"))
    names = ("test_executor.py", "test_loader.py", "test_loader_devices.py", "test_program.py")
    tests = [str(Path(__file__).with_name(name)) for name in names]
    tests.append(f"{Path(__file__).with_name('test_encoder.py')}::test_a_malformed_file_is_refused_or_harmless")
    environment = {**os.environ, "PAITON_HOST_LIBRARY": str(library), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_compiler_that_fails_says_what_it_said(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no-such-flag"):
        script.build(tmp_path / "x.so", extra_flags=("--no-such-flag",))
    assert list(tmp_path.iterdir()) == []
