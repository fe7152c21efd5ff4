"""Plans of a GPU target for one device profile: drafts, configurations, memory, and launches with settled addresses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from paiton_aot.program import Program
from paiton_aot.targets.addresses import Addresses
from paiton_aot.targets.draft import Bucket, Io, Reference, Scratch
from paiton_aot.targets.gpu.comm import layout_of
from paiton_aot.targets.gpu.draft import GpuDraft
from paiton_aot.targets.gpu.io import io_fields
from paiton_aot.targets.gpu.lower import Lowering
from paiton_aot.targets.gpu.sampling import greedy, history, sample
from paiton_aot.targets.io_layout import end_of
from paiton_aot.targets.representative import representative
from paiton_aot.targets.scratch import allocate
from paiton_aot.targets.segments import chain
from paiton_aot.targets.shape import Shape
from paiton_artifacts.kernel_table import Kernel, pack_arguments
from paiton_artifacts.layout import TENSOR_ALIGNMENT, align_up
from paiton_artifacts.plan import Access, Launch, Plan
from paiton_artifacts.schema import MemoryPlan, Tensor
from paiton_kernels.gpu.attention import ATTENTION
from paiton_kernels.gpu.devices import Profile
from paiton_kernels.gpu.schedule import SCHEDULE, schedule_config
from paiton_kernels.gpu.spec import GpuVariant, Step
from paiton_kernels.gpu.tuning import Choice, Request
from paiton_kernels.spec import KV_BLOCK_TOKENS

MAX_TOKENS = 2048
"""Tokens of the largest step, unless the build says otherwise."""

FEW_ROWS = 16
"""Rows of logits up to which a bucket has a plan of its own: one tile of the matrix instructions."""

_SEMAPHORES = "semaphores"
_OWN = ("workspace", _SEMAPHORES)
"""Scratch of one launch alone; under any other name launches of a chain hand something over."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The launches of one plan, in order."""

    family: str
    bucket: Bucket
    drafts: tuple[GpuDraft, ...]


@dataclass(frozen=True, slots=True)
class Configured:
    """All chains of a profile with their kernels chosen, and the memory that they need."""

    profile: Profile
    chains: tuple[Chain, ...]
    scratch: tuple[Mapping[str, int], ...]  # of each chain: byte offset of every value
    memory: MemoryPlan

    @property
    def variants(self) -> dict[str, GpuVariant]:
        """Every kernel that a plan launches, by symbol."""
        return {draft.variant.symbol: draft.variant for chain in self.chains for draft in chain.drafts}


def buckets(max_tokens: int, max_requests: int) -> list[Bucket]:
    """Returns the step sizes that get a plan: tokens 1, 2, 4 ..., requests few or all of them."""
    chosen = []
    tokens = 1
    while tokens <= max_tokens:
        wide = min(tokens, max_requests)
        chosen += [Bucket(tokens, requests) for requests in sorted({min(wide, FEW_ROWS), wide})]
        tokens *= 2
    return chosen


def draft_chains(program: Program, tensors: Sequence[Tensor], shape: Shape) -> list[Chain]:
    """Lowers `program` for every bucket of every family; no configuration is chosen yet."""
    table = {tensor.name: tensor for tensor in tensors}
    shown = representative(program, tensors)
    chains = []
    for bucket in buckets(shape.max_tokens, shape.max_requests):
        drafts = Lowering(shown, table, shape, bucket).forward()
        chains.append(Chain("forward", bucket, tuple(drafts)))
    for requests in sorted({min(FEW_ROWS, shape.max_requests), shape.max_requests}):
        bucket, rows = Bucket(min(requests, shape.max_tokens), requests), Step(requests, requests)
        chains.append(Chain("sample", bucket, sample(shape, rows)))
        if shape.tp > 1:
            chains.append(Chain("greedy", bucket, greedy(shape, rows)))
    chains.append(Chain("history", Bucket(1, 1), history(shape)))
    return chains


def tuning_requests(chains: Iterable[Chain]) -> list[Request]:
    """Returns what tuning must decide, each once. `schedule` is not asked for: it follows `attention`."""
    drafts = (draft for chain in chains for draft in chain.drafts if draft.spec is not SCHEDULE)
    return list(dict.fromkeys(_request(draft) for draft in drafts))


def configure(
    chains: Sequence[Chain],
    choices: Mapping[Request, Choice],
    profile: Profile,
    shape: Shape,
    weights_bytes: int,
) -> Configured:
    """Gives every launch its configuration and workspace, and allocates scratch by liveness."""
    configured = [_configure_chain(chain, choices, profile) for chain in chains]
    semaphores = max(count for _, count in configured)
    ready = tuple(chain for chain, _ in configured)
    placed = [allocate(chain.drafts) for chain in ready]
    scratch_bytes = align_up(max(size for _, size in placed), TENSOR_ALIGNMENT)
    memory = _memory_plan(shape, profile, weights_bytes, scratch_bytes, max(semaphores, 1))
    return Configured(profile, ready, tuple(offsets for offsets, _ in placed), memory)


