"""`quant_method: fp8` with `weight_block_size: [128, 128]`, as DeepSeek published it and transformers writes it.

Per quantised layer: `weight` e4m3fn [N, K] and `weight_scale_inv` [ceil(N / 128), ceil(K / 128)], f32 or, with
`scale_fmt: ue8m0`, one byte each; values are multiplied by it, despite the name. Activations are quantised per token
and 128 elements. Readers: vLLM's model_executor/layers/quantization/fp8.py, transformers'
integrations/finegrained_fp8.py.
"""

from __future__ import annotations

from paiton_aot.checkpoint.fields import Fields, shown
from paiton_aot.checkpoint.quantization.description import BLOCK, Quantization, ScaleKind
from paiton_aot.checkpoint.quantization.fp8 import check_type, ignored_layers
from paiton_aot.checkpoint.quantization.modules import Contents, Scheme, describe, unsupported
from paiton_aot.checkpoint.quantization.patterns import has_component


def parse(section: Fields, contents: Contents) -> Quantization:
    """Returns the description of the checkpoint.

    Raises:
        UnsupportedQuantizationError: a variant of the format that we do not read.
        CheckpointError: configuration and tensors disagree; see `modules.describe`.
    """
    check_type(section)
    size = section.values.get("weight_block_size")
    if size != [BLOCK, BLOCK]:
        raise unsupported(f"{section.what} has weight_block_size {shown(size)}, not [{BLOCK}, {BLOCK}]")
    activations = section.values.get("activation_scheme", "dynamic")
    if activations != "dynamic":
        raise unsupported(f"{section.what} has activation_scheme {shown(activations)} with weight_block_size")
    scale_format = section.values.get("scale_fmt", "float")
    if scale_format not in ("float", "ue8m0", None):
        raise unsupported(f"{section.what} has scale_fmt {shown(scale_format)}")
    ignored = ignored_layers(section)
    scheme = Scheme(ScaleKind.BLOCK, scale="weight_scale_inv")
    return describe(
        contents, "fp8", lambda module: None if has_component(module, ignored) else scheme, "modules_to_not_convert"
    )
