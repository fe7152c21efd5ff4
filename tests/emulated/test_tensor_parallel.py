"""The runtime boots a model that several emulated MI300X share, and gets what one rank on the cpu computes."""

from __future__ import annotations

import functools
import shutil
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paiton_aot.cli import main
from paiton_artifacts.errors import (
    DeviceFaultError,
    DeviceNotFoundError,
    DigestMismatchError,
    GoldenMismatchError,
    RankStalledError,
    UnsupportedHostError,
    UsageError,
)
from paiton_artifacts.kernel_table import Kernel
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import LaunchFlag, Plan
from paiton_artifacts.reader import Bundle, open_bundle
from paiton_runtime import boot_device
from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.drivers import rank_group
from paiton_runtime.drivers.hip import HipLibrary
from paiton_runtime.drivers.meetings import check_resident
from paiton_runtime.goldens import check_golden
from paiton_runtime.model import Chunk, Model, Sampling, StepResult
from tests.conftest import CHECKPOINT_MAKER, Cache, make_checkpoints
from tests.emulated.conftest import MakeHip
from tests.emulated.standin.hip import MI300X, HipStandIn
from tests.emulated.test_boot import register
from tests.emulated.test_plans import check
from tests.teacher_forced import logits_of

IDS = [(13 * index + 2) % 380 for index in range(11)]
LIMITS = ("--max-num-batched-tokens", "16")
GPU = ("--target", "hip:gfx942", "--candidates", "1")
MODES = {2: "fp8", 4: "bf16", 8: "fp8"}
"""Activations of the bundle for so many ranks."""

MakeRanks = Callable[[int], HipStandIn]


@pytest.fixture(scope="session")
def eight_heads(cache: Cache) -> Path:
    """A small Llama that eight ranks can share: a query head each, and four to a KV head."""

    def make(folder: Path) -> None:
        make_checkpoints().tiny_llama(folder, heads=8, kv_heads=2, head_dim=64, intermediate=512)

    return cache.folder("tiny-gpu-8-heads-hf", make, (CHECKPOINT_MAKER,))


@pytest.fixture(scope="session")
def build_ranks(build_bundle: Callable[..., Path], eight_heads: Path) -> Callable[[int], Path]:
    """`build(tp)` gives the bundle for so many ranks."""

    @functools.cache
    def build(tp: int) -> Path:
        mode = ("--act", MODES[tp], "--kv", MODES[tp])
        return build_bundle(f"tiny-gpu-tp{tp}", eight_heads, *GPU, *LIMITS, *mode, "--tp", str(tp))

    return build


@pytest.fixture(scope="session")
def expected(build_bundle: Callable[..., Path], eight_heads: Path) -> Callable[[str], NDArray[np.float32]]:
    """`expected(mode)` gives the logits after each of IDS, of one rank on the cpu."""

    @functools.cache
    def compute(mode: str) -> NDArray[np.float32]:
        bundle = build_bundle(f"tiny-gpu-8-heads-{mode}", eight_heads, *LIMITS, "--act", mode, "--kv", mode)
        with boot(bundle, BootOptions(golden_check=False)) as model:
            return logits_of(model, IDS)

    return compute


@pytest.fixture
def make_ranks(make_hip: MakeHip) -> MakeRanks:
    """`make(count)` starts a machine with so many MI300X."""
    return lambda count: register(make_hip(*[MI300X] * count))


def on_device(standin: HipStandIn, model: Model, rank: int, name: str, count: int) -> list[int]:
    """Returns i32 elements of an io field as they are on a rank's device."""
    field = next(field for field in model.memory.io if field.name == name)
    address = model.driver._ranks[rank].bases[Region.IO] + field.offset  # type: ignore[attr-defined]
    found: list[int] = standin.machine.devices[rank].memory.read(address, 4 * count).view(np.int32).tolist()
    return found


