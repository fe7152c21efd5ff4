"""Plans of the cpu target: buckets, drafts with settled addresses, and the memory plan that covers them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from paiton_aot.program import Program
from paiton_aot.targets.cpu.lower import Bucket, Lowering
from paiton_aot.targets.cpu.memory import Shape, io_extent, io_fields
from paiton_aot.targets.draft import Comm, Draft, Io, Kv, RankTimes, Reference, Scratch, Weight
from paiton_aot.targets.scratch import allocate
from paiton_aot.targets.segments import fold
from paiton_artifacts.layout import TENSOR_ALIGNMENT, Region, align_up
from paiton_artifacts.plan import Access, Launch, Plan, Relocation, RelocationKind
from paiton_artifacts.schema import MemoryPlan, Tensor
from paiton_kernels.linear import DECODE_ROWS
from paiton_kernels.spec import KV_BLOCK_TOKENS, Variant

TARGET = "cpu"
PROFILE = "any"
MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class CpuPlans:
    """All plans of a bundle's cpu target, the kernels that they launch, and the memory that they need."""

    plans: tuple[Plan, ...]
    variants: tuple[Variant, ...]  # by symbol
    memory: MemoryPlan


def buckets(max_requests: int) -> list[Bucket]:
    """Returns the step sizes that get a plan: tokens 1, 2, 4 ... 512, requests few or all of them."""
    chosen = []
    tokens = 1
    while tokens <= MAX_TOKENS:
        wide = min(tokens, max_requests)
        chosen += [Bucket(tokens, requests) for requests in sorted({min(wide, DECODE_ROWS), wide})]
        tokens *= 2
    return chosen


def make_plans(program: Program, tensors: Sequence[Tensor], weights_bytes: int, shape: Shape) -> CpuPlans:
    """Lowers `program` for every bucket."""
    table = {tensor.name: tensor for tensor in tensors}
    forward = [(bucket, Lowering(program, table, shape, bucket).forward()) for bucket in buckets(shape.max_requests)]
    largest = Bucket(shape.max_tokens, shape.max_requests)
    sampling = [(largest, Lowering(program, table, shape, largest).sample())]
    placed = [allocate(drafts) for _, drafts in forward]
    scratch_bytes = align_up(max(size for _, size in placed), TENSOR_ALIGNMENT)
    worker_bytes = max(
        draft.variant.worker_scratch_bytes(bucket.tokens) for bucket, drafts in forward + sampling for draft in drafts
    )
    memory = _memory_plan(shape, weights_bytes, scratch_bytes, align_up(worker_bytes, TENSOR_ALIGNMENT))
    settle = _Settler(table, memory, shape)
    plans = [
        settle.plan("forward", bucket, drafts, offsets)
        for (bucket, drafts), (offsets, _) in zip(forward, placed, strict=True)
    ]
    plans += [settle.plan("sample", bucket, drafts, {}) for bucket, drafts in sampling]
    variants = {draft.variant.symbol: draft.variant for _, drafts in forward + sampling for draft in drafts}
    return CpuPlans(tuple(plans), tuple(variants[symbol] for symbol in sorted(variants)), memory)


def _memory_plan(shape: Shape, weights_bytes: int, scratch_bytes: int, worker_scratch_bytes: int) -> MemoryPlan:
    fields = io_fields(shape)
    return MemoryPlan(
        target=TARGET,
        weights_bytes=weights_bytes,
        io_bytes=align_up(fields[-1].offset + io_extent(fields[-1]), TENSOR_ALIGNMENT),
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
    """Turns references into relocations."""

    def __init__(self, tensors: Mapping[str, Tensor], memory: MemoryPlan, shape: Shape) -> None:
        self.tensors = tensors
        self.memory = memory
        self.shape = shape
        self.io = {field.name: field for field in memory.io}

    def plan(self, family: str, bucket: Bucket, drafts: Sequence[Draft], offsets: Mapping[str, int]) -> Plan:
        segments = []
        for in_layers, group in groupby(drafts, key=lambda draft: draft.layer is not None):
            chain = list(group)
            if in_layers:
                by_layer = [tuple(layer) for _, layer in groupby(chain, key=lambda draft: draft.layer)]
                layers = [tuple(self._launch(draft, offsets) for draft in layer) for layer in by_layer]
            else:
                layers = [tuple(self._launch(draft, offsets) for draft in chain)]
            segments += fold(layers)
        return Plan(TARGET, PROFILE, family, bucket.tokens, bucket.requests, tuple(segments))

    def _launch(self, draft: Draft, offsets: Mapping[str, int]) -> Launch:
        variant = draft.variant
        constants = dict(draft.constants)
        if "worker_scratch" in draft.references:
            constants["worker_scratch_stride"] = self.memory.worker_scratch_bytes
        known = {arg.name for arg in variant.spec.args}
        args = variant.pack({name: value for name, value in constants.items() if name in known})
        relocations = [
            self._relocation(variant.arg_offset(name), reference, offsets)
            for name, reference in draft.references.items()
        ]
        relocations.sort(key=lambda relocation: relocation.arg_offset)
        return Launch(variant.symbol, draft.flags, args, tuple(relocations))

    def _relocation(self, arg: int, reference: Reference, offsets: Mapping[str, int]) -> Relocation:
        local = RelocationKind.LOCAL
        match reference:
            case Weight(name):
                tensor = self.tensors[name]
                return Relocation(arg, local, Region.WEIGHTS, Access.READ, 0, tensor.offset, 0, tensor.size)
            case Io(name, access):
                field = self.io[name]
                return Relocation(arg, local, Region.IO, access, 0, field.offset, 0, io_extent(field))
            case Scratch(value, size, access):
                return Relocation(arg, local, Region.SCRATCH, access, 0, offsets[value], 0, size)
            case Kv(layer, access):
                size = self.shape.kv_layer_bytes
                return Relocation(arg, local, Region.KV, access, 0, layer * size, 0, size)
            case Comm(offset, size, access, rank):
                kind = local if rank is None else RelocationKind.PEER
                return Relocation(arg, kind, Region.COMM, access, rank or 0, offset, 0, size)
            case RankTimes(factor):
                return Relocation(arg, RelocationKind.RANK, Region.WEIGHTS, Access.NONE, 0, factor, 0, 0)
            case _:  # WorkerScratch: the first of the areas, one per worker
                size, access = self.memory.worker_scratch_bytes, Access.READ | Access.WRITE
                return Relocation(arg, local, Region.SCRATCH, access, 0, self.memory.scratch_bytes, 0, size)
