"""Collective kernels of several ranks, their workgroups interleaved at random, their stores under way for a while."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from paiton_artifacts.errors import UnsupportedShapeError
from paiton_kernels.gpu.all_gather import ALL_GATHER
from paiton_kernels.gpu.all_reduce import ALL_REDUCE
from paiton_kernels.gpu.all_reduce_cases import reduced
from paiton_kernels.gpu.argmax import ARGMAX
from paiton_kernels.gpu.comm import LINE, CommLayout
from paiton_kernels.gpu.devices import target_named
from paiton_kernels.gpu.norm_cases import normed
from paiton_kernels.gpu.spec import Config, Constant, GpuKernelSpec
from tests.emulated.cdna import Kernel
from tests.emulated.group import Group
from tests.emulated.harness import AMD_TARGETS, ORDERS, check_case, configs_of
from tests.numerics import assert_close

GFX942 = target_named("hip:gfx942")
CALLS = int(os.environ.get("PAITON_EMULATED_ALL_REDUCES", "3"))
"""All-reduces of each size of a group in random orders, beside those of the other tests."""

HIDDEN, TOKENS, BLOCKS = 512, 3, 2
ONE = Config.of(2, 1, SHOTS=1, SPLIT=1)
SPLIT = Config.of(2, 1, SHOTS=1, SPLIT=2)
TWO = Config.of(2, 1, SHOTS=2, SPLIT=1)
NORMED: dict[str, Constant] = {
    "HIDDEN": HIDDEN,
    "WIRE": "FP32",
    "MODE": "ADD",
    "NORM": 1,
    "ROWS": "TOKENS",
    "OUT": "BF16",
    "SCALE": "NONE",
    "CLEAR": 0,
}
CODED: dict[str, Constant] = {**NORMED, "WIRE": "BF16", "MODE": "STORE", "OUT": "FP8", "SCALE": "ROW", "CLEAR": 1}


def small_layout(tp: int, rows: int = 1) -> CommLayout:
    """Channels that hold so many rows: one makes several exchanges of a launch."""
    return CommLayout(tp, BLOCKS, rows * tp * HIDDEN * 4)


@dataclass(frozen=True)
class Call:
    """One all-reduce with all ranks' arrays, and what must come out of it."""

    config: Config
    constants: Mapping[str, Constant]
    arrays: list[dict[str, NDArray[Any]]]
    stream: NDArray[np.float64]
    out: NDArray[np.float64]

    @classmethod
    def of(cls, random: np.random.Generator, tp: int, config: Config, constants: Mapping[str, Constant]) -> Call:
        """Returns a call on random numbers of many magnitudes, so that another order of additions shows."""
        tokens = int(random.integers(TOKENS + 1))
        shape = TOKENS, HIDDEN
        parts = [
            (random.standard_normal(shape) * 10.0 ** random.uniform(-3, 3, shape)).astype(np.float32) for _ in range(tp)
        ]
        x = random.standard_normal(shape).astype(np.float32)
        weight = random.uniform(0.5, 2, HIDDEN).astype(ml_dtypes.bfloat16)
        coded = constants["OUT"] == "FP8"
        arrays = [
            {
                "counts": np.array([tokens, 1, 1, 0], np.int32),
                "part": part,
                "x": x.copy(),
                "weight": weight,
                "out": np.zeros(shape, np.uint8 if coded else ml_dtypes.bfloat16),
                "row_scale": np.zeros(TOKENS, np.float32),
                "clear": np.ones(TOKENS, np.float32),
                "semaphores": np.zeros(TOKENS, np.int32),
            }
            for part in parts
        ]
        stream = reduced(parts, x if constants["MODE"] == "ADD" else None, str(constants["WIRE"]))
        out, _ = normed(stream, weight, str(constants["SCALE"]), 0.0)
        return cls(config, constants, arrays, stream[:tokens], out[:tokens])

    def check(self) -> None:
        """Compares the first rank with float64, and every rank with the first, bit by bit."""
        first, tokens = self.arrays[0], len(self.stream)
        two_roundings = self.constants["WIRE"] == "BF16" and self.config is TWO
        assert_close(first["x"][:tokens], self.stream, "bf16" if two_roundings else "f32")
        if self.constants["OUT"] == "BF16":
            assert_close(first["out"][:tokens].astype(np.float64), self.out, "bf16")
        for other in self.arrays[1:]:
            for name in ("x", "out", "row_scale", "clear", "semaphores"):
                assert first[name].tobytes() == other[name].tobytes(), name


def run_calls(group: Group, random: np.random.Generator, calls: list[Call]) -> None:
    """Runs calls, queued on every rank one after the other, and checks them."""
    for call in calls:
        group.submit(ALL_REDUCE, call.config, call.constants, call.arrays, {"eps": 1e-5})
    group.run(Random(int(random.integers(1 << 32))))
    for call in calls:
        call.check()
    assert not any(errors.any() for errors in group.errors)


@pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.arch)
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_all_ranks_get_the_same_sums(tp: int, target: Any) -> None:
    random = np.random.default_rng(tp)
    group = Group(target, small_layout(tp))
    for constants in (NORMED, CODED):
        configs = [ONE, TWO] if tp == 8 else [ONE, SPLIT, TWO, ONE, TWO]
        run_calls(group, random, [Call.of(random, tp, config, constants) for config in configs])


def test_a_captured_launch_is_replayed() -> None:
    """The same arguments again and again, an odd number of times: what changes from call to call is in memory."""
    random = np.random.default_rng(1)
    group = Group(GFX942, small_layout(2, rows=2))
    call = Call.of(random, 2, SPLIT, {**NORMED, "MODE": "STORE"})
    for _ in range(5):
        run_calls(group, random, [call])