@pytest.mark.parametrize(("tp", "executor"), [(2, "graph"), (2, "launch"), (4, "graph"), (8, "launch")])
def test_ranks_compute_what_one_rank_on_the_cpu_does(
    tp: int,
    executor: str,
    build_ranks: Callable[[int], Path],
    expected: Callable[[str], NDArray[np.float32]],
    make_ranks: MakeRanks,
) -> None:
    bundle = build_ranks(tp)
    standin = make_ranks(tp)
    with boot(bundle, BootOptions(executor=executor, kv_tokens=64, golden_check=tp == 2)) as model:
        assert f"{tp} rank(s)" in model.ledger.rows["device"].note
        ours = logits_of(model, IDS)
        greedy, drawn = Chunk(IDS[:4], 0, [0]), Chunk(IDS[4:7], 0, [1], sampling=Sampling(1.0, seed=7))
        sampled = model.step([greedy, drawn]).sampled
        assert [on_device(standin, model, rank, "sampled", 2) for rank in range(tp)] == [sampled] * tp
        whole = model.memory.max_requests * model.memory.logits_stride
        logits = [on_device(standin, model, rank, "logits", whole) for rank in range(tp)]
        assert logits == [logits[0]] * tp, "every rank has the same bits"
    check(ours, expected(MODES[tp]), MODES[tp])


