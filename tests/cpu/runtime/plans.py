"""Plans written by hand, for tests that need no bundle."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Access, Launch, LaunchFlag, Plan, Relocation, RelocationKind, Segment
from paiton_runtime.drivers.cpu import CpuDriver

MakeDriver = Callable[[int, int], CpuDriver]


def local(arg: int, region: Region, offset: int, stride: int = 0) -> Relocation:
    """A pointer into the own rank's region, for the argument number `arg`."""
    return Relocation(8 * arg, RelocationKind.LOCAL, region, Access.READ | Access.WRITE, 0, offset, stride, 8)


def peer(arg: int, rank: int, offset: int, stride: int = 0) -> Relocation:
    """A pointer into a rank's comm region."""
    return Relocation(8 * arg, RelocationKind.PEER, Region.COMM, Access.READ, rank, offset, stride, 8)


def rank_times(arg: int, factor: int) -> Relocation:
    """The integer rank * factor."""
    return Relocation(8 * arg, RelocationKind.RANK, Region.WEIGHTS, Access.NONE, 0, factor, 0, 0)


def launch(symbol: str, args: Sequence[int], *relocations: Relocation, flags: LaunchFlag = LaunchFlag.NONE) -> Launch:
    """A launch whose arguments are 64-bit integers."""
    return Launch(symbol, flags, struct.pack(f"<{len(args)}Q", *args), relocations)


def plan(*segments: tuple[int, Sequence[Launch]]) -> Plan:
    """A plan of (repeat, launches)."""
    chain = tuple(Segment(repeat, tuple(launches)) for repeat, launches in segments)
    return Plan("cpu", "any", "forward", 1, 1, chain)
