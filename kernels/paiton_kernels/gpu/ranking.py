"""Which configuration is likely the fastest, predicted from the compiled code without a device.

A candidate is out if its code spills registers, or does not fit a compute unit. Among the others those come first that
load 16 bytes at a time where it counts, use the FP8 matrix instructions where the work is FP8, and promote Hopper's
imprecise accumulators. Then the least predicted time wins; on a tie the one that the family's space lists first.

The time of a launch, in seconds::

    blocks   = product of the grid
    units    = compute units;  load = ceil(blocks / units), the blocks of the busiest one (wave quantisation)
    passes   = max(DRAM bytes / bytes, matrix operations / operations) of one warp's pass through the hottest loop
    memory   = DRAM bytes / min(memory rate * MEMORY_EFFICIENCY, in flight / LATENCY)
    cache    = passes * bytes / (memory rate * CACHE_GAIN)         what is loaded again comes from a cache
    matrix   = max(matrix operations, passes * operations) / (matrix rate * MATRIX_EFFICIENCY * busy)
    issue    = (passes * instructions + warps * instructions outside of loops) * imbalance / issue rate
    time     = LAUNCH + depth * LATENCY + longest of the four (their sum without pipelining) + reduction

    in flight = min(blocks, units * resident) * warps of a block * bytes of a pass * depth
    depth     = passes that are loaded ahead: stages - 1, at least 1
    busy      = blocks / (units * load), the share of the units' time in which they have a block;  imbalance = 1 / busy
    reduction = workspace written and read through the caches, and one more latency for the last block, if there is one

What DRAM bytes and operations a launch needs says the family's `work`. An MFMA or wgmma states its shape, so work on
rows that pad a tile counts; a tcgen05 does not. Absolute times are rough; they rank tile shapes, splits and stages.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paiton_artifacts.errors import CompilerError
from paiton_kernels.gpu.compile import CompiledKernel
from paiton_kernels.gpu.devices import Profile, Target, target_named
from paiton_kernels.gpu.isa import IsaFacts, LoopFacts, read_isa
from paiton_kernels.gpu.resources import Occupancy, occupancy
from paiton_kernels.gpu.spec import GpuVariant, Step, Work

WIDE_SHARE = 0.9
"""Share of a loop's bytes that must be loaded 16 bytes at a time."""

LAUNCH = 2e-6
"""Seconds from one graph node to the next, before the first block's first instruction."""

MEMORY_EFFICIENCY = 0.85
"""Share of the peak memory rate that streaming kernels are reported to reach."""

MATRIX_EFFICIENCY = 0.7
"""Likewise for matrix instructions: the best published FP8 products reach 40-75 % of the peak."""

CACHE_GAIN = 2.5
"""Rate of the cache behind the compute units as a multiple of the memory's: 2 to 3.3 on the devices that we know."""

_LATENCY = {"hip": 800e-9, "cuda": 600e-9}
"""Seconds from a load to its data out of device memory, under load."""

_CLOCK = {"hip:gfx942": 2.1e9, "hip:gfx950": 2.4e9, "cuda:sm_80": 1.41e9, "cuda:sm_90": 1.75e9, "cuda:sm_100": 1.85e9}
_WARP_INSTRUCTIONS = {"hip": 1.0, "cuda": 4.0}
"""Warp instructions that a compute unit issues per cycle: four SIMDs of 16 lanes need four cycles for a wave of 64."""

VERSION = 1
"""Counts up whenever a choice may come out differently."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a launch is predicted to take.

    Attributes:
        seconds: in all.
        bound: what takes longest: "memory", "cache", "matrix" or "issue".
        occupancy: of a compute unit.
    """

    seconds: float
    bound: str
    occupancy: Occupancy


