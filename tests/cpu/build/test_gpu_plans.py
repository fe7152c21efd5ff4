"""Plans of GPU targets: few launches, disjoint live scratch, extents inside regions, arguments where they belong."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from paiton_aot.blob_layout import blob_size
from paiton_aot.targets.draft import Scratch
from paiton_aot.targets.gpu.draft import GpuDraft
from paiton_aot.targets.gpu.io import io_fields
from paiton_aot.targets.gpu.plans import Configured, buckets, configure, draft_chains, settle, tuning_requests
from paiton_artifacts.errors import PlanError
from paiton_artifacts.kernel_table import Kernel, KernelArgument, check_launches, unpack_argument
from paiton_artifacts.layout import align_up
from paiton_artifacts.plan import Plan, check_plan, decode_plan, encode_plan
from paiton_kernels.gpu.devices import PROFILES, TARGETS
from paiton_kernels.gpu.sample import SAMPLE_CHAIN
from paiton_kernels.gpu.spec import GpuVariant
from paiton_kernels.gpu.tuning import Choice
from paiton_kernels.spec import MAX_BIASES, MAX_TOP_LOGPROBS
from paiton_runtime.engine import params
from tests.cpu.build.test_plans import lowered
from tests.cpu.build.test_weights import SMOLLM2

PROFILE = PROFILES["mi300x"]
MODES: dict[str, dict[str, str]] = {
    "bf16": {},
    "dynamic": {"activations": "fp8-dynamic", "kv": "fp8"},
    "static": {"activations": "fp8-static", "kv": "fp8"},
}
_BYTES = {"i32": 4, "i64": 8, "fp32": 4}


def kernel_of(variant: GpuVariant) -> Kernel:
    """Returns a kernel table's entry with arguments at natural alignment, as compilers lay them out."""
    arguments = []
    end = 0
    for arg in variant.spec.args:
        size = 8 if arg.pointer else _BYTES[arg.type]
        kind = "pointer" if arg.pointer else "float" if arg.type == "fp32" else "integer"
        arguments.append(KernelArgument(arg.name, kind, align_up(end, size), size, arg.divisor))
        end = align_up(end, size) + size
    for _ in range(2):  # what Triton appends
        arguments.append(KernelArgument("", "pointer", align_up(end, 8), 8, 1))
        end = align_up(end, 8) + 8
    return Kernel(variant.symbol, 0, 1, 64 * variant.config.num_warps, 0, end, tuple(arguments), "only")


class Planned:
    """SmolLM2 planned for an MI300X, each kernel with the first configuration of its space."""

    def __init__(self, tp: int = 1, **modes: str) -> None:
        program, tensors, shape = lowered(tp, **modes)
        self.shape = replace(shape, max_tokens=256)
        self.tensors = tensors
        self.chains = draft_chains(program, tensors, self.shape)
        choices = {
            request: Choice(request.spec.space(dict(request.constants), request.step, PROFILE)[0], "only")
            for request in tuning_requests(self.chains)
        }
        self.configured: Configured = configure(self.chains, choices, PROFILE, self.shape, blob_size(tensors))
        self.kernels = {symbol: kernel_of(variant) for symbol, variant in self.configured.variants.items()}
        self.plans: tuple[Plan, ...] = settle(self.configured, self.kernels, tensors, self.shape)


@pytest.fixture(scope="module", params=MODES)
def planned(request: pytest.FixtureRequest) -> Planned:
    return Planned(tp=1, **MODES[request.param])


def test_a_decode_layer_takes_at_most_seven_launches(planned: Planned) -> None:
    for plan in planned.plans:
        layers = [segment for segment in plan.segments if segment.repeat == SMOLLM2.layers]
        assert len(layers) == (1 if plan.family == "forward" else 0)
        if layers and plan.tokens <= 64:
            assert len(layers[0].launches) == 7


def test_every_relocation_lies_within_its_region(planned: Planned) -> None:
    memory = planned.configured.memory
    for plan in planned.plans:
        assert decode_plan(encode_plan(plan)) == plan
        check_plan(plan, memory.extents, 1, planned.kernels)
        check_launches(plan, planned.kernels)


def test_pointers_that_a_variant_reads_are_bound(planned: Planned) -> None:
    """A null pointer is what a mode does not use; what every mode uses is never null."""
    always = {
        "embed": {"counts", "token_ids", "last_token", "table", "out"},
        "norm": {"counts", "x", "weight", "out"},
        "linear": {"counts", "a", "weight", "out"},
        "attention": {"items", "q", "kv", "block_tables", "positions", "out"},
        "schedule": {"query_start", "positions", "items"},
        "sample_process": {"counts", "logits", "mask_row", "mask", "bias_count", "bias_tokens", "bias_values"},
        "history": {"history_slot", "history_length", "history_prompt_length", "history_tokens", "token_counts"},
    }
    seen = set()
    for chain in planned.configured.chains:
        for draft in chain.drafts:
            seen.add(draft.spec.family)
            assert always.get(draft.spec.family, set()) <= draft.references.keys(), draft.spec.family
            for name in draft.references:
                assert any(arg.name == name and arg.pointer for arg in draft.spec.args)
    assert always.keys() <= seen


