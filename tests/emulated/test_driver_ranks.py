"""The GPU driver with several ranks on stand-in devices: peers, rank numbers, launches of rank 0, errors of one."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from numpy.typing import NDArray

from paiton_aot.targets.gpu.build import pack_kernels
from paiton_artifacts.errors import CodeObjectError, DeviceFaultError, DriverError, PaitonError, UnsupportedHostError
from paiton_artifacts.kernel_table import Kernel, check_launches, pack_arguments
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Access, Launch, LaunchFlag, Plan, Relocation, RelocationKind, Segment, check_plan
from paiton_artifacts.schema import IoField, MemoryPlan
from paiton_kernels.gpu.compile import compile_kernel
from paiton_kernels.gpu.devices import TARGETS
from paiton_kernels.gpu.spec import Config, GpuArg, GpuKernelSpec, Work
from paiton_runtime.budget import RegionSizes
from paiton_runtime.drivers.gpu import Executor, GpuDriver
from paiton_runtime.drivers.hip import HipLibrary
from paiton_runtime.drivers.host_mirror import RESULTS, HostMirror
from tests.emulated.conftest import MakeHip
from tests.emulated.standin.hip import MI300X, HipStandIn

GFX942 = TARGETS["hip:gfx942"]
COUNT = 64
WEIGHTS = 8 * COUNT * 4
SCRATCH_OWN, SCRATCH_RANK0 = 0, 4096
EXTENTS = {Region.WEIGHTS: WEIGHTS, Region.IO: 4096, Region.SCRATCH: 8192, Region.KV: 256, Region.COMM: 4096}


def _kernel(counts, source, offset, out, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """Stores a slice, or adds it to what is there."""
    lane = tl.arange(0, BLOCK)
    inside = lane < tl.load(counts)
    value = tl.load(source + offset + lane, mask=inside, other=0.0)
    if ADD:
        value += tl.load(out + lane, mask=inside, other=0.0)
    tl.store(out + lane, value, mask=inside)


SLICE = GpuKernelSpec(
    family="slice",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[1]: elements"),
        GpuArg("source", "*fp32", "f32[...]"),
        GpuArg("offset", "i64", "first element", divisor=16),
        GpuArg("out", "*fp32", "f32[elements]"),
    ),
    constants=("ADD",),
    tunables=("BLOCK",),
    name=lambda values: "add" if values["ADD"] else "store",
    space=lambda _constants, _step, _profile: (Config.of(1, 1, BLOCK=COUNT),),
    grid=lambda _values, _step, _profile: (1, 1, 1),
    work=lambda _values, _step, _profile: Work(bytes=COUNT * 8, blocks=1),
    cases=lambda _target: (),
)


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """Kernels that store and that add, by symbol."""
    variants = [SLICE.variant(Config.of(1, 1, BLOCK=COUNT), ADD=add) for add in (0, 1)]
    kernels = {variant.symbol: compile_kernel(variant, GFX942) for variant in variants}
    archive, table = pack_kernels(GFX942, {v.symbol: v for v in variants}, kernels, {})
    return {
        "kernels": {kernel.symbol: kernel for kernel in table.kernels},
        "archive": archive,
        "code": [(kernel.code, kernel.assembly) for kernel in kernels.values()],
        "store": variants[0].symbol,
        "add": variants[1].symbol,
    }


class Ranks:
    """A driver over as many devices as there are ranks, each with weights of its own."""

    def __init__(self, standin: HipStandIn, compiled: dict[str, Any], ranks: int, executor: Executor) -> None:
        self.standin = standin
        self.ranks = ranks
        self._compiled = compiled
        self.kernels: Mapping[str, Kernel] = compiled["kernels"]
        random = np.random.default_rng(ranks)
        self.weights = random.standard_normal((ranks, 8, COUNT)).astype(np.float32)
        library = HipLibrary()
        library.initialise()
        self.driver = GpuDriver(library, range(ranks), memory(), executor)

    def load(self, folder: Path) -> None:
        """Allocates, and loads weights from files as a boot does."""
        self.driver.reserve()
        for rank in range(self.ranks):
            path = folder / f"rank-{rank}.bin"
            path.write_bytes(self.weights[rank].tobytes())
            descriptor = os.open(path, os.O_RDONLY)
            self.driver.open_weights(descriptor, WEIGHTS, str(path))
            os.close(descriptor)
        self.driver.load_weights()
        self.driver.allocate(RegionSizes(0, 0, EXTENTS[Region.KV], 0))
        self.driver.load_kernels(self._compiled["archive"], self.kernels)
        self.driver.view(Region.IO, 0, 16, "i")[0] = COUNT

    def launch(self, kind: str, *relocations: Relocation, flags: LaunchFlag = LaunchFlag.NONE) -> Launch:
        """Returns a launch of the kernel that stores or adds; the other argument addresses are given."""
        kernel = self.kernels[self._compiled[kind]]
        counts = pointer(0, RelocationKind.LOCAL, Region.IO, size=4)
        return Launch(kernel.symbol, flags, pack_arguments(kernel, {}), (counts, *relocations))

    def plan(self, tokens: int, *launches: Launch) -> Plan:
        """Returns a checked plan."""
        plan = Plan("hip:gfx942", "mi300x", "forward", tokens, 1, (Segment(1, launches),))
        check_plan(plan, EXTENTS, self.ranks, self.kernels.keys())
        check_launches(plan, self.kernels)
        return plan

    def read(self, rank: int, region: Region, offset: int) -> NDArray[np.float32]:
        """Returns COUNT values of a rank's device."""
        address = self.driver._ranks[rank].bases[region] + offset
        raw: NDArray[np.uint8] = self.standin.machine.devices[rank].memory.read(address, COUNT * 4)
        return raw.view(np.float32)


