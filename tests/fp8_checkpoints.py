"""Makers of checkpoints in every FP8 format that the build reads, each laid out as its exporter lays it out.

One layer of each Llama is left in bf16, by whatever means the format has for that. Needs torch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.make_checkpoints import FP8_MAX, Tensors, edit_json, rewrite, tiny_llama

BLOCK = 128
LINEAR = ("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")
PLAIN = "model.layers.1.mlp.down_proj"
"""The layer that is left in bf16."""

K_SCALE, V_SCALE, INPUT_SCALE = 0.0625, 0.125, 0.03125

Scales = Callable[[torch.Tensor], torch.Tensor]


def per_tensor(weight: torch.Tensor) -> torch.Tensor:
    """Returns one scale, of shape []."""
    return weight.abs().max() / FP8_MAX


def per_row(weight: torch.Tensor) -> torch.Tensor:
    """Returns a scale for each row, [N, 1]."""
    return weight.abs().amax(dim=1, keepdim=True) / FP8_MAX


def per_block(weight: torch.Tensor) -> torch.Tensor:
    """Returns a scale for each block of 128 x 128, the last ones narrower: [ceil(N / 128), ceil(K / 128)]."""
    rows = [block.split(BLOCK, dim=1) for block in weight.split(BLOCK, dim=0)]
    return torch.stack([torch.stack([block.abs().max() / FP8_MAX for block in row]) for row in rows])


def expanded(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Returns scales of any kind as f32 that multiplies a weight elementwise."""
    scale = scale.float()
    blocks = tuple(-(-size // BLOCK) for size in weight.shape)
    if scale.shape != blocks or scale.numel() == 1:
        return scale.reshape(-1, 1)
    grid = scale.repeat_interleave(BLOCK, dim=0).repeat_interleave(BLOCK, dim=1)
    return grid[: weight.shape[0], : weight.shape[1]]


@dataclass(frozen=True)
class Format:
    """How one exporter writes a checkpoint.

    Attributes:
        scales: of a weight, in f32.
        config: quantization_config.
        stored: what is stored of the scales: their dtype, their shape.
        scale: the name of a weight's scales, after the module's.
        input_scale: likewise of its static activation scale, "" where there is none.
        kv: the names of K's and V's scales within a layer; none for no names.
        key: of the configuration in config.json.
        file: where the configuration is instead.
    """

    scales: Scales
    config: Mapping[str, Any]
    stored: Scales = field(default=lambda scale: scale)
    scale: str = "weight_scale"
    input_scale: str = ""
    kv: tuple[str, ...] = ()
    key: str = "quantization_config"
    file: str = ""


def _powers_of_two(weight: torch.Tensor) -> torch.Tensor:
    return per_block(weight).log2().ceil().exp2()


def _bf16(scales: Scales) -> Scales:
    """Rounds scales before anything is quantised with them, as a format does that keeps them in the model's dtype."""
    return lambda weight: scales(weight).bfloat16()


_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head", PLAIN]}
_QUARK_NUMBER = {"dtype": "fp8_e4m3", "is_dynamic": False, "qscheme": "per_tensor", "observer_cls": "PerTensorMinMax"}
_QUARK_GLOBAL = {"weight": _QUARK_NUMBER, "input_tensors": _QUARK_NUMBER, "output_tensors": None, "bias": None}
_QUARK_KV = {**_QUARK_GLOBAL, "output_tensors": _QUARK_NUMBER}


def _quark(everywhere: Mapping[str, Any], kv: Mapping[str, Any] | None) -> dict[str, Any]:
    layers = {"*k_proj": kv, "*v_proj": kv} if kv else {}
    return {
        "quant_method": "quark",
        "global_quant_config": everywhere,
        "layer_quant_config": layers,
        "layer_type_quant_config": {},
        "exclude": ["lm_head", PLAIN],
        "export": {"kv_cache_group": list(layers), "pack_method": "reorder", "weight_format": "real_quantized"},
    }


def _compressed(strategy: str, inputs: Mapping[str, Any] | None, **weights: object) -> dict[str, Any]:
    number = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": "tensor"}
    group = {
        "targets": ["Linear"],
        "weights": {**number, "strategy": strategy, **weights},
        "input_activations": {**number, **inputs} if inputs is not None else None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", r"re:.*layers\.1\.mlp\.down_proj$"],
        "kv_cache_scheme": number,
        "quantization_status": "compressed",
    }


_MODELOPT = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head", "*layers.1.mlp.down*"]}
_SELF = ("self_attn.k_scale", "self_attn.v_scale")
_PROJECTIONS = ("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale")

FORMATS: Mapping[str, Format] = {
    "autofp8": Format(
        per_tensor,
        {
            "quant_method": "fp8",
            "activation_scheme": "static",
            "ignored_layers": ["lm_head", PLAIN],
            "kv_cache_scheme": "static",
        },
        input_scale="input_scale",
        kv=("self_attn.kv_scale",),
    ),
    "fp8-tensor": Format(per_tensor, {**_FP8, "weight_block_size": None}, scale="weight_scale_inv"),
    "fp8-block": Format(per_block, {**_FP8, "weight_block_size": [128, 128]}, scale="weight_scale_inv"),
    "fp8-block-ue8m0": Format(
        _powers_of_two,
        {**_FP8, "weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
        lambda scale: scale.to(torch.float8_e8m0fnu),
        scale="weight_scale_inv",
    ),
    "quark-tensor": Format(per_tensor, _quark(_QUARK_GLOBAL, _QUARK_KV), input_scale="input_scale", kv=_PROJECTIONS),
    "quark-channel": Format(
        per_row,
        _quark(
            {
                "weight": {**_QUARK_NUMBER, "qscheme": "per_channel", "ch_axis": 0},
                "input_tensors": {**_QUARK_NUMBER, "qscheme": "per_channel", "is_dynamic": True},
            },
            None,
        ),
        lambda scale: scale.reshape(-1),
    ),
    "compressed-tensor": Format(
        _bf16(per_tensor),
        {**_compressed("tensor", {}), "format": "naive-quantized"},
        lambda scale: scale.reshape(1),
        input_scale="input_scale",
        kv=_SELF,
    ),
    "compressed-channel": Format(
        _bf16(per_row), _compressed("channel", {"dynamic": True, "strategy": "token"}), kv=_SELF
    ),
    "compressed-old": Format(per_row, _compressed("channel", None), key="compression_config"),
    "compressed-block": Format(
        per_block,
        _compressed("block", {"dynamic": True, "strategy": "group", "group_size": 128}, block_structure=[128, 128]),
    ),
    "fbgemm": Format(
        per_row,
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head", PLAIN]},
    ),
    "modelopt": Format(
        per_tensor,
        {"producer": {"name": "modelopt", "version": "0.33.0"}, "quantization": _MODELOPT},
        input_scale="input_scale",
        kv=("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
        file="hf_quant_config.json",
    ),
    "modelopt-flat": Format(per_tensor, {"quant_method": "modelopt", **_MODELOPT}, input_scale="input_scale"),
}
"""By a name for tests."""


def save_fp8(path: Path, name: str, *, small: bool = False) -> Path:
    """Writes a random tiny Llama in a format of `FORMATS`; returns `path`.

    Two ranks divide its rows and columns into whole blocks of 128; `small`: they do not, and it has tiny_llama's shape.
    """
    tiny_llama(path) if small else tiny_llama(path, hidden=256, intermediate=512, head_dim=64)
    quantize(path, name)
    return path


def quantize(path: Path, name: str) -> None:
    """Turns a checkpoint of bf16 weights into one of a format of `FORMATS`."""
    form = FORMATS[name]
    rewrite(path, lambda tensors: quantized(tensors, form))
    configure(path, name, form.config)


def section_of(path: Path, name: str) -> dict[str, Any]:
    """Returns the configuration of a checkpoint in a format, free to be changed."""
    form = FORMATS[name]
    config: dict[str, Any] = json.loads((path / (form.file or "config.json")).read_text())
    section: dict[str, Any] = config if form.file else config[form.key]
    return section


def configure(path: Path, name: str, section: Mapping[str, Any]) -> None:
    """Replaces the configuration of a checkpoint in a format."""
    form = FORMATS[name]
    if form.file:
        (path / form.file).write_text(json.dumps(section))
    else:
        edit_json(path / "config.json", **{form.key: section})


def quantized(tensors: Tensors, form: Format) -> Tensors:
    """Returns the tensors with linear layers, all but one, as the format stores them."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if not name.endswith(LINEAR) or module == PLAIN:
            out[name] = tensor
            continue
        values = tensor.float()
        scale = form.scales(values)
        codes = values / expanded(scale, values)
        out[name] = codes.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        out[f"{module}.{form.scale}"] = form.stored(scale)
        if form.input_scale:
            out[f"{module}.{form.input_scale}"] = torch.tensor([INPUT_SCALE])
    for layer in range(2):
        for kv, value in zip(form.kv, (K_SCALE, V_SCALE), strict=False):
            out[f"model.layers.{layer}.{kv}"] = torch.tensor(value)
    return out


def dequantized(tensors: Tensors, form: Format) -> Tensors:
    """Returns the plain f32 weights of a checkpoint in a format: what it means, by the format's own definition."""
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(("scale", "scale_inv"))}
    return {
        name: tensor.float() * expanded(tensors[scale], tensor)
        if (scale := f"{name.removesuffix('weight')}{form.scale}") in tensors
        else tensor.float()
        for name, tensor in plain.items()
    }
