"""The static FP8 format, as FP8 exporters write it, against torch's float8 casts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.quantization.patterns import has_component
from paiton_artifacts.errors import (
    CheckpointFormatError,
    MissingTensorError,
    TensorShapeError,
    TensorValueError,
    UnsupportedQuantizationError,
)
from tests.make_checkpoints import FP8_STATIC, Tensors, edit_json, load_tensors, rewrite, tiny_llama

MODULE = "model.layers.0.mlp.up_proj"


def replace(path: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Edits the tensors of a checkpoint in place."""

    def apply(tensors: Tensors) -> Tensors:
        return change(tensors) or tensors

    rewrite(path, apply)


def test_weights_and_scales(fp8: Path, originals: Path) -> None:
    plain = load_tensors(originals / "tiny")
    stored = load_tensors(fp8)
    with open_checkpoint(fp8) as checkpoint:
        quantization = checkpoint.quantization
        assert quantization is not None
        assert (quantization.static_activations, quantization.kv_scales) == (True, True)
        assert quantization.is_quantized(MODULE)
        assert not quantization.is_quantized("lm_head")
        assert not quantization.is_quantized("model.embed_tokens")
        assert len(quantization.modules) == 2 * 7
        for module in quantization.modules:
            weight = checkpoint.tensor(f"{module}.weight")
            assert weight.dtype == "fp8_e4m3fn"
            codes = weight.read_rows(0, weight.rows)
            assert np.array_equal(codes.view(np.uint8), stored[weight.name].view(torch.uint8).numpy())
            scale = checkpoint.tensor(f"{module}.weight_scale").read_rows(0, 1)
            assert scale.shape == (1,)
            restored = codes.astype(np.float32) * float(scale[0])
            reference = plain[weight.name].float().numpy()
            # Half a step of e4m3: 2^-4 of a normal number, 2^-10 scales below.
            assert np.all(np.abs(restored - reference) <= np.abs(reference) * 2**-4 + float(scale[0]) * 2**-10)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("self_attn.kv_scale",), (0.5, 0.5)),
        (("self_attn.k_scale", "self_attn.v_scale"), (0.5, 0.25)),
        (("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"), (0.5, 0.25)),
        (("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"), (0.5, 0.25)),
        ((), (1.0, 1.0)),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_spellings_of_kv_scales(
    fp8: Path, names: tuple[str, ...], expected: tuple[float, float], shape: tuple[int, ...]
) -> None:
    def spell(tensors: Tensors) -> Tensors:
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("kv_scale")}
        scales = {f"model.layers.1.{name}": torch.full(shape, value) for name, value in zip(names, (0.5, 0.25))}  # noqa: B905
        return kept | scales

    rewrite(fp8, spell)
    with open_checkpoint(fp8) as checkpoint:
        assert checkpoint.kv_scales(1) == expected
        assert checkpoint.kv_scales(0) == (1.0, 1.0)
        assert checkpoint.quantization is not None
        assert checkpoint.quantization.kv_scales == bool(names)


def test_dynamic_activations_need_no_input_scale(fp8: Path) -> None:
    edit_json(fp8 / "config.json", quantization_config=FP8_STATIC | {"activation_scheme": "dynamic"})
    replace(fp8, lambda tensors: {k: v for k, v in tensors.items() if not k.endswith("input_scale")})
    with open_checkpoint(fp8) as checkpoint:
        assert checkpoint.quantization is not None
        assert checkpoint.quantization.static_activations is False


