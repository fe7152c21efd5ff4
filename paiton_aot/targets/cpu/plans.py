"""Plans of the cpu target: buckets, drafts with settled addresses, and the memory plan that covers them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paiton_aot.program import Program
from paiton_aot.targets.addresses import Addresses
from paiton_aot.targets.cpu.lower import Lowering
from paiton_aot.targets.cpu.memory import io_fields
from paiton_aot.targets.draft import Bucket, Draft
from paiton_aot.targets.io_layout import end_of
from paiton_aot.targets.representative import representative
from paiton_aot.targets.scratch import allocate
from paiton_aot.targets.segments import chain
from paiton_aot.targets.shape import Shape
from paiton_artifacts.layout import TENSOR_ALIGNMENT, align_up
from paiton_artifacts.plan import Launch, Plan
from paiton_artifacts.schema import MemoryPlan, Tensor
from paiton_kernels.linear import DECODE_ROWS
from paiton_kernels.spec import KV_BLOCK_TOKENS, Variant

TARGET = "cpu"
PROFILE = "any"
MAX_TOKENS = 512
"""Tokens of the largest step, unless the build says otherwise."""


@dataclass(frozen=True, slots=True)
class CpuPlans:
    """All plans of a bundle's cpu target, the kernels that they launch, and the memory that they need."""

    plans: tuple[Plan, ...]
    variants: tuple[Variant, ...]  # by symbol
    memory: MemoryPlan


def buckets(max_tokens: int, max_requests: int) -> list[Bucket]:
    """Returns the step sizes that get a plan: tokens 1, 2, 4 ..., requests few or all of them."""
    chosen = []
    tokens = 1
    while tokens <= max_tokens:
        wide = min(tokens, max_requests)
        chosen += [Bucket(tokens, requests) for requests in sorted({min(wide, DECODE_ROWS), wide})]
        tokens *= 2
    return chosen


def make_plans(program: Program, tensors: Sequence[Tensor], weights_bytes: int, shape: Shape) -> CpuPlans:
    """Lowers `program` for every bucket."""
    table = {tensor.name: tensor for tensor in tensors}
    sizes = buckets(shape.max_tokens, shape.max_requests)
    shown = representative(program, tensors)
    forward = [(bucket, Lowering(shown, table, shape, bucket).forward()) for bucket in sizes]
    largest, joining = Bucket(shape.max_tokens, shape.max_requests), Bucket(1, 1)
    sampling = Lowering(program, table, shape, largest).sample()
    history = Lowering(program, table, shape, joining).history()
    chains = [*forward, (largest, sampling), (joining, history)]
    placed = [allocate(drafts) for _, drafts in forward]
    scratch_bytes = align_up(max(size for _, size in placed), TENSOR_ALIGNMENT)
    worker_bytes = max(
        draft.variant.worker_scratch_bytes(bucket.tokens) for bucket, drafts in chains for draft in drafts
    )
    memory = _memory_plan(shape, weights_bytes, scratch_bytes, align_up(worker_bytes, TENSOR_ALIGNMENT))
    settle = _Settler(table, memory, shape)
    plans = [
        settle.plan("forward", bucket, drafts, offsets)
        for (bucket, drafts), (offsets, _) in zip(forward, placed, strict=True)
    ]
    plans.append(settle.plan("sample", largest, sampling, {}))
    plans.append(settle.plan("history", joining, history, {}))
    variants = {draft.variant.symbol: draft.variant for _, drafts in chains for draft in drafts}
    return CpuPlans(tuple(plans), tuple(variants[symbol] for symbol in sorted(variants)), memory)


def _memory_plan(shape: Shape, weights_bytes: int, scratch_bytes: int, worker_scratch_bytes: int) -> MemoryPlan:
    fields, input_bytes = io_fields(shape)
    return MemoryPlan(
        target=TARGET,
        profile=PROFILE,
        compute_units=0,
        weights_bytes=weights_bytes,
        io_bytes=align_up(end_of(fields), TENSOR_ALIGNMENT),
        io_input_bytes=input_bytes,
        scratch_bytes=scratch_bytes,
        worker_scratch_bytes=worker_scratch_bytes,
        comm_bytes=shape.comm_bytes,
        kv_block_tokens=KV_BLOCK_TOKENS,
        kv_block_bytes=shape.kv_block_bytes,
        max_tokens=shape.max_tokens,
        max_requests=shape.max_requests,
        max_blocks_per_request=shape.max_blocks,
        logits_offset=shape.logits_offset,
        logits_stride=shape.logits_stride,
        io=fields,
    )


class _Settler:
    """Turns drafts into launches."""

    def __init__(self, tensors: Mapping[str, Tensor], memory: MemoryPlan, shape: Shape) -> None:
        self.memory = memory
        self.addresses = Addresses(tensors, memory, shape)

    def plan(self, family: str, bucket: Bucket, drafts: Sequence[Draft], offsets: Mapping[str, int]) -> Plan:
        segments = chain(drafts, lambda draft: self._launch(draft, offsets))
        return Plan(TARGET, PROFILE, family, bucket.tokens, bucket.requests, segments)

    def _launch(self, draft: Draft, offsets: Mapping[str, int]) -> Launch:
        variant = draft.variant
        constants = dict(draft.constants)
        if "worker_scratch" in draft.references:
            constants["worker_scratch_stride"] = self.memory.worker_scratch_bytes
        known = {arg.name for arg in variant.spec.args}
        args = variant.pack({name: value for name, value in constants.items() if name in known})
        places = {variant.arg_offset(name): reference for name, reference in draft.references.items()}
        return Launch(variant.symbol, draft.flags, args, self.addresses.relocations(places, offsets))
