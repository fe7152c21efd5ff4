"""GPU plans of models with experts: what is launched in which mode, for few tokens, for many, and with ranks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from paiton_aot.blob_layout import lay_out
from paiton_aot.checkpoint.base import Experts
from paiton_aot.models import ARCHITECTURES
from paiton_aot.models.storage import Storage
from paiton_aot.scales import with_scales
from paiton_aot.targets.draft import Bucket, Scratch, Weight
from paiton_aot.targets.gpu.draft import GpuDraft
from paiton_aot.targets.gpu.lower import Lowering
from paiton_aot.targets.shape import Shape
from paiton_artifacts.errors import UnsupportedShapeError
from tests.cpu.build.test_weights import SMOLLM2

MODEL = replace(
    SMOLLM2,
    architecture="MixtralForCausalLM",
    layers=2,
    attention_heads=8,
    kv_heads=2,
    experts=Experts(count=16, per_token=4, intermediate_size=96, normalise=True),
)
BLOCK = ["norm", "route", "expert_linear", "expert_linear", "expert_sum"]


def block_of(bucket: Bucket, activations: str = "bf16", tp: int = 1) -> list[GpuDraft]:
    """Returns the launches of the first layer's experts, from the norm in front to the sum behind."""
    checkpoint: Any = SimpleNamespace(config=MODEL, quantization=None, name="experts")
    storage, architecture = Storage("fp8", "bf16", activations, "bf16"), ARCHITECTURES[MODEL.architecture]
    program = architecture.program(checkpoint, storage)
    tensors = lay_out(with_scales(checkpoint, architecture.weights(checkpoint, storage), tp), tp, MODEL.kv_heads)
    shape = Shape.of(MODEL, tp, "bf16", (1 << 22, 32, 64))
    drafts = Lowering(program, {tensor.name: tensor for tensor in tensors}, shape, bucket).forward()
    families = [draft.spec.family for draft in drafts]
    return drafts[families.index("route") - 1 : families.index("expert_sum") + 1]


def families_of(drafts: list[GpuDraft]) -> list[str]:
    return [draft.spec.family for draft in drafts]


def test_few_tokens_take_five_launches_and_many_the_order_and_quantised_values_too() -> None:
    for activations in ("bf16", "fp8-static", "fp8-dynamic"):
        assert families_of(block_of(Bucket(64, 32), activations)) == BLOCK
    order = [*BLOCK[:2], "route_order", *BLOCK[2:]]
    assert families_of(block_of(Bucket(128, 32))) == order
    assert families_of(block_of(Bucket(128, 32), "fp8-static")) == order
    dynamic = [*order[:3], "quantize", "expert_linear", "quantize", *order[4:]]
    assert families_of(block_of(Bucket(128, 32), "fp8-dynamic")) == dynamic


@pytest.mark.parametrize(
    ("activations", "tokens", "up", "down"),
    [
        ("bf16", 8, ("BF16", "NONE", "BF16", 0), ("BF16", "NONE")),
        ("fp8-static", 8, ("FP8", "TENSOR", "FP8", 0), ("FP8", "TENSOR")),
        ("fp8-dynamic", 8, ("BF16", "AMAX", "BF16", 1), ("BF16", "AMAX")),
        ("fp8-dynamic", 128, ("FP8", "ROW", "BF16", 1), ("FP8", "ROW")),
    ],
)
def test_what_experts_read_and_write(
    activations: str, tokens: int, up: tuple[object, ...], down: tuple[object, ...]
) -> None:
    drafts = block_of(Bucket(tokens, 8), activations)
    first, second = (draft for draft in drafts if draft.spec.family == "expert_linear")
    names = ("A", "A_SCALE", "OUT", "AMAX")
    assert tuple(first.constants[name] for name in names) == up
    assert tuple(second.constants[name] for name in names[:2]) == down
    assert (first.constants["N"], first.constants["K"], second.constants["N"], second.constants["K"]) == (
        192,
        576,
        576,
        96,
    )
    route = drafts[1]
    assert route.constants["AMAX"] == route.constants["CLEAR"] == int(activations == "fp8-dynamic")
    if activations == "fp8-static":
        scale = Weight("layers.0.experts.gate_up_proj.input_scale")
        assert route.references["x_scale"] == first.references["a_scale"] == scale
        assert second.references["a_scale"] == Weight("layers.0.experts.down_proj.input_scale")


def test_values_have_a_row_for_each_entry() -> None:
    drafts = block_of(Bucket(128, 8), "fp8-dynamic")
    sizes = {
        reference.value: reference.size
        for draft in drafts
        for reference in draft.references.values()
        if isinstance(reference, Scratch)
    }
    entries = 128 * 4
    assert sizes["expert_output"] == entries * 576 * 4
    assert sizes["activated"] == entries * 96 * 2
    assert sizes["down_proj_input"] == entries * 96
    assert sizes["expert_amax"] == sizes["down_proj_input_scale"] == sizes["routes_probability"] == entries * 4
    assert sizes["routes"] == (4 + 16 + entries) * 4
    quantize = [draft for draft in drafts if draft.spec.family == "quantize"]
    assert [draft.step.tokens for draft in quantize] == [128, entries]
    assert isinstance(quantize[1].references["counts"], Scratch), "entries are counted by the list, not by the step"


def test_ranks_share_every_expert_and_leave_partial_sums() -> None:
    norm, *_, first, second, total = block_of(Bucket(8, 8), tp=2)
    assert norm.spec.family == "all_reduce"
    assert (first.constants["N"], second.constants["K"]) == (96, 48)
    assert total.constants["MODE"] == "STORE"
    out = total.references["out"]
    assert isinstance(out, Scratch)
    assert out.value == "partial"
    assert block_of(Bucket(8, 8))[-1].constants["MODE"] == "ADD"


def test_a_step_that_offsets_do_not_reach_is_refused() -> None:
    with pytest.raises(UnsupportedShapeError, match="4194304 rows of 576 elements are more than the") as caught:
        block_of(Bucket(1 << 22, 8))
    assert "--max-num-batched-tokens" in caught.value.hint
