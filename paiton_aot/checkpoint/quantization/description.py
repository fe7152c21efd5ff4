"""What every FP8 format comes down to: which modules are stored as e4m3fn, and where their scales are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

BLOCK = 128
"""Rows and columns of a weight that share one scale in the block formats."""


class ScaleKind(Enum):
    """What part of a weight `[N, K]` one scale belongs to."""

    TENSOR = "tensor"  # one number: [], [1] or [1, 1]
    ROW = "row"  # [N] or [N, 1]
    BLOCK = "block"  # [ceil(N / 128), ceil(K / 128)]


@dataclass(frozen=True, slots=True)
class QuantizedModule:
    """One linear layer whose weight is stored as e4m3fn.

    Attributes:
        kind: what one of its scales belongs to.
        scale: name of the tensor with the scales; value = stored * scale.
        input_scale: name of the tensor with the static scale of its activations; "" where they are quantised
            dynamically or not at all.
    """

    kind: ScaleKind
    scale: str
    input_scale: str = ""


@dataclass(frozen=True, slots=True)
class Quantization:
    """A checkpoint whose linear layers are stored as e4m3fn, all or some of them.

    Attributes:
        format: what people call the format, e.g. "compressed-tensors".
        modules: the quantised modules by name, e.g. "model.layers.0.mlp.up_proj".
        kv_scales: at least one layer has scales for its KV cache.
    """

    format: str
    modules: Mapping[str, QuantizedModule]
    kv_scales: bool

    def is_quantized(self, module: str) -> bool:
        """Returns whether the weight of this module is stored as FP8."""
        return module in self.modules

    @property
    def static_activations(self) -> bool:
        """Whether every quantised module of the layers has a static activation scale."""
        layers = [module for name, module in self.modules.items() if name != "lm_head"]
        return bool(layers) and all(module.input_scale for module in layers)
