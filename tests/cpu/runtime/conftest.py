"""A small machine for the executor's tests: kernels compiled on the spot, and drivers with tiny regions."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Access, Launch, LaunchFlag, Plan, Relocation, RelocationKind, Segment
from paiton_runtime.budget import RegionSizes
from paiton_runtime.drivers.cpu import CpuDriver

SOURCE = Path(__file__).with_name("kernels.c")
SYMBOLS = ("ticket", "idle", "increment", "sum", "copy", "echo", "nothing")
SIZES = RegionSizes(io=1 << 20, scratch=1 << 16, kv=1 << 16, comm=1 << 16)
WEIGHTS = bytes(range(256)) * 64

MakeDriver = Callable[[int, int], CpuDriver]


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


def local(arg: int, region: Region, offset: int, stride: int = 0) -> Relocation:
    """A pointer into the own rank's region, for the argument number `arg`."""
    return Relocation(8 * arg, RelocationKind.LOCAL, region, Access.READ | Access.WRITE, 0, offset, stride, 8)


def peer(arg: int, rank: int, offset: int, stride: int = 0) -> Relocation:
    """A pointer into a rank's comm region."""
    return Relocation(8 * arg, RelocationKind.PEER, Region.COMM, Access.READ, rank, offset, stride, 8)


def rank_times(arg: int, factor: int) -> Relocation:
    """The integer rank * factor."""
    return Relocation(8 * arg, RelocationKind.RANK, Region.WEIGHTS, Access.NONE, 0, factor, 0, 0)


def launch(
    symbol: str, args: Sequence[int], *relocations: Relocation, flags: LaunchFlag = LaunchFlag.NONE
) -> Launch:
    """A launch whose arguments are 64-bit integers."""
    return Launch(symbol, flags, struct.pack(f"<{len(args)}Q", *args), relocations)


def plan(*segments: tuple[int, Sequence[Launch]]) -> Plan:
    """A plan of (repeat, launches)."""
    chain = tuple(Segment(repeat, tuple(launches)) for repeat, launches in segments)
    return Plan("cpu", "any", "forward", 1, 1, chain)