def _lives(drafts: tuple[GpuDraft, ...]) -> dict[str, tuple[int, int, int]]:
    """Returns first and last use and size of every scratch value, by brute force over all layers."""
    lives: dict[str, tuple[int, int, int]] = {}
    for index, draft in enumerate(drafts):
        for reference in draft.references.values():
            if isinstance(reference, Scratch):
                first, _, size = lives.get(reference.value, (index, index, 0))
                lives[reference.value] = (first, index, max(size, reference.size))
    return lives


def test_values_that_live_together_share_no_bytes(planned: Planned) -> None:
    """Within a layer each value is used where it was written; over layers `x`, `rope` and the work list stay."""
    for chain, offsets in zip(planned.configured.chains, planned.configured.scratch, strict=True):
        one_layer = tuple(draft for draft in chain.drafts if not draft.layer)
        lives = _lives(one_layer)
        everlasting = {"x", "rope", "items"} & lives.keys()
        for name in everlasting:
            lives[name] = (lives[name][0], len(one_layer), lives[name][2])
        names = sorted(lives)
        for position, name in enumerate(names):
            for other in names[position + 1 :]:
                (first, last, size), (begin, end, length) = lives[name], lives[other]
                if first <= end and begin <= last:
                    apart = offsets[name] + size <= offsets[other] or offsets[other] + length <= offsets[name]
                    assert apart, (chain.family, chain.bucket, name, other)


def test_constants_arrive_where_the_kernel_reads_them(planned: Planned) -> None:
    plan = next(plan for plan in planned.plans if plan.family == "forward" and plan.tokens == 1)
    launch = next(one for s in plan.segments for one in s.launches if one.symbol.startswith("attention"))
    values = {a.name: unpack_argument(a, launch.args) for a in planned.kernels[launch.symbol].arguments if a.name}
    assert values["kv_block_stride"] == planned.shape.kv_block_bytes
    assert values["softmax_scale"] == pytest.approx(64**-0.5)
    assert values["block_table_stride"] == planned.shape.max_blocks


def test_an_address_that_breaks_the_specialisation_is_refused(planned: Planned) -> None:
    plan = planned.plans[0]
    segment = plan.segments[0]
    launch = segment.launches[0]
    moved = replace(launch.relocations[0], offset=launch.relocations[0].offset + 8)
    broken = replace(launch, relocations=(moved, *launch.relocations[1:]))
    bad = replace(plan, segments=(replace(segment, launches=(broken, *segment.launches[1:])), *plan.segments[1:]))
    with pytest.raises(PlanError, match="not multiples of 16"):
        check_launches(bad, planned.kernels)


def test_the_io_region_begins_with_what_every_step_sends() -> None:
    fields, input_bytes = io_fields(lowered(1)[2], semaphores=100)
    inputs = [field.name for field in fields if field.offset < input_bytes]
    assert {"counts", "token_ids", "positions", "query_start", "temperature", "seed", "bias_count"} <= set(inputs)
    others = {"block_tables", "mask", "bias_tokens", "history_tokens", "sampled", "last_token", "semaphores"}
    assert not others & set(inputs)
    state = [field.name for field in fields][-5:]
    assert state == ["last_token", "finished", "token_counts", "semaphores", "logits"]


def test_logits_are_read_in_vectors(planned: Planned) -> None:
    """Rows of logits begin at multiples of 16 elements, and the kernels that read them are compiled for that."""
    assert planned.shape.logits_stride % 16 == 0
    for spec in SAMPLE_CHAIN:
        for arg in spec.args:
            assert arg.name != "logits_stride" or arg.divisor == 16


def test_the_runtime_has_the_limits_of_the_kernels() -> None:
    assert (params.MAX_BIASES, params.MAX_TOP_LOGPROBS) == (MAX_BIASES, MAX_TOP_LOGPROBS)
    fields = {field.name: field.count for field in io_fields(lowered(1)[2], semaphores=1)[0]}
    requests = lowered(1)[2].max_requests
    assert fields["bias_tokens"] == fields["bias_values"] == requests * params.MAX_BIASES
    assert fields["top_tokens"] == fields["top_values"] == requests * params.MAX_TOP_LOGPROBS


def test_buckets_have_few_and_all_rows() -> None:
    assert [(b.tokens, b.requests) for b in buckets(64, 32)] == [
        *((1, 1), (2, 2), (4, 4), (8, 8), (16, 16)),
        *((32, 16), (32, 32), (64, 16), (64, 32)),
    ]


def test_every_profile_belongs_to_a_target() -> None:
    assert {profile.target for profile in PROFILES.values()} == set(TARGETS)
    assert struct.calcsize("P") == 8  # what pointers of kernels are packed as
