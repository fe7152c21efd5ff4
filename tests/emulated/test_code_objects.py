"""What the compiled kernels of well-known models are made of, on every target: no device is needed to see that.

For each kernel of a model's step the space must offer, near its top, a configuration without faults: that is what the
static ranking then chooses among. Compiling them takes minutes once; PAITON_TEST_CACHE keeps the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from paiton_artifacts.errors import CompilerError
from paiton_kernels.gpu.compile import CompiledKernel, compile_all
from paiton_kernels.gpu.devices import DEFAULT_PROFILES, PROFILES, TARGETS, Profile, Target, target_named
from paiton_kernels.gpu.isa import IsaFacts
from paiton_kernels.gpu.ranking import WIDE_SHARE, isa_of, shortcomings
from paiton_kernels.gpu.resources import occupancy
from paiton_kernels.gpu.schedule import SCHEDULE, schedule_config
from paiton_kernels.gpu.spec import GpuVariant, Step
from paiton_kernels.gpu.tuning import Request, bucket_of
from paiton_kernels.gpu.tuning_shapes import kernel_requests, models_for

STEPS = (Step(1, 1), Step(1024, 16))
TRIES = 12
"""Configurations of a space within which one must be without faults."""

PRODUCTS = ("linear", "attention")
NARROW = 8
"""Bytes per lane of the loads of weights that NVIDIA's kernels convert to bf16."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A kernel of a model with the first configuration that has no faults.

    Attributes:
        variant: the kernel.
        code: what it compiled to.
        step: the bucket that it is for.
    """

    variant: GpuVariant
    code: CompiledKernel
    step: Step

    @property
    def facts(self) -> IsaFacts:
        """What its assembly shows."""
        return isa_of(self.code)

    @property
    def family(self) -> str:
        """Its family."""
        return self.variant.spec.family


def faults(variant: GpuVariant, code: CompiledKernel | None, step: Step, profile: Profile) -> list[str]:
    """Returns why a configuration is not to be chosen."""
    if code is None:
        return ["does not compile"]
    if code.spills or code.scratch_bytes:
        return [f"spills {code.spills}, {code.scratch_bytes} bytes of scratch"]
    try:
        occupancy(code, profile)
    except CompilerError as error:
        return [error.message]
    if variant.spec.family not in PRODUCTS:
        return []
    if converts_weights(variant) and target_named(code.target).backend == "cuda":
        return [] if narrowest(isa_of(code)) >= NARROW else [f"loads of {narrowest(isa_of(code))} bytes"]
    return shortcomings(isa_of(code), variant.spec.work(variant.values, step, profile))


def converts_weights(variant: GpuVariant) -> bool:
    """Returns whether weights of one byte become bf16 in registers."""
    values = variant.values
    return variant.spec.family == "linear" and values["A_SCALE"] == "NONE" and values["WEIGHT"] != "BF16"


def narrowest(facts: IsaFacts) -> int:
    """Returns the bytes per lane of the narrowest load of data in the loops that multiply."""
    return min((width for loop in facts.loops if loop.matrix for width in loop.loads), default=0)


def first_without_faults(
    requests: Iterable[Request], target: Target, profile: Profile, cache_dir: Path
) -> Mapping[str, Chosen]:
    """Returns kernels by symbol; fails with every fault of a request whose first TRIES configurations have some."""
    waiting = {request: list(request.space(profile)[:TRIES]) for request in requests}
    history: dict[Request, list[str]] = {request: [] for request in waiting}
    chosen = {}
    while any(waiting.values()):
        now = {request: request.variant(space.pop(0)) for request, space in waiting.items() if space}
        failures: dict[str, CompilerError] = {}
        codes = compile_all(now.values(), target, cache_dir, failures=failures)
        for request, variant in now.items():
            code = codes.get(variant.symbol)
            found = faults(variant, code, request.step, profile)
            if found or code is None:
                said = failures[variant.symbol].message if variant.symbol in failures else "; ".join(found)
                history[request].append(f"{variant.symbol}: {said}")
            else:
                chosen[variant.symbol] = Chosen(variant, code, request.step)
                del waiting[request]
    missing = [line for request in waiting for line in history[request]]
    assert not missing, "no configuration without faults:\n" + "\n".join(missing)
    return chosen


@pytest.fixture(scope="module", params=TARGETS.values(), ids=lambda target: target.level)
def target(request: pytest.FixtureRequest) -> Target:
    """Every GPU target."""
    found: Target = request.param
    return found


@pytest.fixture(scope="module")
def chosen(target: Target) -> Mapping[str, Chosen]:
    """The kernels of all models on a target."""
    profile = PROFILES[DEFAULT_PROFILES[target.name]]
    requests = {}
    for model in models_for(target):
        for step in STEPS:
            for request in kernel_requests(model, step):
                bucket, stands_for = bucket_of(request, profile)
                requests[request.spec.family, request.shape, bucket] = replace(request, step=stands_for)
    cache_dir = Path(os.environ["PAITON_CACHE"])
    found = dict(first_without_faults(requests.values(), target, profile, cache_dir))
    schedules = [
        SCHEDULE.variant(
            schedule_config(item.variant.config),
            **{name: value for name, value in item.variant.constants if name in SCHEDULE.constants},
        )
        for item in found.values()
        if item.family == "attention"
    ]
    compiled = compile_all(schedules, target, cache_dir)
    for variant in schedules:
        found[variant.symbol] = Chosen(variant, compiled[variant.symbol], STEPS[0])
    return found


def of_family(chosen: Mapping[str, Chosen], *families: str) -> list[Chosen]:
    found = [item for item in chosen.values() if item.family in families]
    assert found
    return found


def test_every_family_is_there(chosen: Mapping[str, Chosen], target: Target) -> None:
    families = {item.family for item in chosen.values()}
    expected = {"embed", "rope_table", "norm", "linear", "attention", "schedule"}
    assert families > expected | ({"quantize"} if target.fp8 else set())


def test_nothing_spills_and_everything_fits(chosen: Mapping[str, Chosen], target: Target) -> None:
    for symbol, item in chosen.items():
        assert (item.code.spills, item.code.scratch_bytes) == (0, 0), symbol
        assert item.code.shared_bytes <= target.max_shared_bytes, symbol
        assert occupancy(item.code, PROFILES[DEFAULT_PROFILES[target.name]]).blocks >= 1, symbol


def test_arguments_are_the_signature_and_two_unused_pointers(chosen: Mapping[str, Chosen], target: Target) -> None:
    for symbol, item in chosen.items():
        names = [arg.name for arg in item.code.args]
        assert names == [*item.variant.signature(target), "", ""], symbol
        assert item.code.threads == 32 * item.variant.config.num_warps * (target.warp_size // 32), symbol


def test_fp8_products_use_fp8_matrix_instructions(chosen: Mapping[str, Chosen], target: Target) -> None:
    if not target.fp8:
        assert not any(item.facts.uses("fp8") for item in chosen.values())
        return
    both = [item for item in of_family(chosen, "linear") if item.variant.values["A_SCALE"] != "NONE"]
    assert both
    for item in both:
        assert {kind.element for kind in item.facts.matrix} == {"fp8"}, item.variant.symbol
    mixed = [item for item in of_family(chosen, "linear") if item.variant.values["A_SCALE"] == "NONE"]
    for item in mixed + of_family(chosen, "attention"):
        assert {kind.element for kind in item.facts.matrix} == {"bf16"}, item.variant.symbol


def test_hot_loops_load_sixteen_bytes_at_a_time(chosen: Mapping[str, Chosen]) -> None:
    for item in of_family(chosen, *PRODUCTS):
        assert any(loop.matrix and loop.loads for loop in item.facts.loops), item.variant.symbol
        if item.facts.wide_share < WIDE_SHARE:
            # Triton lays weights that become a register operand out for the operand: eight bytes of FP8 are 16 of bf16.
            assert item.code.target.startswith("cuda"), item.variant.symbol
            assert converts_weights(item.variant), item.variant.symbol
            assert narrowest(item.facts) >= NARROW, item.variant.symbol


def test_hopper_promotes_fp8_sums(chosen: Mapping[str, Chosen], target: Target) -> None:
    loops = [loop for item in of_family(chosen, "linear") for loop in item.facts.loops]
    promoting = [loop for loop in loops if loop.promotions]
    assert bool(promoting) == (target.name == "cuda:sm_90")
    for loop in promoting:
        assert loop.f32_adds >= loop.promotions


def test_the_kv_cache_is_addressed_with_64_bits(chosen: Mapping[str, Chosen]) -> None:
    writers = [item for item in of_family(chosen, "linear") if item.variant.values["EPILOGUE"] == "ROPE"]
    assert writers
    for item in writers + of_family(chosen, "attention"):
        assert item.facts.wide_multiplies > 0, item.variant.symbol


def test_only_ranks_that_meet_synchronise_with_other_devices(chosen: Mapping[str, Chosen]) -> None:
    for symbol, item in chosen.items():
        meets = "comm_peers" in {arg.name for arg in item.variant.spec.args}
        assert (item.facts.system_scope > 0) == meets, symbol
