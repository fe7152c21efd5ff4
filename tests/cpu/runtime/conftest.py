"""A small machine for the executor's tests: kernels compiled on the spot, and drivers with tiny regions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paiton_runtime import host
from paiton_runtime.budget import RegionSizes
from paiton_runtime.drivers.cpu import CpuDriver
from tests.cpu.runtime.plans import MakeDriver

SOURCE = Path(__file__).with_name("kernels.c")
SYMBOLS = ("ticket", "idle", "increment", "sum", "copy", "echo", "part", "follow", "stray", "take", "nothing")
SIZES = RegionSizes(io=1 << 20, scratch=1 << 16, kv=1 << 16, comm=1 << 16)
WEIGHTS = bytes(range(256)) * 64


@pytest.fixture(scope="session", autouse=True)
def host_library() -> Iterator[None]:
    """Lets `PAITON_HOST_LIBRARY` replace the host library: the sanitized one, see test_native_build.py."""
    with pytest.MonkeyPatch.context() as patch:
        if path := os.environ.get("PAITON_HOST_LIBRARY"):
            patch.setattr(host, "LIBRARY", Path(path))
        yield


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The code object of kernels.c."""
    folder = tmp_path_factory.mktemp("kernels")
    output = folder / "kernels.so"
    zig = {"ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    flags = ["-O2", "-g0", "-ffreestanding", "-nostdlib", "-shared", "-fPIC", "-fno-sanitize=all"]
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.17", *flags]
    subprocess.run([*command, "-o", output, SOURCE], env=zig | os.environ, check=True, timeout=300)
    return output.read_bytes()


@pytest.fixture
def make_driver(kernels: bytes, tmp_path: Path) -> Iterator[MakeDriver]:
    """A function `make_driver(ranks, workers)`; its drivers are closed after the test."""
    made: list[CpuDriver] = []
    blob = tmp_path / "blob"
    blob.write_bytes(WEIGHTS)

    def make(ranks: int, workers: int) -> CpuDriver:
        driver = CpuDriver(ranks, workers)
        made.append(driver)
        with blob.open("rb") as file:
            for _ in range(ranks):
                driver.open_weights(file.fileno(), len(WEIGHTS), str(blob))
        driver.load_weights()
        driver.allocate(SIZES)
        driver.load_code("kernels", kernels, SYMBOLS)
        return driver

    yield make
    for driver in made:
        driver.close()
