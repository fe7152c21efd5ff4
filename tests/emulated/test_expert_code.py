"""Routing and the experts' launches: what their compiled code must look like on every target, and what specs say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from paiton_artifacts.errors import UnsupportedShapeError
from paiton_kernels.gpu.compile import compile_kernel
from paiton_kernels.gpu.devices import PROFILES, TARGETS, Target
from paiton_kernels.gpu.expert_linear import EXPERT_LINEAR
from paiton_kernels.gpu.isa import IsaFacts, read_isa
from paiton_kernels.gpu.linear_cases import BF16, GROUP, ROW, SILU, SILU_FP8, STATIC, STORE
from paiton_kernels.gpu.ranking import shortcomings
from paiton_kernels.gpu.route import ROUTE
from paiton_kernels.gpu.route_order import ROUTE_ORDER
from paiton_kernels.gpu.spec import Config, Constant, GpuKernelSpec, Step
from tests.emulated.harness import profile_of

_TRIES = 4
"""Configurations of a space within which one must be without faults."""

_QWEN3: dict[str, Constant] = {"EXPERTS": 128, "TOP_K": 8}
_MIXTRAL: dict[str, Constant] = {"EXPERTS": 8, "TOP_K": 2}
_UP: dict[str, Constant] = {**_QWEN3, "N": 1536, "K": 2048, "ROW_STRIDE": 2048, "INPUT": "TOKENS"}
_DOWN: dict[str, Constant] = {**_MIXTRAL, "N": 4096, "K": 14336, "ROW_STRIDE": 14336, "INPUT": "ENTRIES", **STORE}
_ROUTE: dict[str, Constant] = {
    **_QWEN3,
    "HIDDEN": 2048,
    "ROW_STRIDE": 2048,
    "NORMALISE": 1,
    "AMAX": 0,
    "CLEAR": 0,
    "TILE": 32,
    "ORDER": 1,
}


def _without_faults(spec: GpuKernelSpec, constants: Mapping[str, Constant], step: Step, target: Target) -> IsaFacts:
    """Returns facts of the first configuration that spills nothing and lacks nothing; fails where there is none."""
    found = []
    for config in spec.space(spec.full(constants), step, profile_of(target))[:_TRIES]:
        variant = spec.variant(config, **constants)
        kernel = compile_kernel(variant, target, Path(os.environ["PAITON_CACHE"]))
        facts = read_isa(kernel.assembly, target)
        lacking = shortcomings(facts, spec.work(variant.values, step, profile_of(target))) if facts.matrix else []
        if not (kernel.spills or kernel.scratch_bytes or lacking):
            return facts
        found.append(f"{variant.symbol}: {kernel.spills} spills, {kernel.scratch_bytes} bytes; {'; '.join(lacking)}")
    pytest.fail("\n".join(found))


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.level)
def test_kernels_are_without_faults(target: Target) -> None:
    fp8 = target.fp8
    up: dict[str, Constant] = {**_UP, **(STATIC if fp8 else BF16), **(SILU_FP8 if fp8 else SILU), "AMAX": 0}
    down: dict[str, Constant] = {**_DOWN, **(ROW if fp8 else BF16), "AMAX": 0}
    for constants, tokens in ((up, 1), (down, 2048)):
        facts = _without_faults(EXPERT_LINEAR, constants, Step(tokens, 1), target)
        assert facts.wide_multiplies > 0, "weights are not addressed with 64 bits"
        assert {kind.element for kind in facts.matrix} == {"fp8" if fp8 else "bf16"}
        assert all(loop.matrix for loop in facts.loops), "loads are loops over the lanes"
    _without_faults(ROUTE, {**_ROUTE, "OUT": "FP8" if fp8 else "BF16"}, Step(32, 32), target)
    _without_faults(ROUTE_ORDER, {**_QWEN3, "TILE": 32}, Step(2048, 32), target)


def test_a_grid_holds_whatever_experts_a_step_chooses() -> None:
    """As many tiles as the worst choice makes: every expert at least one entry, the rest in whole tiles."""
    profile, config = PROFILES["mi300x"], Config.of(4, 2, BLOCK_M=16, BLOCK_N=512, BLOCK_K=64, SPLIT_K=1)
    for tokens, tiles in (
        (1, 8),
        (4, 32),
        (16, 128),
        (17, 128),
        (32, 128 + (256 - 128) // 16),
        (2048, 128 + 16256 // 16),
    ):
        grid = EXPERT_LINEAR.grid({**_UP, **dict(config.values)}, Step(tokens, 1), profile)
        assert grid == (tiles * 3, 1, 1), tokens


def test_work_counts_the_experts_that_a_step_is_expected_to_choose() -> None:
    profile, values = PROFILES["mi300x"], {**_DOWN, **STATIC, "AMAX": 0, "SCALE_ROWS": 0}
    config = EXPERT_LINEAR.space(values, Step(1, 1), profile)[0]
    full = {**values, **dict(config.values)}
    one, many = (EXPERT_LINEAR.work(full, Step(tokens, 1), profile) for tokens in (1, 2048))
    matrix = 4096 * 14336
    assert one.fp8_operations == 2 * 2 * matrix
    assert 2 * matrix < one.bytes < 2.02 * matrix
    assert many.fp8_operations == 2 * 2048 * 2 * matrix
    assert 8 * matrix + 4096 * 14336 < many.bytes < 8 * matrix + 4096 * (14336 + 4 * 4096) + 8 * 4 * 4096 + 8


@pytest.mark.parametrize(
    ("spec", "constants", "reason"),
    [
        (ROUTE, {**_ROUTE, "OUT": "BF16", "HIDDEN": 72}, "HIDDEN is 72, not a multiple of 16"),
        (ROUTE, {**_ROUTE, "OUT": "BF16", "ROW_STRIDE": 2052}, "ROW_STRIDE is 2052"),
        (ROUTE, {**_ROUTE, "OUT": "FP8", "AMAX": 1}, "OUT=FP8 with AMAX=1"),
        (ROUTE, {**_ROUTE, "OUT": "BF16", "TILE": 128}, "TILE is 128"),
        (ROUTE, {**_ROUTE, "OUT": "BF16", "EXPERTS": 512}, "EXPERTS is 512, more than 256"),
        (ROUTE_ORDER, {**_MIXTRAL, "TILE": 16, "TOP_K": 9}, "TOP_K is 9 of 8 experts"),
        (
            EXPERT_LINEAR,
            {**_UP, **STATIC, "EPILOGUE": "ADD", "OUT": "FP32", "AMAX": 0},
            "EPILOGUE=ADD with INPUT=TOKENS",
        ),
        (EXPERT_LINEAR, {**_UP, **GROUP, **SILU, "N": 96, "AMAX": 0}, "N is 96, not a multiple of SCALE_ROWS=128"),
        (EXPERT_LINEAR, {**_UP, **STATIC, **SILU, "AMAX": 0, "TOP_K": 17}, "TOP_K is 17 of 128 experts"),
        (EXPERT_LINEAR, {**_UP, **STATIC, **SILU, "AMAX": 0, "K": 72, "ROW_STRIDE": 80}, "K is 72"),
    ],
)
def test_what_is_not_covered_is_refused(spec: GpuKernelSpec, constants: dict[str, Constant], reason: str) -> None:
    target, step = TARGETS["hip:gfx942"], Step(16, 16)
    known = {**constants, "EXPERTS": 128, "TOP_K": 8}
    config = spec.space(spec.full(known), step, profile_of(target))[0]
    with pytest.raises(UnsupportedShapeError, match=reason):
        spec.variant(config, **constants).require(target)


@pytest.mark.parametrize("spec", [ROUTE, EXPERT_LINEAR], ids=lambda spec: spec.family)
def test_different_constants_have_different_names(spec: GpuKernelSpec) -> None:
    names: dict[str, dict[str, Constant]] = {}
    for case in spec.cases(TARGETS["hip:gfx942"]):
        constants = spec.full(case.constants)
        assert names.setdefault(spec.name(constants), constants) == constants
    assert len(names) > 4