def predict(variant: GpuVariant, kernel: CompiledKernel, facts: IsaFacts, step: Step, profile: Profile) -> Prediction:
    """Returns the predicted time of a launch, by the formula at the top of this file.

    Raises:
        CompilerError: not one block fits a compute unit.
    """
    target = target_named(kernel.target)
    held = occupancy(kernel, profile)
    work = variant.spec.work(variant.values, step, profile)
    blocks = max(math.prod(variant.spec.grid(variant.values, step, profile)), 1)
    warps = -(-kernel.threads // target.warp_size)
    depth = max(variant.config.num_stages - 1, 1)
    busy = blocks / (profile.compute_units * math.ceil(blocks / profile.compute_units))
    loop = hottest_loop(facts)
    passes = _passes(work, loop) if loop else 0.0
    resident = min(blocks, profile.compute_units * held.blocks) * warps
    latency = _LATENCY[target.backend]

    parts = {
        "memory": work.bytes / _memory_rate(loop, resident, depth, latency, profile),
        "cache": passes * loop.load_bytes / (profile.memory_rate * CACHE_GAIN) if loop else 0.0,
        "matrix": _matrix_seconds(work, passes, loop, profile) / busy,
        "issue": _issue_seconds(facts, loop, passes, blocks * warps, target, profile) / busy,
    }
    bound = max(parts, key=lambda name: parts[name])
    overlapped = parts[bound] if variant.config.num_stages > 1 else sum(parts.values())
    seconds = LAUNCH + depth * latency + overlapped + _reduction_seconds(variant, step, profile, latency)
    return Prediction(seconds, bound, held)


def best(
    variants: Sequence[GpuVariant], kernels: Mapping[str, CompiledKernel], step: Step, profile: Profile
) -> tuple[GpuVariant, Prediction] | None:
    """Returns the variant that is predicted to be the fastest, and its prediction; None if none runs without spilling.

    Args:
        variants: that do the same, in the order in which ties are broken.
        kernels: by symbol; a variant that is missing here did not compile and is out.
        step: the bucket.
        profile: the device.
    """
    ranked = []
    for index, variant in enumerate(variants):
        kernel = kernels.get(variant.symbol)
        if kernel is None or kernel.spills or kernel.scratch_bytes or not _fits(kernel, profile):
            continue
        facts = isa_of(kernel)
        prediction = predict(variant, kernel, facts, step, profile)
        faults = shortcomings(facts, variant.spec.work(variant.values, step, profile))
        ranked.append(((len(faults), prediction.seconds, index), variant, prediction))
    if not ranked:
        return None
    _, variant, prediction = min(ranked, key=lambda item: item[0])
    return variant, prediction


def shortcomings(facts: IsaFacts, work: Work) -> list[str]:
    """Returns what a kernel's code lacks that a good configuration has."""
    found = []
    if facts.wide_share < WIDE_SHARE:
        found.append(f"loops load {facts.wide_share:.0%} of their bytes 16 at a time")
    if work.fp8_operations and not facts.uses("fp8"):
        found.append("no FP8 matrix instructions")
    if not all(loop.promoted for loop in facts.loops):
        found.append("FP8 accumulators are not promoted to f32")
    return found


def hottest_loop(facts: IsaFacts) -> LoopFacts | None:
    """Returns the loop that does most: by matrix instructions, then by bytes loaded; None without loops."""
    return max(facts.loops, key=lambda loop: (sum(loop.matrix.values()), loop.load_bytes), default=None)


_facts: dict[bytes, IsaFacts] = {}


def isa_of(kernel: CompiledKernel) -> IsaFacts:
    """Returns the facts of a kernel's assembly, remembered: reading it takes longer than the rest of a prediction."""
    digest = hashlib.sha256(kernel.code).digest()
    if digest not in _facts:
        _facts[digest] = read_isa(kernel.assembly, target_named(kernel.target))
    return _facts[digest]


def _fits(kernel: CompiledKernel, profile: Profile) -> bool:
    try:
        occupancy(kernel, profile)
    except CompilerError:
        return False
    return True


def _passes(work: Work, loop: LoopFacts) -> float:
    by_bytes = work.bytes / loop.load_bytes if loop.load_bytes else 0.0
    operations = work.fp8_operations + work.bf16_operations
    return max(by_bytes, operations / loop.operations if loop.operations else 0.0)


def _memory_rate(loop: LoopFacts | None, warps: int, depth: int, latency: float, profile: Profile) -> float:
    peak = profile.memory_rate * MEMORY_EFFICIENCY
    return min(peak, warps * loop.load_bytes * depth / latency) if loop and loop.load_bytes else peak


def _matrix_seconds(work: Work, passes: float, loop: LoopFacts | None, profile: Profile) -> float:
    padded = passes * loop.operations if loop else 0.0
    total = work.fp8_operations + work.bf16_operations
    if not total:
        return 0.0
    factor = max(1.0, padded / total)
    fp8 = work.fp8_operations / profile.fp8_rate if work.fp8_operations else 0.0
    return factor * (fp8 + work.bf16_operations / profile.bf16_rate) / MATRIX_EFFICIENCY


def _issue_seconds(
    facts: IsaFacts, loop: LoopFacts | None, passes: float, warps: int, target: Target, profile: Profile
) -> float:
    inside = loop.instructions if loop else 0
    outside = facts.instructions - sum(other.instructions for other in facts.loops)
    rate = _WARP_INSTRUCTIONS[target.backend] * _CLOCK[target.name] * profile.compute_units
    return (passes * inside + warps * outside) / rate


def _reduction_seconds(variant: GpuVariant, step: Step, profile: Profile, latency: float) -> float:
    needs = variant.spec.workspace(variant.values, step, profile)
    if not needs.get("semaphores"):
        return 0.0
    return 2 * latency + 2 * needs.get("workspace", 0) / (profile.memory_rate * CACHE_GAIN)