@pytest.mark.parametrize("config", [ONE, TWO], ids=["one-shot", "two-shot"])
def test_numbers_of_exchanges_wrap_around(config: Config) -> None:
    random = np.random.default_rng(3)
    group = Group(GFX942, small_layout(2))
    for comm in group.comm:  # as after 2**31 - 2 exchanges, whose flags are still up
        words = comm[: group.layout.header_bytes].view(np.int32).reshape(2, BLOCKS, LINE // 4)
        words[0, :, 0] = words[1, :, :2] = 2**31 - 2
    run_calls(group, random, [Call.of(random, 2, config, NORMED) for _ in range(4)])


def test_a_stalled_rank_ends_the_others_with_an_error() -> None:
    random = np.random.default_rng(4)
    group = Group(GFX942, small_layout(4), max_polls=50_000)
    run_calls(group, random, [Call.of(random, 4, ONE, NORMED) for _ in range(2)])
    group.max_polls = 30
    calls = [Call.of(random, 4, config, NORMED) for config in (ONE, TWO)]
    for call in calls:
        for arrays in call.arrays:
            arrays["counts"][0] = TOKENS
        group.submit(ALL_REDUCE, call.config, call.constants, call.arrays, {"eps": 1e-5}, stalled=[2])
    before = [{name: array.copy() for name, array in arrays.items()} for arrays in calls[0].arrays]
    group.run(Random(4))
    for rank in (0, 1, 3):
        code, launch, peer, block = group.errors[rank].tolist()
        assert (code, launch, peer) == (1, 3, 2)
        assert 0 <= block < BLOCKS
        assert np.array_equal(calls[0].arrays[rank]["x"], before[rank]["x"]), "a sum without all ranks was stored"
        launches = group.comm[rank][: BLOCKS * LINE].view(np.int32).reshape(BLOCKS, -1)[:, 1]
        assert launches.tolist() == [4] * BLOCKS, "launches are counted after an error too"
    assert not group.errors[2].any()


def test_the_emulator_finds_what_a_missing_wait_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wait of every wave in front of the barrier, flags overtake data: the model of delays shows it."""
    monkeypatch.setattr(
        "tests.emulated.group.Kernel",
        lambda text, arch: Kernel(re.sub(r"s_waitcnt vmcnt\(0\)\nv_mov", "v_mov", text), arch),
    )
    random = np.random.default_rng(5)
    group = Group(GFX942, small_layout(2))
    failed = 0
    for _ in range(40):
        try:
            run_calls(group, random, [Call.of(random, 2, ONE, NORMED)])
        except AssertionError:
            failed += 1
    assert failed


@pytest.mark.parametrize("tp", [2, 8])
def test_logits_are_gathered(tp: int) -> None:
    random = np.random.default_rng(tp)
    share, stride = 100, 112
    group = Group(GFX942, CommLayout(tp, BLOCKS, tp * 64 * 4))
    config = Config.of(1, 1, BLOCK=64)
    scalars = {"part_stride": stride, "out_stride": stride * tp}
    calls = []
    for rows in (3, 0, 2):
        arrays = [
            {
                "counts": np.array([5, 3, rows, 0], np.int32),
                "part": random.standard_normal((3, stride)).astype(np.float32),
                "out": np.zeros((3, stride * tp), np.float32),
            }
            for _ in range(tp)
        ]
        calls.append((rows, arrays))
        group.submit(ALL_GATHER, config, {"SHARE": share}, arrays, scalars)
    group.run(Random(tp))
    for rows, arrays in calls:
        whole = np.concatenate([own["part"][:rows, :share] for own in arrays], axis=1)
        for own in arrays:
            assert np.array_equal(own["out"][:rows, : share * tp], whole)
            assert not own["out"][rows:].any()
            assert not own["out"][:, share * tp :].any()
    assert not any(errors.any() for errors in group.errors)


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_many_random_arrivals(tp: int) -> None:
    """Launches of every form and of changing sizes queued behind each other: ranks drift apart by several of them."""
    random = np.random.default_rng([tp, 7])
    group = Group(GFX942, small_layout(tp))
    left = CALLS
    while left > 0:
        configs = random.permutation([0, 1, 2])[: min(3, left)]
        run_calls(group, random, [Call.of(random, tp, (ONE, SPLIT, TWO)[number], NORMED) for number in configs])
        left -= 3


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("spec", [ALL_REDUCE, ALL_GATHER, ARGMAX], ids=lambda spec: spec.family)
def test_a_group_of_one(spec: GpuKernelSpec, order: str | None) -> None:
    for target in AMD_TARGETS:
        for case in spec.cases(target):
            for config in configs_of(spec, case, target):
                check_case(spec, case, target, config, order=order)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"TP": 3}, "TP is 3"),
        ({"BLOCKS": 65}, "BLOCKS is 65"),
        ({"HIDDEN": 65536}, "HIDDEN is 65536"),
        ({"SCALE": "ROW"}, "OUT=BF16 with SCALE=ROW"),
        ({"NORM": 0, "CLEAR": 1}, "CLEAR=1 without a norm"),
    ],
)
def test_what_a_group_cannot_be_is_refused(changes: dict[str, Constant], reason: str) -> None:
    constants = {"TP": 2, "BLOCKS": 2, **NORMED, **changes}
    with pytest.raises(UnsupportedShapeError, match=reason):
        ALL_REDUCE.variant(ONE, **constants).require(GFX942)