def test_layers_left_in_bf16(tmp_path: Path) -> None:
    tiny_llama(tmp_path, fp8_static=True)
    ignored = {"ignored_layers": ["lm_head"], "modules_to_not_convert": ["model.layers.0.mlp.down_proj"]}
    edit_json(tmp_path / "config.json", quantization_config=FP8_STATIC | ignored)
    with pytest.raises(CheckpointFormatError, match=r"down_proj.weight is FP8, but .* lists it in ignored_layers"):
        open_checkpoint(tmp_path)

    name = "model.layers.0.mlp.down_proj.weight"
    scales = (f"{name}_scale", name.replace("weight", "input_scale"))
    replace(tmp_path, lambda tensors: {key: tensors[key] for key in tensors if key not in scales})
    replace(tmp_path, lambda tensors: tensors | {name: tensors[name].to(torch.bfloat16)})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.quantization is not None
        assert not checkpoint.quantization.is_quantized("model.layers.0.mlp.down_proj")
        assert checkpoint.quantization.is_quantized("model.layers.1.mlp.down_proj")

    edit_json(tmp_path / "config.json", quantization_config=FP8_STATIC)
    with pytest.raises(CheckpointFormatError, match=r"down_proj.weight is not FP8, but .* does not list it"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "module", "expected"),
    [
        ("lm_head", "lm_head", True),
        ("model.layers.1", "model.layers.1.mlp.up_proj", True),
        ("model.layers.1", "model.layers.11.mlp.up_proj", False),
        ("o_proj", "model.layers.0.self_attn.o_proj", True),
        ("proj", "model.layers.0.self_attn.o_proj", False),
    ],
)
def test_patterns_match_whole_components(pattern: str, module: str, *, expected: bool) -> None:
    assert has_component(module, (pattern,)) is expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"quant_method": "gptq"}, "quant_method 'gptq'"),
        ({"quant_method": ["fp8"]}, "quant_method"),
        ({"activation_scheme": "token"}, "activation_scheme 'token'"),
        ({"kv_cache_scheme": {"num_bits": 4}}, "kv_cache_scheme"),
        ({"fmt": "e5m2"}, "fmt 'e5m2'"),
    ],
)
def test_unsupported_quantisation(fp8: Path, changes: dict[str, Any], named: str) -> None:
    edit_json(fp8 / "config.json", quantization_config=FP8_STATIC | changes)
    with pytest.raises(UnsupportedQuantizationError, match=named) as caught:
        open_checkpoint(fp8)
    assert "FP8 as written by fp8" in caught.value.hint
    assert caught.value.exit_code == 3


def test_fp8_weights_without_a_configuration(fp8: Path) -> None:
    edit_json(fp8 / "config.json", quantization_config=None)
    with pytest.raises(CheckpointFormatError, match=r"is FP8, but .* has no quantization_config"):
        open_checkpoint(fp8)


@pytest.mark.parametrize("scale", ["weight_scale", "input_scale"])
def test_missing_scale(fp8: Path, scale: str) -> None:
    replace(fp8, lambda tensors: {k: v for k, v in tensors.items() if k != f"{MODULE}.{scale}"})
    with pytest.raises(MissingTensorError, match=f"{MODULE}.{scale}"):
        open_checkpoint(fp8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize(
    "scale", [f"{MODULE}.weight_scale", f"{MODULE}.input_scale", "model.layers.0.self_attn.kv_scale"]
)
def test_scale_that_is_no_positive_number(fp8: Path, scale: str, value: float) -> None:
    replace(fp8, lambda tensors: tensors | {scale: torch.tensor(value)})
    with pytest.raises(TensorValueError, match=f"scale {scale} is {value}"):
        open_checkpoint(fp8)


def test_scale_per_channel_is_refused(fp8: Path) -> None:
    replace(fp8, lambda tensors: tensors | {f"{MODULE}.weight_scale": torch.ones(256, 1)})
    with pytest.raises(TensorShapeError, match=rf"{MODULE}.weight_scale is f32 of shape \[256, 1\]"):
        open_checkpoint(fp8)


def test_scale_of_k_without_one_of_v(fp8: Path) -> None:
    replace(fp8, lambda tensors: tensors | {"model.layers.0.self_attn.k_scale": torch.tensor(0.5)})
    with pytest.raises(MissingTensorError, match=r"layers.0.self_attn.v_scale"):
        open_checkpoint(fp8)
