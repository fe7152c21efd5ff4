"""Mixtures of experts: FP8 checkpoints of both families, one result whatever a step holds, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from paiton_aot.build import check_tensors
from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.lower import Lowered, lower
from paiton_aot.predict.cpu import AMOUNTS, Batch, Reading, amounts
from paiton_artifacts.errors import (
    CheckpointFormatError,
    MissingTensorError,
    PaitonError,
    TensorParallelError,
    TensorShapeError,
    UnsupportedError,
    UnsupportedQuantizationError,
    UnsupportedShapeError,
)
from paiton_artifacts.schema import ExpertFacts
from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.model import Chunk
from tests.coverage_cases import EXPERT_CASES, FP8_FORMATS, Case
from tests.cpu.models.conftest import LEVEL, options_of
from tests.cpu.models.test_architectures import IDS, MARGIN, TOLERANCE, logits_of
from tests.fp8_checkpoints import FORMATS, INPUT_SCALE, quantize
from tests.fp8_checkpoints import dequantized as meant
from tests.independent_reader import read_bundle
from tests.make_checkpoints import Tensors, edit_json, load_tensors, rewrite
from tests.model_reference import model_reference
from tests.numerics import assert_same_bits
from tests.reference import dequantized, reference_logits, relative_error, top1_agreement

MIXTRAL, QWEN = (next(case for case in EXPERT_CASES if case.model == model) for model in ("mixtral", "qwen3-moe"))
PLAIN = Case("qwen3-moe", "bf16", "cpu", 1)
NAMES = {
    "mixtral": "model.layers.{}.block_sparse_moe.experts.{}.{}.weight",
    "qwen3-moe": "model.layers.{}.mlp.experts.{}.{}.weight",
}
PROJECTIONS = {"mixtral": ("w1", "w3", "w2"), "qwen3-moe": ("gate_proj", "up_proj", "down_proj")}

Sources = Callable[[Case], Path]


@pytest.fixture(scope="module")
def expected_of(build: Sources, checkpoint_of: Callable[[str], Path]) -> Callable[[str], NDArray[np.float32]]:
    """A function that returns the reference's logits of a model in its FP8 format."""
    known: dict[str, NDArray[np.float32]] = {}

    def expected(model: str) -> NDArray[np.float32]:
        if model not in known:
            (whole,) = [case for case in EXPERT_CASES if (case.model, case.tp) == (model, 1)]
            known[model] = reference_logits(model_reference(checkpoint_of(model), build(whole)), IDS)
        return known[model]

    return expected


@pytest.mark.parametrize("case", EXPERT_CASES, ids=lambda case: case.name)
def test_logits_of_fp8_checkpoints(
    case: Case, build: Sources, expected_of: Callable[[str], NDArray[np.float32]]
) -> None:
    expected, ours = expected_of(case.model), logits_of(build(case))
    assert relative_error(ours, expected) < TOLERANCE["bf16"]
    assert top1_agreement(ours, expected, MARGIN * TOLERANCE["bf16"] * float(expected.std()))[1] == 0


@pytest.mark.parametrize("case", [MIXTRAL, QWEN], ids=lambda case: case.name)
def test_a_bundle_holds_what_the_checkpoint_means(case: Case, build: Sources, source_of: Sources) -> None:
    (name,) = [name for name, label in FP8_FORMATS.items() if label == case.format]
    contents, weights = read_bundle(build(case)), meant(load_tensors(source_of(case)), FORMATS[name])
    gate, up, down = PROJECTIONS[case.model]
    layer, count = 0, len(weights[f"model.layers.0.{'block_sparse_moe' if case is MIXTRAL else 'mlp'}.gate.weight"])
    for stored, parts in (("gate_up_proj", (gate, up)), ("down_proj", (down,))):
        rows = [weights[NAMES[case.model].format(layer, expert, part)] for expert in range(count) for part in parts]
        assert np.array_equal(dequantized(contents, f"layers.{layer}.experts.{stored}"), torch.cat(rows).numpy())


