"""Seconds of a step on a GPU: the roofline of every launch of a plan, plus what launches and collectives cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from paiton_aot.predict.limits import Limits, all_gather_seconds, all_reduce_seconds, limits_of
from paiton_aot.targets.gpu.draft import GpuDraft
from paiton_aot.targets.gpu.plans import Chain
from paiton_aot.targets.segments import repeats
from paiton_artifacts.errors import UsageError
from paiton_artifacts.plan import LaunchFlag
from paiton_kernels.gpu.devices import Profile
from paiton_kernels.gpu.linear_shape import ELEMENT_BYTES


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step's predicted seconds, by what they go to.

    Attributes:
        tokens, requests: of the bucket.
        context: positions that each request attends to.
        launches: in all.
        memory: of launches that wait for device memory.
        matrix: of launches that the matrix units bound.
        communication: of launches in which ranks meet.
        overhead: of getting launches started.
        bytes: out of device memory, of one rank.
    """

    tokens: int
    requests: int
    context: int
    launches: int
    memory: float
    matrix: float
    communication: float
    overhead: float
    bytes: int

    @property
    def seconds(self) -> float:
        """The whole step's."""
        return self.memory + self.matrix + self.communication + self.overhead

    def as_json(self) -> dict[str, float]:
        """Returns seconds by part."""
        parts = ("memory", "matrix", "communication", "overhead", "seconds")
        counts = ("tokens", "requests", "context", "launches", "bytes")
        return {name: getattr(self, name) for name in counts} | {name: round(getattr(self, name), 7) for name in parts}


def step_time(chains: Sequence[Chain], profile: Profile, tokens: int, requests: int, context: int) -> StepTime:
    """Returns the predicted time of a step, forward and sampling, by the plans that it would run.

    Args:
        chains: of a profile, configured.
        profile: the device.
        tokens: of the step.
        requests: of the step, and rows that want logits.
        context: positions that each request attends to.

    Raises:
        UsageError: no plan holds such a step.
    """
    limits = limits_of(profile)
    drafts = [
        pair
        for family, size in (("forward", tokens), ("sample", 0))
        for pair in repeats(_chain(chains, family, size, requests).drafts)
    ]
    memory = matrix = communication = 0.0
    moved = 0
    for draft, count in drafts:
        work = draft.spec.work(draft.variant.values, replace(draft.step, context=context), profile)
        moved += count * work.bytes
        by_memory = work.bytes / limits.memory_rate
        if draft.flags & LaunchFlag.GROUP_BARRIER:  # published times of collectives include what they do to memory
            communication += count * max(by_memory, _communication(draft, limits))
            continue
        by_matrix = work.fp8_operations / limits.fp8_rate if work.fp8_operations else 0.0
        by_matrix += work.bf16_operations / limits.bf16_rate
        if by_matrix > by_memory:
            matrix += count * by_matrix
        else:
            memory += count * by_memory
    launches = sum(count for _, count in drafts)
    overhead = launches * limits.launch
    return StepTime(tokens, requests, context, launches, memory, matrix, communication, overhead, moved)


def _chain(chains: Sequence[Chain], family: str, tokens: int, requests: int) -> Chain:
    """Returns the smallest plan with room, as the runtime chooses it."""
    fitting = [
        chain
        for chain in chains
        if chain.family == family and chain.bucket.tokens >= tokens and chain.bucket.requests >= requests
    ]
    if not fitting:
        raise UsageError(
            f"no plan holds a step of {tokens} tokens and {requests} requests",
            hint="raise --max-num-batched-tokens or --max-num-seqs",
        )
    return min(fitting, key=lambda chain: (chain.bucket.tokens, chain.bucket.requests))


def _communication(draft: GpuDraft, limits: Limits) -> float:
    """Returns the seconds of a collective launch."""
    constants = draft.constants
    ranks = int(constants["TP"])
    if "HIDDEN" in constants:
        size = draft.step.tokens * int(constants["HIDDEN"]) * ELEMENT_BYTES[str(constants["WIRE"])]
        return all_reduce_seconds(size, ranks, limits)
    return all_gather_seconds(draft.step.requests * int(constants["SHARE"]) * 4, limits)
