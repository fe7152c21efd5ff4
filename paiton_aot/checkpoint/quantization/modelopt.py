"""NVIDIA's modelopt, `quant_algo: FP8`: one scale per tensor for weights and activations.

Per quantised layer: `weight` e4m3fn [N, K], `weight_scale` and `input_scale` one number each; `k_proj.k_scale` and
`v_proj.v_scale` with `kv_cache_quant_algo: FP8`. The configuration is hf_quant_config.json, or, flat, config.json's
quantization_config with `quant_method: modelopt`. Reader: vLLM's model_executor/layers/quantization/modelopt.py.
"""

from __future__ import annotations

from paiton_aot.checkpoint.fields import Fields, shown
from paiton_aot.checkpoint.quantization.description import Quantization, ScaleKind
from paiton_aot.checkpoint.quantization.modules import Contents, Scheme, describe, unsupported
from paiton_aot.checkpoint.quantization.patterns import has_component, matches_wildcard


def parse(section: Fields, contents: Contents) -> Quantization:
    """Returns the description of the checkpoint.

    Args:
        section: the content of hf_quant_config.json, or quantization_config of config.json.
        contents: of the checkpoint.

    Raises:
        UnsupportedQuantizationError: another algorithm than FP8.
        CheckpointError: configuration and tensors disagree; see `modules.describe`.
    """
    section = section.section("quantization") or section
    algorithm = section.values.get("quant_algo")
    if algorithm != "FP8":
        raise unsupported(f"{section.what} has quant_algo {shown(algorithm)}")
    cache = section.values.get("kv_cache_quant_algo")
    if cache not in (None, "FP8"):
        raise unsupported(f"{section.what} has kv_cache_quant_algo {shown(cache)}")
    excluded = (*section.strings("exclude_modules"), *section.strings("ignore"))
    stored = contents.stored_as_fp8

    def scheme(module: str) -> Scheme | None:
        if has_component(module, excluded) or matches_wildcard(module, excluded):
            return None
        # Some readers take any substring for a match; "layers.1" then names layer 10 too, and the tensors must tell.
        if module not in stored and any(pattern in module for pattern in excluded):
            return None
        return Scheme(ScaleKind.TENSOR, static=True)

    return describe(contents, "modelopt", scheme, "exclude_modules")
