"""`quant_method: fbgemm_fp8`: a scale per row of the weight, activations quantised per token. Meta's Llama 3.1 405B.

Per quantised layer: `weight` e4m3fn [N, K] and `weight_scale` [N, 1]. `activation_scale_ub` bounds what counts as a
token's largest magnitude; it is not applied here: larger activations keep their value instead of being clipped.
Readers: vLLM's model_executor/layers/quantization/fbgemm_fp8.py, transformers' integrations/fbgemm_fp8.py.
"""

from __future__ import annotations

from paiton_aot.checkpoint.fields import Fields
from paiton_aot.checkpoint.quantization.description import Quantization, ScaleKind
from paiton_aot.checkpoint.quantization.fp8 import ignored_layers
from paiton_aot.checkpoint.quantization.modules import Contents, Scheme, describe
from paiton_aot.checkpoint.quantization.patterns import has_component


def parse(section: Fields, contents: Contents) -> Quantization:
    """Returns the description of the checkpoint.

    Raises:
        CheckpointError: configuration and tensors disagree; see `modules.describe`.
    """
    section.number("activation_scale_ub", 1200.0)
    ignored, scheme = ignored_layers(section), Scheme(ScaleKind.ROW)
    return describe(
        contents,
        "fbgemm_fp8",
        lambda module: None if has_component(module, ignored) else scheme,
        "modules_to_not_convert",
    )