def memory() -> MemoryPlan:
    """Returns a memory plan with the io fields that the driver itself uses."""
    names = ("block_tables", "sampled", "sampled_logprob", "sampled_rank", "top_tokens", "top_values", "semaphores")
    return MemoryPlan(
        target="hip:gfx942",
        profile="mi300x",
        compute_units=304,
        weights_bytes=WEIGHTS,
        io_bytes=EXTENTS[Region.IO],
        io_input_bytes=256,
        scratch_bytes=EXTENTS[Region.SCRATCH],
        worker_scratch_bytes=0,
        comm_bytes=EXTENTS[Region.COMM],
        kv_block_tokens=16,
        kv_block_bytes=EXTENTS[Region.KV],
        max_tokens=2,
        max_requests=1,
        max_blocks_per_request=1,
        logits_offset=0,
        logits_stride=COUNT,
        io=(
            IoField("counts", "i32", 4, 0),
            *(IoField(name, "i32", 4, 256 + 16 * i) for i, name in enumerate(names)),
            IoField("comm_peers", "u64", 8, 1024),
            IoField("comm_error", "i32", 16, 1280),
        ),
    )


def pointer(
    argument: int, kind: RelocationKind, region: Region, offset: int = 0, rank: int = 0, size: int = COUNT * 4
) -> Relocation:
    """Returns the relocation of a pointer that may be read and, outside of the weights, written."""
    access = Access.READ if region is Region.WEIGHTS else Access.READ | Access.WRITE
    return Relocation(8 * argument, kind, region, access, rank, offset, 0, size)


def rank_times(factor: int) -> Relocation:
    """Returns the relocation of `offset`: the rank's number times a factor."""
    return Relocation(16, RelocationKind.RANK, Region(0), Access.NONE, 0, factor, 0, 0)


LOCAL, PEER = RelocationKind.LOCAL, RelocationKind.PEER
Start = Callable[[int, Executor], Ranks]


@pytest.fixture
def start(make_hip: MakeHip, compiled: dict[str, Any], tmp_path: Path) -> Iterator[Start]:
    """`start(ranks, executor)` gives a driver that is ready to build plans; what it leaves on a device is an error."""
    made: list[Ranks] = []

    def begin(ranks: int, executor: Executor) -> Ranks:
        standin = make_hip(*[MI300X] * ranks)
        for code, assembly in compiled["code"]:
            standin.code.register(code, assembly)
        made.append(Ranks(standin, compiled, ranks, executor))
        made[-1].load(tmp_path)
        return made[-1]

    yield begin
    for ranks in made:
        ranks.driver.close()


def scatter(ranks: Ranks) -> Plan:
    """Every rank takes its slice of rank 0's weights to its comm; rank 0 alone also stores to its scratch."""
    taken = (pointer(1, PEER, Region.WEIGHTS, size=WEIGHTS), rank_times(COUNT), pointer(3, LOCAL, Region.COMM))
    alone = (pointer(1, LOCAL, Region.WEIGHTS), pointer(3, LOCAL, Region.SCRATCH, SCRATCH_RANK0))
    return ranks.plan(1, ranks.launch("store", *alone, flags=LaunchFlag.RANK0_ONLY), ranks.launch("store", *taken))


