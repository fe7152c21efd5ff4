"""Unrolling computes every relocated argument, for every rank and repeat, and refuses what leaves its arrays."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from paiton_artifacts.errors import CodeObjectError, FileSizeError, PaitonError
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Launch, Plan, Relocation, RelocationKind
from paiton_runtime.drivers.cpu import CpuDriver
from paiton_runtime.drivers.template import pack_template
from paiton_runtime.host import REGIONS, Program
from tests.cpu.runtime.plans import MakeDriver, launch, local, peer, plan, rank_times

ROW = 5  # words that the echo kernel writes


def echo(*arguments: int) -> Launch:
    """Logs its arguments into the own rank's scratch region."""
    return launch("echo", [0, 0, *arguments], local(0, Region.SCRATCH, 64), local(1, Region.SCRATCH, 0))


def with_more(base: Launch, *relocations: Relocation) -> Launch:
    return replace(base, relocations=(*base.relocations, *relocations))


def logged(driver: CpuDriver, rows: int) -> list[list[int]]:
    """Returns what rank 0 logged, without the two pointers."""
    flat = driver.view(Region.SCRATCH, 64, rows * ROW * 8, "Q").tolist()
    return [flat[i * ROW + 2 : (i + 1) * ROW] for i in range(rows)]


def test_constants_strides_and_peers(make_driver: MakeDriver) -> None:
    driver = make_driver(3, 1)
    chain = with_more(echo(7, 0, 0), local(3, Region.WEIGHTS, 128, 16), peer(4, 2, 24, 8))
    driver.run(driver.build(plan((3, [chain]))))
    rows = logged(driver, 3)
    assert [row[0] for row in rows] == [7, 7, 7]
    assert [row[1] - rows[0][1] for row in rows] == [0, 16, 32]
    assert [row[2] - rows[0][2] for row in rows] == [0, 8, 16]


def test_pointers_reach_the_regions(make_driver: MakeDriver) -> None:
    """A value written through each kind of pointer is read back through the driver's own view."""
    driver = make_driver(2, 1)
    chain = [
        launch("copy", [0, 0, 0], local(0, Region.WEIGHTS, 8, 8), local(1, region, 16, 8))
        for region in (Region.IO, Region.SCRATCH, Region.KV, Region.COMM)
    ]
    driver.run(driver.build(plan((2, chain))))
    words = list(struct.unpack("<2Q", bytes(range(8, 24))))
    for region in (Region.IO, Region.SCRATCH, Region.KV, Region.COMM):
        assert driver.view(region, 16, 16, "Q").tolist() == words


def test_rank_is_an_integer_with_a_sign(make_driver: MakeDriver) -> None:
    """Every rank logs into its own slot of the shared io region, 40 bytes apart, by its rank."""
    driver = make_driver(3, 1)
    factors = launch("copy", [0, 0, 0], local(0, Region.IO, 4096), local(1, Region.COMM, 0), rank_times(2, -3))
    gather = launch("sum", [0] * 4, *(peer(rank, rank, 0) for rank in range(3)), local(3, Region.IO, 0))
    gather = replace(gather, flags=gather.flags | 1)
    driver.run(driver.build(plan((1, [factors, gather]))))
    assert driver.view(Region.IO, 0, 8, "q")[0] == 0 - 3 - 6


def test_unrolled_launches_are_counted(make_driver: MakeDriver) -> None:
    driver = make_driver(1, 1)
    nothing = launch("nothing", [0])
    assert driver.build(plan((3, [nothing, nothing]), (1, []), (4, [nothing]))).launches == 10
    empty = driver.build(plan())
    driver.run(empty)
    assert empty.launches == 0


def _broken(kind: str) -> Plan:
    base = echo(1, 2, 3)
    relocation = base.relocations[0]
    broken = {
        "behind the arguments": replace(relocation, arg_offset=40),
        "unaligned": replace(relocation, arg_offset=4),
        "absent rank": replace(relocation, kind=RelocationKind.PEER, rank=2),
    }[kind]
    return plan((1, [replace(base, relocations=(broken,))]))


@pytest.mark.parametrize("kind", ["behind the arguments", "unaligned", "absent rank"])
def test_records_outside_the_arrays_are_refused(make_driver: MakeDriver, kind: str) -> None:
    """Plans are checked before (check_plan); the library does not rely on it for its own memory."""
    with pytest.raises(PaitonError, match="outside the plan"):
        make_driver(2, 1).build(_broken(kind))


def test_counts_beyond_the_records_are_refused() -> None:
    template = pack_template(plan((1, [launch("nothing", [0])])), {"nothing": 1})
    segments = struct.pack("<IIII", 1, 0, 2, 0)  # two launches where there is one
    with pytest.raises(PaitonError, match="outside the plan"):
        Program(segments, template.launches, b"", template.args, template.counts, [[0] * REGIONS])


def test_absurd_repeats_are_refused() -> None:
    template = pack_template(plan((1, [launch("nothing", [0])])), {"nothing": 1})
    segments = struct.pack("<IIII", 0xFFFF_FFFF, 0, 1, 0)
    with pytest.raises(PaitonError, match="too long"):
        Program(segments, template.launches, b"", template.args, template.counts, [[0] * REGIONS])


def test_code_that_does_not_load_is_refused(make_driver: MakeDriver, kernels: bytes) -> None:
    driver = make_driver(1, 1)
    with pytest.raises(CodeObjectError, match="code object cut"):
        driver.load_code("cut", kernels[:100], ())
    with pytest.raises(CodeObjectError, match="absent_symbol"):
        driver.load_code("whole", kernels, ("absent_symbol",))


def test_a_blob_shorter_than_its_region_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    blob = tmp_path_factory.mktemp("short") / "blob"
    blob.write_bytes(b"x" * 100)
    driver = CpuDriver(1, 1)
    with blob.open("rb") as file, pytest.raises(FileSizeError, match="100 bytes instead of 4096"):
        driver.open_weights(file.fileno(), 4096, "blob")
    driver.close()