def test_a_token_is_the_same_whatever_its_step_holds(build: Sources) -> None:
    """Sixteen tokens at a time, or one: other forms of kernels, the same bits."""
    bundle = build(PLAIN)
    with boot(bundle, BootOptions(level=LEVEL, golden_check=False)) as model:
        alone = [bytes(model.step([Chunk([IDS[at]], at, [0, 1])]).logits(0)) for at in range(32)]
        for start in (0, 16):
            result = model.step([Chunk(IDS[start : start + 16], start, [2, 3], logits="all")])
            for row in range(16):
                together = np.frombuffer(bytes(result.logits(row)), np.float32)
                assert_same_bits(together, np.frombuffer(alone[start + row], np.float32))


def _without_weights(source: Path, path: Path) -> Path:
    """Copies a checkpoint's configuration and tokenizer, and an index of its tensors."""
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("*.safetensors"))
    names = dict.fromkeys(load_tensors(source), "model-00001-of-00001.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return path


def _lowered(path: Path, case: Case) -> Lowered:
    with open_checkpoint(path, outline=True) as checkpoint:
        found = lower(checkpoint, options_of(case))
        check_tensors(checkpoint, found)
        return found


@pytest.mark.parametrize("case", [MIXTRAL, PLAIN], ids=lambda case: case.name)
def test_plans_need_no_weights(case: Case, source_of: Sources, tmp_path: Path) -> None:
    outlined = _lowered(_without_weights(source_of(case), tmp_path / "outline"), case)
    whole = _lowered(source_of(case), case)
    assert (outlined.tensors, outlined.cpu) == (whole.tensors, whole.cpu)
    shape = ExpertFacts(2, 6, 2, 256) if case is MIXTRAL else ExpertFacts(2, 20, 4, 128)
    assert outlined.facts.experts == whole.facts.experts == shape


@pytest.mark.parametrize("name", FORMATS)
def test_experts_in_every_fp8_format(name: str, source_of: Sources, tmp_path: Path) -> None:
    path = shutil.copytree(source_of(PLAIN), tmp_path / "hf")
    quantize(path, name)
    with open_checkpoint(path) as checkpoint:
        found = lower(checkpoint, replace(options_of(QWEN), act="fp8"))
        check_tensors(checkpoint, found)
        scales = [spec.compute(checkpoint) for spec in found.specs if spec.compute and "experts" in spec.name]
    tensors = {tensor.name: tensor for tensor in found.tensors}
    stored = [tensors[f"layers.{layer}.experts.{part}"] for layer in (0, 2) for part in ("gate_up_proj", "down_proj")]
    assert {(tensor.dtype, tensor.scale_kind) for tensor in stored} == {
        ("fp8_e4m3fn", "block" if "block" in name else "row")
    }
    assert found.program.activations == ("fp8-static" if FORMATS[name].input_scale else "fp8-dynamic")
    assert scales == ([[INPUT_SCALE]] * 4 if FORMATS[name].input_scale else [])


def test_a_step_is_predicted_to_read_the_experts_that_it_uses(source_of: Sources) -> None:
    cpu = _lowered(source_of(PLAIN), PLAIN).cpu
    variants = {variant.symbol: variant for variant in cpu.variants}
    read = AMOUNTS.index("decode: seconds of reading weights")

    def bytes_of(tokens: int) -> float:
        plan = next(plan for plan in cpu.plans if plan.family == "forward" and plan.tokens == tokens)
        return float(amounts(plan, variants, Batch(tokens, 1, 0), Reading([1.0], [1.0]))[read])

    expert, rest = 3 * 128 * 128, 3 * (256 + 128) * 128 + 3 * 256 * 128 + 320 * 128
    assert bytes_of(1) == pytest.approx(2 * (2 * 4 * expert + rest))
    assert bytes_of(8) == pytest.approx(2 * (2 * 20 * (1 - 0.8**8) * expert + rest))


def _without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def _changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: change(tensor) if key == name else tensor for key, tensor in tensors.items()}


