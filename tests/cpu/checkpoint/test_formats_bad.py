"""FP8 checkpoints that contradict themselves, in every format: our errors, with the exit code of a bad checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.quantization.patterns import matches_target
from paiton_artifacts.errors import CheckpointFormatError, PaitonError, UnsupportedQuantizationError
from tests.fp8_checkpoints import FORMATS, PLAIN, configure, section_of
from tests.make_checkpoints import Tensors, edit_json, rewrite

BAD_CHECKPOINT = 6
UP = "model.layers.0.mlp.up_proj"
UE8M0 = "fp8-block-ue8m0"

OwnFormat = Callable[[str], Path]


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: change(tensors[name])}


def scale_of(name: str) -> str:
    return f"{UP}.{FORMATS[name].scale}"


def check_refused(path: Path, message: str) -> None:
    with pytest.raises(PaitonError, match=message) as caught:
        open_checkpoint(path)
    assert caught.value.exit_code == BAD_CHECKPOINT
    assert caught.value.hint


@pytest.mark.parametrize("name", FORMATS)
def test_missing_weight_scale(own_format: OwnFormat, name: str) -> None:
    path = own_format(name)
    rewrite(path, without(scale_of(name)))
    check_refused(path, f"tensor {UP}.weight_scale.* is not in the checkpoint")


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.input_scale])
def test_missing_input_scale(own_format: OwnFormat, name: str) -> None:
    path = own_format(name)
    rewrite(path, without(f"{UP}.input_scale"))
    check_refused(path, f"tensor {UP}.input_scale is not in the checkpoint")


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if len(form.kv) == 2])
def test_missing_scale_of_v(own_format: OwnFormat, name: str) -> None:
    path = own_format(name)
    rewrite(path, without(f"model.layers.1.{FORMATS[name].kv[1]}"))
    check_refused(path, f"tensor model.layers.1.{FORMATS[name].kv[1]} is not in the checkpoint")


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != UE8M0])
def test_scale_that_is_no_positive_number(own_format: OwnFormat, name: str, value: float) -> None:
    def spoil(scales: torch.Tensor) -> torch.Tensor:
        spoiled = scales.clone()
        spoiled.view(-1)[-1] = value
        return spoiled

    path = own_format(name)
    rewrite(path, changed(scale_of(name), spoil))
    check_refused(path, f"scale {scale_of(name)} is {value}, expected a positive number")


def test_power_of_two_that_is_nan(own_format: OwnFormat) -> None:
    path = own_format(UE8M0)
    rewrite(path, changed(scale_of(UE8M0), lambda scales: torch.full_like(scales, float("nan"))))
    check_refused(path, f"scale {scale_of(UE8M0)} is nan")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(2,), (511, 1), (4, 3), (2, 4), (8, 4), (0,)])
def test_scales_of_another_shape(own_format: OwnFormat, name: str, shape: tuple[int, ...]) -> None:
    """A weight of 512 x 256 has one scale, 512, or 4 x 2 of them."""
    path = own_format(name)
    rewrite(path, changed(scale_of(name), lambda scales: torch.ones(shape).to(scales.dtype)))
    check_refused(path, f"scale {scale_of(name)} is .* of shape .*expected one number or a shape of")


@pytest.mark.parametrize("name", FORMATS)
def test_layer_that_is_quantised_but_excluded(own_format: OwnFormat, name: str) -> None:
    path = own_format(name)
    rewrite(path, changed(f"{PLAIN}.weight", lambda weight: weight.to(torch.float8_e4m3fn)))
    check_refused(path, f"tensor {PLAIN}.weight is FP8, but .* lists it in ")


@pytest.mark.parametrize("name", FORMATS)
def test_layer_that_is_neither_quantised_nor_excluded(own_format: OwnFormat, name: str) -> None:
    path = own_format(name)
    rewrite(path, changed(f"{UP}.weight", lambda weight: weight.bfloat16()))
    check_refused(path, f"tensor {UP}.weight is not FP8, but .* does not list it in ")


@pytest.mark.parametrize("name", FORMATS)
def test_scale_of_a_layer_in_bf16(own_format: OwnFormat, name: str) -> None:
    """Its weight would be off by that factor, or somebody forgot to scale it back."""
    path = own_format(name)
    rewrite(path, lambda tensors: {**tensors, f"{PLAIN}.weight_scale": torch.ones(1)})
    check_refused(path, f"tensor {PLAIN}.weight_scale is there, but {PLAIN}.weight is bf16")


@pytest.mark.parametrize(
    ("stored", "claimed"), [("fp8-block", "autofp8"), ("autofp8", "quark-channel"), ("fbgemm", "fp8-block")]
)
def test_configuration_of_another_format(own_format: OwnFormat, stored: str, claimed: str) -> None:
    path = own_format(stored)
    edit_json(path / "config.json", quantization_config=FORMATS[claimed].config)
    check_refused(path, "scale|tensor")


def test_two_configurations(own_format: OwnFormat) -> None:
    path = own_format("compressed-old")
    edit_json(path / "config.json", quantization_config=FORMATS["compressed-channel"].config)
    check_refused(path, "both quantization_config and compression_config")


def edited(section: Mapping[str, Any], place: str, value: object) -> dict[str, Any]:
    """Returns a copy of a configuration with the field at a place like "a.b" changed; None removes it."""
    field, _, rest = place.partition(".")
    new = edited(section.get(field) or {}, rest, value) if rest else value
    return {key: item for key, item in {**section, field: new}.items() if item is not None}


UNSUPPORTED = [
    ("fp8-block", "weight_block_size", [64, 64], r"weight_block_size \[64, 64\], not \[128, 128\]"),
    ("fp8-block", "weight_block_size", [128], r"weight_block_size \[128\]"),
    ("fp8-block", "activation_scheme", "static", "activation_scheme 'static' with weight_block_size"),
    ("fp8-block", "scale_fmt", "e5m2", "scale_fmt 'e5m2'"),
    ("quark-tensor", "global_quant_config.weight.dtype", "int4", "dtype 'int4'"),
    ("quark-tensor", "global_quant_config.weight.qscheme", "per_group", "qscheme 'per_group'"),
    ("quark-tensor", "global_quant_config.input_tensors.qscheme", "per_channel", "static qscheme 'per_channel'"),
    ("quark-tensor", "export.weight_format", "fake_quantized", "weight_format 'fake_quantized'"),
    ("compressed-channel", "format", "pack-quantized", "format 'pack-quantized'"),
    ("compressed-channel", "config_groups.group_0.weights.num_bits", 4, "'num_bits': 4"),
    ("compressed-channel", "config_groups.group_0.weights.strategy", "group", "strategy 'group'"),
    ("compressed-channel", "config_groups.group_0.output_activations", {"num_bits": 8}, "output_activations"),
    ("compressed-block", "config_groups.group_0.weights.block_structure", [64, 64], r"block_structure \[64, 64\]"),
    ("compressed-channel", "sparsity_config", {"format": "sparse-24-bitmask"}, "sparsity_config"),
    ("compressed-channel", "transform_config", {"config_groups": {"R1": {}}}, "transform_config"),
    ("compressed-channel", "kv_cache_scheme", {"num_bits": 4}, "kv_cache_scheme"),
    ("modelopt-flat", "quant_algo", "NVFP4", "quant_algo 'NVFP4'"),
    ("modelopt", "quantization.kv_cache_quant_algo", "NVFP4", "kv_cache_quant_algo 'NVFP4'"),
]


@pytest.mark.parametrize(("name", "place", "value", "message"), UNSUPPORTED)
def test_unsupported_variants(own_format: OwnFormat, name: str, place: str, value: object, message: str) -> None:
    path = own_format(name)
    configure(path, name, edited(section_of(path, name), place, value))
    with pytest.raises(UnsupportedQuantizationError, match=message) as caught:
        open_checkpoint(path)
    assert "compressed-tensors" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("quark-tensor", "global_quant_config", "fp8"),
        ("quark-tensor", "exclude", {"lm_head": 1}),
        ("quark-tensor", "global_quant_config.weight.is_dynamic", "no"),
        ("quark-tensor", "layer_quant_config", {"*": 7}),
        ("compressed-channel", "config_groups", {}),
        ("compressed-channel", "config_groups", [1]),
        ("compressed-channel", "config_groups.group_0", "all"),
        ("compressed-channel", "config_groups.group_0.targets", 3),
        ("compressed-channel", "ignore", ["re:("]),
        ("fbgemm", "activation_scale_ub", -1),
        ("fbgemm", "modules_to_not_convert", "lm_head"),
        ("modelopt", "quantization", []),
    ],
)
def test_malformed_configuration(own_format: OwnFormat, name: str, place: str, value: object) -> None:
    path = own_format(name)
    configure(path, name, edited(section_of(path, name), place, value))
    with pytest.raises(CheckpointFormatError) as caught:
        open_checkpoint(path)
    assert caught.value.exit_code == BAD_CHECKPOINT


@pytest.mark.parametrize("expression", ["(a*)*b", r"(a*|\\)*b", "(a|a)+b", ".*.*.*.*.*b", "(.*){9}b", "x" * 600])
def test_expressions_that_could_take_forever(expression: str) -> None:
    with pytest.raises(CheckpointFormatError, match="could take very long"):
        matches_target("model.layers.0.self_attn.q_proj", [f"re:{expression}"])


def test_expressions_that_occur() -> None:
    name = "model.layers.11.mlp.down_proj"
    assert matches_target(name, ["lm_head", r"re:.*\.layers\.\d+\.mlp\..*"])
    assert matches_target(name, [r"re:model\.layers\.(0|11)\."])
    assert not matches_target(name, ["re:layers", "down_proj", "re:.*mlp$"])
    assert matches_target(name, ["Linear"], ("Linear",))