def reduce(ranks: Ranks) -> Plan:
    """Every rank adds up the comm of all of them."""
    launches = [
        ranks.launch(
            "add" if peer else "store",
            pointer(1, PEER, Region.COMM, rank=peer),
            pointer(3, LOCAL, Region.SCRATCH, SCRATCH_OWN),
        )
        for peer in range(ranks.ranks)
    ]
    return ranks.plan(2, *launches)


@pytest.mark.parametrize("executor", ["graph", "launch", "serial"])
@pytest.mark.parametrize("count", [2, 8])
def test_ranks_share_what_they_compute(count: int, executor: Executor, start: Start) -> None:
    ranks = start(count, executor)
    first, second = ranks.driver.build_all(plan(ranks) for plan in (scatter, reduce))
    assert first.launches == 2
    untouched = ranks.read(1, Region.SCRATCH, SCRATCH_RANK0)
    ranks.driver.run(first)
    ranks.driver.run(second)
    slices = ranks.weights[0, :count]
    total = slices[0].copy()
    for part in slices[1:]:
        total += part
    for rank in range(count):
        assert np.array_equal(ranks.read(rank, Region.COMM, 0), slices[rank])
        assert np.array_equal(ranks.read(rank, Region.SCRATCH, SCRATCH_OWN), total)
    assert np.array_equal(ranks.read(0, Region.SCRATCH, SCRATCH_RANK0), slices[0])
    assert ranks.read(1, Region.SCRATCH, SCRATCH_RANK0).tobytes() == untouched.tobytes()


@pytest.mark.parametrize("executor", ["graph", "launch"])
def test_what_changed_is_sent_to_every_rank(executor: Executor, start: Start) -> None:
    ranks = start(2, executor)
    tables = ranks.driver.memory.io[1]
    ranks.driver.view(Region.IO, tables.offset, 16, "i")[:] = array("i", (5, 6, 7, 8))

    def found(rank: int) -> list[int]:
        return list(ranks.read(rank, Region.IO, tables.offset)[:4].view(np.int32))

    ranks.driver.view(Region.IO, 0, 16, "i")[1] = 1  # requests
    ranks.driver.run()
    assert [found(rank) for rank in range(2)] == [[0] * 4] * 2
    ranks.driver.run(changed=("block_tables",))
    assert [found(rank) for rank in range(2)] == [[5, 6, 7, 8]] * 2


def test_the_part_of_a_field_that_is_in_use_is_sent(make_hip: MakeHip) -> None:
    make_hip()
    library = HipLibrary()
    library.initialise()
    library.set_device(0)
    counts = {"counts": 4, "mask_row": 3, "block_tables": 12, "mask": 6, "bias_tokens": 900}
    counts |= {"history_length": 1, "history_tokens": 50, **dict.fromkeys(RESULTS, 3)}
    fields = [IoField(name, "i32", count, 4096 * number) for number, (name, count) in enumerate(counts.items())]
    plan = replace(memory(), max_requests=3, io=tuple(fields), io_bytes=1 << 16, io_input_bytes=8192)
    with closing(HostMirror(library, plan)) as sent:
        sent.view(0, 16, "i")[:] = array("i", (9, 2, 3, 0))
        sent.view(4096, 12, "i")[:] = array("i", (-1, 1, -1))
        sent.view(5 * 4096, 4, "i")[0] = 7
        parts = {name: sent.in_use(name) for name in ("block_tables", "mask", "bias_tokens", "history_tokens")}
        assert parts == {  # four blocks, two words and 300 tokens a row
            "block_tables": (2 * 4096, 2 * 16),
            "mask": (3 * 4096, 2 * 8),
            "bias_tokens": (4 * 4096, 3600),
            "history_tokens": (6 * 4096, 28),
        }
        sent.view(0, 16, "i")[1] = 1 << 20
        assert sent.in_use("block_tables") == (2 * 4096, 48)  # never more than there is
        for name in ("counts", "mask_row", "sampled", "masks"):
            with pytest.raises(PaitonError, match="one of bias_tokens, block_tables, history_length"):
                sent.in_use(name)


def test_another_executor_unrolls_again_what_a_graph_forgot(start: Start) -> None:
    ranks = start(2, "graph")
    (graph,) = ranks.driver.build_all([scatter(ranks)])
    assert graph.programs == [None, None]
    ranks.driver.executor = "launch"
    ranks.driver.run(graph)
    assert np.array_equal(ranks.read(1, Region.COMM, 0), ranks.weights[0, 1])