def settle(
    configured: Configured, kernels: Mapping[str, Kernel], tensors: Sequence[Tensor], shape: Shape
) -> tuple[Plan, ...]:
    """Returns the plans: arguments packed as the compiled kernels want them, addresses as relocations."""
    table = {tensor.name: tensor for tensor in tensors}
    addresses = Addresses(table, configured.memory, shape)
    profile = configured.profile

    def launch(draft: GpuDraft, offsets: Mapping[str, int]) -> Launch:
        variant = draft.variant
        kernel = kernels[variant.symbol]
        places = {argument.name: argument.offset for argument in kernel.arguments}
        references = {places[name]: reference for name, reference in draft.references.items()}
        args = pack_arguments(kernel, draft.scalars)
        grid = draft.spec.grid(variant.values, draft.step, profile)
        return Launch(variant.symbol, draft.flags, args, addresses.relocations(references, offsets), grid)

    return tuple(
        Plan(
            profile.target,
            profile.name,
            made.family,
            made.bucket.tokens,
            made.bucket.requests,
            chain(made.drafts, partial(launch, offsets=offsets)),
        )
        for made, offsets in zip(configured.chains, configured.scratch, strict=True)
    )


def _request(draft: GpuDraft) -> Request:
    return Request(draft.spec, tuple(draft.constants.items()), draft.step)


def _configure_chain(made: Chain, choices: Mapping[Request, Choice], profile: Profile) -> tuple[Chain, int]:
    """Returns a chain with configurations and scratch, and the semaphores that it needs."""
    configs = {draft.work_list: choices[_request(draft)].config for draft in made.drafts if draft.spec is ATTENTION}
    drafts = []
    for draft in made.drafts:
        if draft.spec is SCHEDULE:  # writes the work list that attention reads
            config = schedule_config(configs[draft.work_list])
        else:
            config = choices[_request(draft)].config
        drafts.append(replace(draft, config=config))
    needs = [draft.spec.workspace(draft.variant.values, draft.step, profile) for draft in drafts]
    largest: dict[str, int] = {}
    for draft, need in zip(drafts, needs, strict=True):
        for name, size in need.items():
            shared_name = name if name in _OWN else name + draft.work_list
            largest[shared_name] = max(size, largest.get(shared_name, 0))
    shared = {name: size for name, size in largest.items() if name not in _OWN}
    ready = tuple(_with_scratch(draft, {**shared, **need}) for draft, need in zip(drafts, needs, strict=True))
    return replace(made, drafts=ready), largest.get(_SEMAPHORES, 0)


def _with_scratch(draft: GpuDraft, sizes: Mapping[str, int]) -> GpuDraft:
    """Binds the arguments that are scratch; those that the configuration does not need stay null."""
    both = Access.READ | Access.WRITE
    added: dict[str, Reference] = {}
    for arg in draft.spec.args:
        name = arg.name if arg.name in _OWN else arg.name + draft.work_list
        size = sizes.get(name, 0)
        if arg.name in draft.references or not size:
            continue
        # What a launch needs for itself alone it writes before it reads.
        access = Access.WRITE if name in _OWN else both
        added[arg.name] = Io(_SEMAPHORES, both) if name == _SEMAPHORES else Scratch(name, size, access)
    return replace(draft, references={**draft.references, **added})


def _memory_plan(shape: Shape, profile: Profile, weights_bytes: int, scratch_bytes: int, semaphores: int) -> MemoryPlan:
    fields, input_bytes = io_fields(shape, semaphores)
    return MemoryPlan(
        target=profile.target,
        profile=profile.name,
        compute_units=profile.compute_units,
        weights_bytes=weights_bytes,
        io_bytes=align_up(end_of(fields), TENSOR_ALIGNMENT),
        io_input_bytes=input_bytes,
        scratch_bytes=scratch_bytes,
        worker_scratch_bytes=0,
        comm_bytes=layout.bytes if (layout := layout_of(shape)) else 0,
        kv_block_tokens=KV_BLOCK_TOKENS,
        kv_block_bytes=shape.kv_block_bytes,
        max_tokens=shape.max_tokens,
        max_requests=shape.max_requests,
        max_blocks_per_request=shape.max_blocks,
        logits_offset=next(field.offset for field in fields if field.name == "logits"),
        logits_stride=shape.logits_stride,
        io=fields,
    )
