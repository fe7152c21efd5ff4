"""Plans of the cpu target: few launches, disjoint live scratch, extents inside their regions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from paiton_aot.blob_layout import blob_size, lay_out
from paiton_aot.models import ARCHITECTURES
from paiton_aot.models.storage import Storage
from paiton_aot.scales import with_scales
from paiton_aot.targets.cpu.lower import Lowering
from paiton_aot.targets.cpu.memory import io_fields
from paiton_aot.targets.cpu.plans import CpuPlans, buckets, make_plans
from paiton_aot.targets.draft import Bucket, Draft, Scratch
from paiton_aot.targets.gpu.io import io_fields as gpu_io_fields
from paiton_aot.targets.io_layout import extent
from paiton_aot.targets.scratch import allocate
from paiton_aot.targets.shape import Shape
from paiton_artifacts.plan import LaunchFlag, check_plan, decode_plan, encode_plan
from tests.cpu.build.test_weights import SMOLLM2

LIMITS = (512, 32, 8192)


def lowered(tp: int, activations: str = "bf16", kv: str = "bf16") -> tuple[Any, list[Any], Shape]:
    checkpoint: Any = SimpleNamespace(config=SMOLLM2, quantization=None, name="smollm2")
    storage = Storage("fp8", "int8", activations, kv)
    llama = ARCHITECTURES["LlamaForCausalLM"]
    program = llama.program(checkpoint, storage)
    tensors = lay_out(with_scales(checkpoint, llama.weights(checkpoint, storage), tp), tp, SMOLLM2.kv_heads)
    return program, tensors, Shape.of(SMOLLM2, tp, kv, LIMITS)


def _plans(tp: int, **modes: str) -> CpuPlans:
    program, tensors, shape = lowered(tp, **modes)
    return make_plans(program, tensors, blob_size(tensors), shape)


def _sizes(drafts: Sequence[Draft]) -> dict[str, int]:
    values = [r for draft in drafts for r in draft.references.values() if isinstance(r, Scratch)]
    return {value.value: max(v.size for v in values if v.value == value.value) for value in values}


@pytest.mark.parametrize(("tp", "launches"), [(1, 5), (3, 7)])
def test_a_decode_layer_takes_at_most_seven_launches(tp: int, launches: int) -> None:
    decode = [plan for plan in _plans(tp).plans if plan.family == "forward" and plan.tokens <= 8]
    layers = [segment for plan in decode for segment in plan.segments if segment.repeat == SMOLLM2.layers]
    assert len(layers) == len(decode)
    assert {len(segment.launches) for segment in layers} == {launches}


@pytest.mark.parametrize("tp", [1, 3])
@pytest.mark.parametrize("modes", [{}, {"activations": "fp8-dynamic", "kv": "fp8"}])
def test_every_relocation_lies_within_its_region(tp: int, modes: dict[str, str]) -> None:
    made = _plans(tp, **modes)
    memory = made.memory
    symbols = {variant.symbol for variant in made.variants}
    for plan in made.plans:
        assert decode_plan(encode_plan(plan)) == plan
        check_plan(plan, memory.extents, tp, symbols)


@pytest.mark.parametrize(("tp", "barrier"), [(1, LaunchFlag.NONE), (3, LaunchFlag.GROUP_BARRIER)])
def test_only_rank_0_samples_and_counts(tp: int, barrier: LaunchFlag) -> None:
    """Logits come from all ranks, so sampling waits for them; what counts a request's history needs nobody."""
    plans = {plan.family: plan for plan in _plans(tp).plans if plan.family != "forward"}
    flags = {
        family: [launch.flags for segment in plan.segments for launch in segment.launches]
        for family, plan in plans.items()
    }
    assert flags == {"sample": [LaunchFlag.RANK0_ONLY | barrier], "history": [LaunchFlag.RANK0_ONLY]}
    sizes = {family: (plan.tokens, plan.requests) for family, plan in plans.items()}
    assert sizes == {"sample": LIMITS[:2], "history": (1, 1)}


def test_the_cpu_and_gpus_share_one_protocol() -> None:
    """The engine finds every io field under the same name, with the same size, wherever it runs."""
    _, _, shape = lowered(1)
    cpu, input_bytes = io_fields(shape)
    gpu, gpu_input_bytes = gpu_io_fields(shape, 8)
    own = {"query_start", "semaphores", "logits"}
    sizes = {field.name: (field.dtype, field.count) for field in gpu if field.name not in own}
    assert {field.name: (field.dtype, field.count) for field in cpu} == sizes
    for fields, first_other in ((cpu, input_bytes), (gpu, gpu_input_bytes)):
        written_later = next(field for field in fields if field.name == "block_tables")
        assert written_later.offset == first_other
        assert all(extent(a) <= b.offset - a.offset for a, b in pairwise(fields))


@pytest.mark.parametrize("tokens", [1, 512])
def test_values_that_live_together_share_no_bytes(tokens: int) -> None:
    program, tensors, shape = lowered(3)
    table = {tensor.name: tensor for tensor in tensors}
    drafts = Lowering(program, table, shape, Bucket(tokens, 1)).forward()
    offsets, total = allocate(drafts)
    sizes = _sizes(drafts)
    for draft in drafts:
        used = sorted({r.value for r in draft.references.values() if isinstance(r, Scratch)} | {"x"})
        spans = sorted((offsets[value], offsets[value] + sizes[value]) for value in used)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans)), used
        assert spans[-1][1] <= total


def test_scratch_is_reused() -> None:
    program, tensors, shape = lowered(1)
    drafts = Lowering(program, {t.name: t for t in tensors}, shape, Bucket(512, 32)).forward()
    _, total = allocate(drafts)
    assert total < sum(_sizes(drafts).values())


def test_buckets_are_powers_of_two_with_few_or_all_requests() -> None:
    assert [(b.tokens, b.requests) for b in buckets(512, 32)][:7] == [
        (1, 1),
        (2, 2),
        (4, 4),
        (8, 8),
        (16, 8),
        (16, 16),
        (32, 8),
    ]
    assert max(b.tokens for b in buckets(512, 4)) == 512
    assert {b.requests for b in buckets(512, 4)} == {1, 2, 4}


def test_layers_are_laid_out_alike() -> None:
    _, tensors, _ = lowered(1)
    by_name = {tensor.name: tensor for tensor in tensors}
    strides = {
        by_name[f"layers.{layer + 1}.{name}"].offset - by_name[f"layers.{layer}.{name}"].offset
        for layer in range(SMOLLM2.layers - 1)
        for name in ("qkv_proj", "qkv_proj.scale", "down_proj", "mlp_norm")
    }
    assert len(strides) == 1
