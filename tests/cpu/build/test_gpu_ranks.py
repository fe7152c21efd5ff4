"""Plans of GPU targets for ranks that share a model: where they meet, in how many launches, and through what memory."""

from __future__ import annotations

import pytest

from paiton_aot.targets.segments import unroll
from paiton_artifacts.kernel_table import check_launches
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import SAMPLING_FAMILIES, LaunchFlag, RelocationKind, check_plan, decode_plan, encode_plan
from paiton_kernels.gpu.sample import SAMPLE_CHAIN
from paiton_runtime.drivers.meetings import meetings_of
from tests.cpu.build.test_gpu_plans import MODES, Planned
from tests.cpu.build.test_weights import SMOLLM2

RANKS = 3  # the only number that divides SmolLM2's heads


@pytest.fixture(scope="module", params=MODES)
def planned(request: pytest.FixtureRequest) -> Planned:
    return Planned(RANKS, **MODES[request.param])


def test_a_decode_layer_takes_at_most_seven_launches(planned: Planned) -> None:
    forward = [plan for plan in planned.plans if plan.family == "forward"]
    for plan in forward:
        sums = [launch for segment in plan.segments for launch in unroll(segment) if launch.symbol[:3] == "all"]
        outside = sum(len(segment.launches) for segment in plan.segments if segment.repeat == 1) - 7
        if plan.tokens <= 64:
            assert plan.launches == 7 * SMOLLM2.layers + outside
            assert outside < 10, "only the first layer, which does not add to anything, is no repetition"
        assert len(sums) == 2 * SMOLLM2.layers + 1, "the embedding, and two a layer"
        assert len(meetings_of(plan, rank=1)) == len(sums)


def test_ranks_meet_in_the_same_blocks_and_know_no_addresses(planned: Planned) -> None:
    memory = planned.configured.memory
    grids = set()
    for plan in planned.plans:
        assert decode_plan(encode_plan(plan)) == plan
        check_plan(plan, memory.extents, RANKS, planned.kernels)
        check_launches(plan, planned.kernels)
        for launch in (launch for segment in plan.segments for launch in segment.launches):
            kinds = {(relocation.kind, relocation.region) for relocation in launch.relocations}
            assert not any(kind is RelocationKind.PEER for kind, _ in kinds)
            meets = bool(launch.flags & LaunchFlag.GROUP_BARRIER)
            assert ((RelocationKind.LOCAL, Region.COMM) in kinds) == meets
            if meets:
                grids.add(launch.grid)
    assert len(grids) == 1, "blocks count their launches, so there must always be as many"


def test_what_ranks_know_of_each_other_is_the_devices(planned: Planned) -> None:
    fields = {field.name: field for field in planned.configured.memory.io}
    assert (fields["comm_peers"].dtype, fields["comm_peers"].count) == ("u64", RANKS)
    assert fields["comm_error"].count >= 4
    assert min(fields[name].offset for name in ("comm_peers", "comm_error")) > fields["sampled"].offset


def test_every_rank_samples_what_all_of_them_know(planned: Planned) -> None:
    """Of logits that are gathered first; or, of greedy rows, of the best of each share, in a single launch."""
    launches = {
        (plan.family, plan.requests): [launch for segment in plan.segments for launch in segment.launches]
        for plan in planned.plans
        if plan.family in SAMPLING_FAMILIES
    }
    assert launches.keys() == {(family, rows) for family in SAMPLING_FAMILIES for rows in (16, 32)}
    for (family, _), (first, *others) in launches.items():
        assert first.symbol.startswith("argmax" if family == "greedy" else "all_gather")
        assert first.flags is LaunchFlag.GROUP_BARRIER
        assert len(others) == (0 if family == "greedy" else len(SAMPLE_CHAIN))
        assert not any(launch.flags for launch in others)


def test_one_rank_has_neither_comm_region_nor_greedy_plans() -> None:
    planned = Planned()
    memory = planned.configured.memory
    assert memory.comm_bytes == 0
    assert memory.logits_region is Region.IO
    assert {plan.family for plan in planned.plans} == {"forward", "sample", "history"}
    assert "logits_share" not in {field.name for field in memory.io}
