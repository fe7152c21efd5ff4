"""`quant_method: fp8` with one scale per tensor: AutoFP8, Quark's fp8 mode, transformers without block sizes.

Per quantised layer: `weight` e4m3fn [N, K], `weight_scale` one number and, with static activations, `input_scale` one
number. transformers calls the two `weight_scale_inv` and `activation_scale`; it multiplies by both all the same.
Readers: vLLM's model_executor/layers/quantization/fp8.py, transformers' integrations/finegrained_fp8.py.
"""

from __future__ import annotations

from paiton_aot.checkpoint.fields import Fields, shown
from paiton_aot.checkpoint.quantization.description import Quantization, ScaleKind
from paiton_aot.checkpoint.quantization.modules import Contents, Scheme, describe, unsupported
from paiton_aot.checkpoint.quantization.patterns import has_component


def parse(section: Fields, contents: Contents) -> Quantization:
    """Returns the description of the checkpoint.

    Raises:
        UnsupportedQuantizationError: a variant of the format that we do not read.
        CheckpointError: configuration and tensors disagree; see `modules.describe`.
    """
    check_type(section)
    activations = section.values.get("activation_scheme", "dynamic")
    if activations not in ("static", "dynamic"):
        raise unsupported(f"{section.what} has activation_scheme {shown(activations)}")
    ignored = ignored_layers(section)

    def scheme(module: str) -> Scheme | None:
        if has_component(module, ignored):
            return None
        inverse = contents.has(module, "weight_scale_inv") and not contents.has(module, "weight_scale")
        names = ("weight_scale_inv", "activation_scale") if inverse else ("weight_scale", "input_scale")
        return Scheme(ScaleKind.TENSOR, activations == "static", *names)

    return describe(contents, "fp8", scheme, "ignored_layers")


def check_type(section: Fields) -> None:
    """Checks what all variants of `quant_method: fp8` share: the number format of weights and of the KV cache."""
    if section.values.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise unsupported(f"{section.what} has fmt {shown(section.values['fmt'])}")
    kv_scheme = section.values.get("kv_cache_scheme")
    if kv_scheme not in (None, "static") and not is_static_fp8(kv_scheme):
        raise unsupported(f"{section.what} has kv_cache_scheme {shown(kv_scheme)}")


def is_static_fp8(scheme: object) -> bool:
    """Whether a kv_cache_scheme in compressed-tensors' spelling means one FP8 scale per tensor."""
    expected = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    return isinstance(scheme, dict) and all(scheme.get(key, value) == value for key, value in expected.items())


def ignored_layers(section: Fields) -> tuple[str, ...]:
    """Returns the modules that are left alone, in either exporter's spelling."""
    return tuple(sorted({*section.strings("ignored_layers"), *section.strings("modules_to_not_convert")}))