def _merged(tensors: Tensors) -> Tensors:
    return tensors | {"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(20, 256, 128, dtype=torch.bfloat16)}


def _plain(tensors: Tensors) -> Tensors:
    """Leaves one expert's projection in bf16."""
    module = "model.layers.0.mlp.experts.3.up_proj"
    kept = _without(f"{module}.weight_scale")(tensors)
    return _changed(f"{module}.weight", lambda tensor: tensor.float().bfloat16())(kept)


EXPERT = NAMES["qwen3-moe"].format(2, 7, "down_proj")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_without(EXPERT), MissingTensorError, f"tensor {EXPERT} is not in"),
        (_without("model.layers.0.mlp.gate.weight"), MissingTensorError, "layers.0.mlp.gate.weight is not in"),
        (_changed(EXPERT, lambda tensor: tensor[:100]), TensorShapeError, f"{EXPERT} has shape"),
        (_merged, UnsupportedError, "the matrices of all experts in one"),
    ],
)
def test_experts_that_are_missing_or_misshaped(
    change: Callable[[Tensors], Tensors], error: type[PaitonError], message: str, source_of: Sources, tmp_path: Path
) -> None:
    path = shutil.copytree(source_of(PLAIN), tmp_path / "hf")
    rewrite(path, change)
    with pytest.raises(error, match=message):
        _lowered(path, PLAIN)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_experts_per_tok": 21}, UnsupportedShapeError, "num_experts_per_tok 21"),
        ({"num_local_experts": 3}, CheckpointFormatError, "num_experts_per_tok 4, more than num_local_experts 3"),
        ({"num_local_experts": 257}, UnsupportedShapeError, "num_local_experts 257"),
        ({"num_local_experts": 0}, CheckpointFormatError, "num_local_experts 0"),
        ({"num_local_experts": 21}, TensorShapeError, r"mlp\.gate\.weight has shape"),
        ({"mlp_only_layers": [3]}, CheckpointFormatError, "mlp_only_layers"),
        ({"norm_topk_prob": 1}, CheckpointFormatError, "norm_topk_prob"),
        ({"moe_intermediate_size": 96}, TensorShapeError, r"experts\.0\."),
    ],
)
def test_a_configuration_that_lies_about_experts(
    changes: dict[str, Any], error: type[PaitonError], message: str, source_of: Sources, tmp_path: Path
) -> None:
    path = shutil.copytree(source_of(PLAIN), tmp_path / "hf")
    edit_json(path / "config.json", num_experts=None)
    edit_json(path / "config.json", **({"num_local_experts": 20} | changes))
    with pytest.raises(error, match=message):
        _lowered(path, PLAIN)


def test_formats_that_are_mixed_among_experts(source_of: Sources, tmp_path: Path) -> None:
    path = shutil.copytree(source_of(QWEN), tmp_path / "hf")
    rewrite(path, _plain)
    section = json.loads((path / "config.json").read_text())["quantization_config"]
    section["ignore"].append("model.layers.0.mlp.experts.3.up_proj")
    edit_json(path / "config.json", quantization_config=section)
    with pytest.raises(UnsupportedQuantizationError, match=r"quantises \S+ but not \S+experts\.3\.up_proj"):
        _lowered(path, QWEN)


def test_a_router_in_fp8_is_refused(source_of: Sources, tmp_path: Path) -> None:
    path, router = shutil.copytree(source_of(QWEN), tmp_path / "hf"), "model.layers.0.mlp.gate"
    scale = {f"{router}.weight_scale": torch.ones(20, 1)}
    rewrite(path, lambda tensors: _changed(f"{router}.weight", lambda t: t.to(torch.float8_e4m3fn))(tensors) | scale)
    with pytest.raises(UnsupportedQuantizationError, match=f"quantises the router {router}"):
        _lowered(path, QWEN)


def test_ranks_divide_the_width_of_experts(source_of: Sources) -> None:
    with pytest.raises(TensorParallelError, match="intermediate size 128 and 256"):
        _lowered(source_of(PLAIN), Case("qwen3-moe", "bf16", "cpu", 3))
