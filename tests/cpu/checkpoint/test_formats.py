"""Every FP8 format, read from a checkpoint in its exporter's layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.quantization.scales import weight_scales
from paiton_artifacts.errors import TensorShapeError
from tests.fp8_checkpoints import (
    FORMATS,
    INPUT_SCALE,
    K_SCALE,
    PLAIN,
    V_SCALE,
    dequantized,
    expanded,
    section_of,
)
from tests.make_checkpoints import edit_json, load_tensors, rewrite

UP = "model.layers.0.mlp.up_proj"
BF16_ROUNDING = 2.0**-8


@pytest.mark.parametrize("name", FORMATS)
def test_description_and_scales(formats: Path, name: str) -> None:
    form, stored = FORMATS[name], load_tensors(formats / name)
    with open_checkpoint(formats / name) as checkpoint:
        quantization = checkpoint.quantization
        assert quantization is not None
        assert len(quantization.modules) == 2 * 7 - 1
        assert not quantization.is_quantized(PLAIN)
        assert not quantization.is_quantized("lm_head")
        assert quantization.static_activations == bool(form.input_scale)
        if form.input_scale:
            assert checkpoint.input_scale(UP) == INPUT_SCALE
        kv = {0: (1.0, 1.0), 1: (K_SCALE, K_SCALE), 2: (K_SCALE, V_SCALE)}[len(form.kv)]
        assert (checkpoint.kv_scales(0), checkpoint.kv_scales(1)) == (kv, kv)
        assert quantization.kv_scales == bool(form.kv)
        for module in quantization.modules:
            weight = checkpoint.tensor(f"{module}.weight")
            scales = torch.from_numpy(weight_scales(checkpoint, module))
            values = torch.from_numpy(weight.read_rows(0, weight.rows).astype(np.float32))
            whole = expanded(stored[f"{module}.{form.scale}"], values).expand_as(values)
            assert torch.equal(expanded(scales, values).expand_as(values), whole)


@pytest.mark.parametrize(
    "name", ["fp8-tensor", "fp8-block", "fp8-block-ue8m0", "compressed-channel", "compressed-block"]
)
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
def test_transformers_reads_the_same_weights(formats: Path, name: str) -> None:
    """The makers' layouts are what the formats' own library reads, with the same values."""
    known = CompressedTensorsConfig if name.startswith("compressed") else FineGrainedFP8Config
    model = AutoModelForCausalLM.from_pretrained(
        formats / name, dtype=torch.float32, quantization_config=known(dequantize=True)
    )
    found, wanted = model.state_dict(), dequantized(load_tensors(formats / name), FORMATS[name])
    assert found.keys() == wanted.keys()
    # compressed-tensors multiplies in the dtype of the scales.
    tolerance = BF16_ROUNDING if name == "compressed-channel" else 0.0
    for key, value in wanted.items():
        assert torch.allclose(found[key].float(), value, rtol=tolerance, atol=0.0), key


def test_each_layer_has_its_own_scheme(own_format: Callable[[str], Path]) -> None:
    """Two groups: one named by an expression, one by its class, which a name outranks."""
    path, other = own_format("compressed-channel"), own_format("compressed-tensor")
    tensors, per_tensor = load_tensors(path), load_tensors(other)
    names = [name for name in per_tensor if ".mlp." in name and not name.startswith(PLAIN)]
    rewrite(path, lambda _: {**tensors, **{name: per_tensor[name] for name in names}})
    section = section_of(path, "compressed-channel")
    group = section_of(other, "compressed-tensor")["config_groups"]["group_0"]
    section["config_groups"]["group_1"] = {**group, "targets": [r"re:.*\.mlp\."]}
    edit_json(path / "config.json", quantization_config=section)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.quantization is not None
        kinds = {name.split(".")[3]: module.kind.value for name, module in checkpoint.quantization.modules.items()}
        assert kinds == {"self_attn": "row", "mlp": "tensor"}
        assert not checkpoint.quantization.static_activations


def test_powers_of_two_as_plain_bytes(own_format: Callable[[str], Path], formats: Path) -> None:
    """Some exporters store ue8m0 under the dtype U8; other scales are no bytes."""
    path, scale = own_format("fp8-block-ue8m0"), f"{UP}.weight_scale_inv"
    rewrite(path, lambda tensors: {**tensors, scale: tensors[scale].view(torch.uint8)})
    with open_checkpoint(path) as checkpoint, open_checkpoint(formats / "fp8-block-ue8m0") as plain:
        assert np.array_equal(weight_scales(checkpoint, UP), weight_scales(plain, UP))
    other = own_format("fp8-tensor")
    rewrite(other, lambda tensors: {**tensors, scale: torch.tensor(120, dtype=torch.uint8)})
    with pytest.raises(TensorShapeError, match=f"scale {scale} is u8"):
        open_checkpoint(other)
