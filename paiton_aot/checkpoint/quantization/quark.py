"""AMD Quark's own export, `quant_method: quark`: per tensor or per channel, static or dynamic, layer by layer.

Per quantised layer: `weight` e4m3fn [N, K], `weight_scale` one number (`per_tensor`) or [N] (`per_channel`) and, with
static activations, `input_scale` one number; `k_proj.output_scale` and `v_proj.output_scale` for the KV cache. How a
layer is quantised is in the first pattern of `layer_quant_config` that matches its name, else in
`layer_type_quant_config`, else in `global_quant_config`. Reader: vLLM's
model_executor/layers/quantization/quark/quark.py.
"""

from __future__ import annotations

from paiton_aot.checkpoint.fields import Fields, shown
from paiton_aot.checkpoint.quantization.description import Quantization, ScaleKind
from paiton_aot.checkpoint.quantization.modules import Contents, Scheme, describe, unsupported
from paiton_aot.checkpoint.quantization.patterns import has_component, matches_target, matches_wildcard

_KINDS = {"per_tensor": ScaleKind.TENSOR, "per_channel": ScaleKind.ROW}
_LINEAR_TYPES = ("Linear", "nn.Linear", "torch.nn.Linear", "<class 'torch.nn.modules.linear.Linear'>")


def parse(section: Fields, contents: Contents) -> Quantization:
    """Returns the description of the checkpoint.

    Raises:
        UnsupportedQuantizationError: a number format or a granularity that we do not read.
        CheckpointError: configuration and tensors disagree; see `modules.describe`.
    """
    export = section.section("export")
    if export is not None and export.values.get("weight_format", "real_quantized") != "real_quantized":
        raise unsupported(f"{export.what} has weight_format {shown(export.values['weight_format'])}")
    excluded = section.strings("exclude")
    by_name = _schemes(section.section("layer_quant_config"))
    by_type = _schemes(section.section("layer_type_quant_config"))
    default = _scheme(section.section("global_quant_config"))

    def scheme(module: str) -> Scheme | None:
        if matches_target(module, excluded) or matches_wildcard(module, excluded) or has_component(module, excluded):
            return None
        for pattern, found in by_name.items():
            if matches_wildcard(module, [pattern]):
                return found
        for kind in _LINEAR_TYPES:
            if kind in by_type:
                return by_type[kind]
        return default

    return describe(contents, "quark", scheme, "exclude")


def _schemes(section: Fields | None) -> dict[str, Scheme | None]:
    return {} if section is None else {name: _scheme(section.section(name)) for name in section.values}


def _scheme(section: Fields | None) -> Scheme | None:
    """Returns how a layer configuration stores a module; None where it says nothing of weights."""
    weight = section.section("weight") if section else None
    if section is None or weight is None:
        return None
    _check_number(weight)
    granularity = weight.values.get("qscheme")
    if not isinstance(granularity, str) or granularity not in _KINDS:
        raise unsupported(f"{weight.what} has qscheme {shown(granularity)}")
    if weight.flag("is_dynamic"):
        raise unsupported(f"{weight.what} has is_dynamic true")
    inputs = section.section("input_tensors")
    if inputs is None:
        return Scheme(_KINDS[granularity])
    _check_number(inputs)
    static = not inputs.flag("is_dynamic")
    if static and inputs.values.get("qscheme") != "per_tensor":
        raise unsupported(f"{inputs.what} has static qscheme {shown(inputs.values.get('qscheme'))}")
    return Scheme(_KINDS[granularity], static)


def _check_number(section: Fields) -> None:
    if section.values.get("dtype") != "fp8_e4m3":
        raise unsupported(f"{section.what} has dtype {shown(section.values.get('dtype'))}")