def test_greedy_steps_exchange_tokens_instead_of_logits(
    build_ranks: Callable[[int], Path], make_ranks: MakeRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tokens and the same state as with whole logits, on every rank; whatever else a row asks needs those."""
    bundle, standin = build_ranks(2), make_ranks(2)
    with boot(bundle, BootOptions(executor="graph", kv_tokens=64, golden_check=False)) as model:
        ran: list[str] = []
        run = model.driver.run

        def noted(*graphs: Any, changed: Collection[str] = ()) -> None:
            ran.extend(graph.plan.family for graph in graphs)
            run(*graphs, changed=changed)

        monkeypatch.setattr(model.driver, "run", noted)

        def families(step: Callable[[Sequence[Chunk]], StepResult], *batch: Chunk) -> tuple[list[str], StepResult]:
            ran.clear()
            result = step(batch)
            return [*ran], result

        def run_packed(batch: Sequence[Chunk]) -> StepResult:
            return model.run(model.prepare(batch))

        prompts = Chunk(IDS[:4], 0, [0], slot=1), Chunk(IDS[4:7], 0, [1], slot=0)
        names, whole = families(model.step, *prompts)
        assert names == ["forward", "sample"]
        names, short = families(run_packed, *prompts)
        assert names == ["forward", "greedy"]
        assert short.sampled == whole.sampled
        with pytest.raises(UsageError, match="logits row 1 of a step that left none"):
            short.logits(1)
        for rank in range(2):
            assert on_device(standin, model, rank, "last_token", 2) == whole.sampled[::-1]
            vocab = model.manifest.model.vocab_size
            counts = on_device(standin, model, rank, "token_counts", 2 * vocab)
            drawn = [counts[slot * vocab + token] for slot, token in ((1, whole.sampled[0]), (0, whole.sampled[1]))]
            assert (drawn, sum(counts)) == ([2, 2], 4), "each step counted its tokens"
        decoding = [Chunk([-1 - slot], start, [block], slot=slot) for slot, start, block in ((1, 4, 0), (0, 3, 1))]
        names, short = families(run_packed, *decoding)
        assert names == ["forward", "greedy"]
        rereading = [replace(chunk, tokens=[token]) for chunk, token in zip(decoding, whole.sampled, strict=True)]
        assert short.sampled == model.step(rereading).sampled
        others = replace(prompts[1], sampling=Sampling(1.0, seed=7))
        assert families(run_packed, prompts[0], others)[0] == ["forward", "sample"]


def test_the_golden_check_finds_ranks_that_agree_on_another_token(
    build_ranks: Callable[[int], Path], make_ranks: MakeRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, standin = build_ranks(2), make_ranks(2)
    with boot(bundle, BootOptions(executor="launch", kv_tokens=64, golden_check=False)) as model:
        share = next(field for field in model.memory.io if field.name == "logits_share")
        address = model.driver._ranks[1].bases[Region.IO] + share.offset  # type: ignore[attr-defined]
        run = model.driver.run

        def disturbed(*graphs: Any, changed: Collection[str] = ()) -> None:
            if graphs[0].plan.family == "greedy":
                standin.machine.devices[1].memory.write(address, np.full(16, 1e30, np.float32).view(np.uint8))
            run(*graphs, changed=changed)

        monkeypatch.setattr(model.driver, "run", disturbed)
        first = share.count // model.memory.max_requests
        with pytest.raises(GoldenMismatchError, match=rf"golden 0, step 0: ranks agree on \[{first}\], logits say"):
            check_golden(model, model.manifest.goldens[0], "golden 0")


def impatient(plans: Iterator[Plan], kernels: Mapping[str, Kernel]) -> Iterator[Plan]:
    """Yields plans whose launches poll for other ranks a few hundred times only."""
    for plan in plans:
        segments = []
        for segment in plan.segments:
            launches = []
            for launch in segment.launches:
                args = bytearray(launch.args)
                for argument in kernels[launch.symbol].arguments:
                    if argument.name == "max_polls":
                        struct.pack_into("<i", args, argument.offset, 300)
                launches.append(replace(launch, args=bytes(args)))
            segments.append(replace(segment, launches=tuple(launches)))
        yield replace(plan, segments=tuple(segments))


@pytest.fixture
def without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes kernels and the host give up on a rank soon."""
    read = boot_device._read

    def impatiently(bundle: Bundle, plans: Any, kernels: Any) -> Iterator[Plan]:
        return impatient(read(bundle, plans, kernels), kernels)

    monkeypatch.setattr(boot_device, "_read", impatiently)
    monkeypatch.setattr(rank_group, "GRACE_SECONDS", 3)


STALLED = (
    r"rank 0 waited in vain for rank 1, in block \d+ of rank 0 of 2, plan forward-t4-r4 of hip:gfx942:"
    r" all_reduce_\w+, launch 0 of repeat 0, \d+ x 1 x 1 blocks; rank 1 still runs"
)


@pytest.mark.usefixtures("without_patience")
def test_a_rank_that_stalls_stops_all_ranks(build_ranks: Callable[[int], Path], make_ranks: MakeRanks) -> None:
    bundle, standin = build_ranks(2), make_ranks(2)
    with boot(bundle, BootOptions(executor="graph", kv_tokens=64, golden_check=False)) as model:
        model.step([Chunk(IDS[:1], 0, [0])])
        standin.machine.devices[1].stalled = True
        started = time.monotonic()
        with pytest.raises(RankStalledError, match=STALLED) as caught:
            model.step([Chunk(IDS[:4], 0, [0])])
        assert time.monotonic() - started < 60
        assert caught.value.exit_code == 7
        standin.machine.devices[1].stalled = False
        with pytest.raises(RankStalledError, match="waited in vain"):  # whatever the others are told now
            model.step([Chunk(IDS[:1], 0, [0])])
        ((_, work),) = model.driver._group._lost  # type: ignore[attr-defined]
        assert work.wait(60)
    assert not standin.machine.leaks()


@pytest.mark.usefixtures("without_patience")
def test_a_rank_that_never_ends_is_left_behind(build_ranks: Callable[[int], Path], make_ranks: MakeRanks) -> None:
    """The other rank's memory is freed; that of the one that hangs goes with the process."""
    bundle, standin = build_ranks(2), make_ranks(2)
    model = boot(bundle, BootOptions(executor="launch", kv_tokens=64, golden_check=False))
    threads = [rank.thread._thread for rank in model.driver._ranks]  # type: ignore[attr-defined]
    standin.machine.devices[1].stalled = True
    with pytest.raises(RankStalledError):
        model.step([Chunk(IDS[:4], 0, [0])])
    model.close()
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert standin.machine.devices[0].memory.used == 0
    assert standin.machine.devices[1].memory.used > 0
    standin.machine.devices[1].stalled = False
    threads[1].join(60)
    standin.machine.forget()


@pytest.mark.usefixtures("without_patience")
def test_a_crash_is_reported_rather_than_the_wait_for_it(
    build_ranks: Callable[[int], Path], make_ranks: MakeRanks
) -> None:
    bundle, standin = build_ranks(2), make_ranks(2)
    with boot(bundle, BootOptions(executor="launch", kv_tokens=64, golden_check=False)) as model:
        model.step([Chunk(IDS[:1], 0, [0])])
        tables = next(field for field in model.memory.io if field.name == "block_tables")
        address = model.driver._ranks[1].bases[Region.IO] + tables.offset  # type: ignore[attr-defined]
        standin.machine.devices[1].memory.write(address, np.array([1 << 20], np.int32).view(np.uint8))
        with pytest.raises(DeviceFaultError, match=r"running plan forward-t1-r1 on rank 1 failed"):
            model.driver.run(model._forward.graphs[0])


def test_a_rank_of_another_bundle_is_found_out(
    build_ranks: Callable[[int], Path], make_ranks: MakeRanks, tmp_path: Path
) -> None:
    bundle, _ = build_ranks(2), make_ranks(2)
    mixed = tmp_path / "mixed"
    shutil.copytree(bundle, mixed)
    shutil.copyfile(bundle / "blobs" / "rank-0.bin", mixed / "blobs" / "rank-1.bin")
    for options, error in (
        (BootOptions(), GoldenMismatchError),
        (BootOptions(verify_weights=True), DigestMismatchError),
    ):
        with pytest.raises(error) as caught:
            boot(mixed, replace(options, kv_tokens=64))
        assert caught.value.exit_code == 4


def test_more_ranks_than_devices_are_refused(build_ranks: Callable[[int], Path], make_ranks: MakeRanks) -> None:
    bundle, _ = build_ranks(2), make_ranks(1)
    with pytest.raises(DeviceNotFoundError, match=r"the bundle has 2 rank\(s\), this machine 1 visible") as caught:
        boot(bundle, BootOptions(target="hip:gfx942"))
    assert caught.value.exit_code == 7


def test_a_missing_peer_is_refused_with_the_topology(
    build_ranks: Callable[[int], Path], make_ranks: MakeRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = build_ranks(2), make_ranks(2)
    monkeypatch.setattr(HipLibrary, "can_access_peer", lambda _self, one, other: (one, other) != (1, 0))
    with pytest.raises(UnsupportedHostError, match="reach each other's memory: 1 does not reach 0;") as caught:
        boot(bundle, BootOptions(target="hip:gfx942"))
    assert caught.value.exit_code == 3


def test_blocks_that_wait_for_peers_must_all_be_resident(build_ranks: Callable[[int], Path]) -> None:
    bundle = open_bundle(build_ranks(2))
    plans = [plan for entry, plan in bundle.plans("hip:gfx942") if entry.family == "forward"]
    blocks = {
        launch.grid[0]
        for plan in plans
        for segment in plan.segments
        for launch in segment.launches
        if launch.flags & LaunchFlag.GROUP_BARRIER
    }
    assert len(blocks) == 1, "counters of blocks advance alike only if there always are as many"
    for plan in plans:
        check_resident(plan, lambda _symbol: max(blocks))
        with pytest.raises(UnsupportedHostError, match=rf"{plan.family}-t{plan.tokens}.*: all_reduce_\w+ waits for"):
            check_resident(plan, lambda _symbol: max(blocks) - 1)


def test_a_device_is_asked_how_many_blocks_it_holds(
    build_ranks: Callable[[int], Path], make_ranks: MakeRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = build_ranks(2), make_ranks(2)
    monkeypatch.setattr("tests.emulated.standin.calls.MOST_THREADS", 0)
    with pytest.raises(UnsupportedHostError, match=r"all_reduce_\w+ waits for .* in \d+ blocks at once, .* holds 0 of"):
        boot(bundle, BootOptions(kv_tokens=64))


@pytest.mark.parametrize(
    ("tp", "error", "words"),
    [("3", 2, "--tp 3 does not divide the model"), ("16", 2, "--tp 16 does not divide the model")],
)
def test_numbers_of_ranks_that_cannot_be_are_refused(
    tp: str, error: int, words: str, eight_heads: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(eight_heads), "-o", str(tmp_path / "bundle"), *GPU, "--tp", tp]) == error
    assert words in capfd.readouterr().err