def test_every_rank_has_a_thread(start: Start) -> None:
    ranks = start(2, "launch")
    (graph,) = ranks.driver.build_all([scatter(ranks)])
    names = ranks.driver.for_every_rank(graph, lambda _: threading.current_thread().name)
    assert names == ["paiton-rank-0", "paiton-rank-1"]


@pytest.mark.parametrize(
    ("executor", "words"),
    [
        ("graph", "running plan forward-t1-r1 on rank 1 failed: hipErrorIllegalAddress"),
        ("launch", "running plan forward-t1-r1 on rank 1 failed: hipErrorIllegalAddress"),
        ("serial", "rank 1 of 2, plan forward-t1-r1 of hip:gfx942: slice_.*, launch 0 of repeat 0"),
    ],
)
def test_a_fault_of_one_rank_surfaces(executor: Executor, words: str, start: Start) -> None:
    """Rank 0 reads what it may; rank 1 multiplies itself far away."""
    ranks = start(2, executor)
    astray = (pointer(1, LOCAL, Region.WEIGHTS), rank_times(1 << 34), pointer(3, LOCAL, Region.COMM))
    (graph,) = ranks.driver.build_all([ranks.plan(1, ranks.launch("store", *astray))])
    with pytest.raises(DeviceFaultError, match=words):
        ranks.driver.run(graph)


@pytest.mark.parametrize(
    ("executor", "words"),
    [("graph", "adding to a graph rank 1 of 2, plan"), ("launch", "launching rank 1 of 2, plan")],
)
def test_a_launch_that_one_rank_refuses_is_named(executor: Executor, words: str, start: Start) -> None:
    ranks = start(2, executor)
    stale = 0x999990
    ranks.driver._ranks[1].functions.update(dict.fromkeys(ranks.kernels, stale))
    alone = (pointer(1, LOCAL, Region.WEIGHTS), pointer(3, LOCAL, Region.SCRATCH))
    plan = ranks.plan(1, ranks.launch("store", *alone, flags=LaunchFlag.RANK0_ONLY), ranks.launch("add", *alone))
    with pytest.raises(DriverError, match=f"{words} forward-t1-r1 of hip:gfx942: slice_.*, launch 1 of repeat 0"):
        ranks.driver.run(*ranks.driver.build_all([plan]))


def test_a_plan_that_cannot_be_read_ends_the_build(start: Start) -> None:
    """The error of whoever reads the plans arrives once the ranks have done what they had been given."""
    ranks = start(2, "graph")

    def read() -> Iterator[Plan]:
        yield scatter(ranks)
        raise CodeObjectError("the second plan is damaged")

    with pytest.raises(CodeObjectError, match="the second plan is damaged"):
        ranks.driver.build_all(read())
    assert ranks.driver.built == []


def test_a_module_that_does_not_load_is_named(start: Start) -> None:
    ranks = start(2, "graph")
    ranks.driver.load_kernels(bytes(1 << 16), ranks.kernels)
    with pytest.raises(CodeObjectError, match="code object slice_store"):
        ranks.driver.build_all([scatter(ranks)])


@pytest.mark.parametrize("count", [1, 2, 8])
def test_peers_are_enabled_once_for_each_pair(count: int, start: Start) -> None:
    ranks = start(count, "launch")
    peers = [device.peers for device in ranks.standin.machine.devices]
    assert peers == [set(range(count)) - {rank} for rank in range(count)]


def test_devices_that_are_not_connected_are_refused(make_hip: MakeHip, monkeypatch: pytest.MonkeyPatch) -> None:
    standin = make_hip(*[MI300X] * 4)
    monkeypatch.setattr(HipLibrary, "can_access_peer", lambda _self, one, other: one // 2 == other // 2)
    library = HipLibrary()
    library.initialise()
    words = "0 does not reach 2, 3; 1 does not reach 2, 3; 2 does not reach 0, 1; 3 does not reach 0, 1; hint: choose"
    with pytest.raises(UnsupportedHostError, match=words):
        GpuDriver(library, range(4), memory(), "graph")
    assert not any(device.peers for device in standin.machine.devices)
    closing(GpuDriver(library, [0, 1], memory(), "graph")).__exit__()


def test_one_device_asks_nothing_of_its_peers(make_hip: MakeHip) -> None:
    standin = make_hip(MI300X, MI300X)
    library = HipLibrary()
    library.initialise()
    GpuDriver(library, [1], memory(), "graph").close()
    called: Sequence[str] = standin.library.calls
    assert not any("Peer" in name for name in called)
