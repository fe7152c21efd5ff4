"""A checkpoint whose weights are not there: tensors known by name from its index, by shape and dtype from its config.

That is all that planning needs: sizes, kernels and plans of a model whose hundreds of gigabytes are elsewhere. What
is derived here is what transformers' classes and the FP8 formats prescribe; a build, which reads the weights' own
headers, holds them against the same prescription.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_aot.checkpoint.base import NUMPY_DTYPES, Experts, ModelConfig, SourceTensor
from paiton_aot.checkpoint.fields import Fields, shown
from paiton_aot.checkpoint.quantization.description import BLOCK
from paiton_aot.checkpoint.quantization.fp8 import ignored_layers
from paiton_aot.checkpoint.quantization.modules import FP8, LINEAR
from paiton_aot.checkpoint.quantization.patterns import has_component
from paiton_artifacts.errors import CheckpointFormatError, CheckpointNotFoundError, UnsupportedQuantizationError

_LAYER = "model.layers."
_GRID = "weight_scale_inv"
_DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
_SCALES = (_GRID, "weight_scale", "input_scale", "kv_scale", "k_scale", "v_scale", "output_scale", "activation_scale")
_NORMS = ("layernorm.weight", "norm.weight")
_EXPERT = re.compile(r"\.experts\.[0-9]+\.")


class OutlineTensor(SourceTensor):
    """A tensor without its values. A scale, which checks of the configuration look at, reads as 1."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str, where: str) -> None:
        super().__init__(name, shape, dtype)
        self._where = where

    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        if self.name.endswith(_SCALES):
            return np.ones((stop - start) * self.row_elements, NUMPY_DTYPES[self.dtype])
        raise CheckpointNotFoundError(
            f"the weights of {self._where} are not there, tensor {self.name} cannot be read",
            hint="fetch the checkpoint's safetensors files; without them it can only be planned",
        )


def outline(
    names: Iterable[str], model: ModelConfig, config: Mapping[str, object], where: str
) -> dict[str, SourceTensor]:
    """Returns every tensor that an index names, with the shape and dtype that follow from the configuration.

    Args:
        names: of the tensors.
        model: the model's facts.
        config: the content of config.json, for the weights' dtype and quantisation.
        where: the checkpoint, for errors.

    Raises:
        UnsupportedQuantizationError: shapes of this quantisation's scales follow from nothing but the weights.
        CheckpointFormatError: a tensor is none of the architecture's.
    """
    fields = Fields(config, f"config.json of {where}")
    kept = _DTYPES.get(str(config.get("dtype", config.get("torch_dtype", "bfloat16"))), "bf16")
    section = fields.section("quantization_config")
    if section is not None and section.values.get("quant_method") != "fp8":
        raise UnsupportedQuantizationError(
            f"{where} holds no weights, and its quantisation says too little to do without them",
            hint="planning without weights takes no quantisation or quant_method fp8; fetch the weights",
        )
    ignored = ignored_layers(section) if section is not None else ()
    blocks = section is not None and section.values.get("weight_block_size") is not None
    shapes = _module_shapes(model)
    tensors: dict[str, SourceTensor] = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        short = module.removeprefix(_LAYER).partition(".")[2] if module.startswith(_LAYER) else module
        short = _EXPERT.sub(".experts.*.", short)
        shape = (
            _grid(shapes[short]) if blocks and kind == _GRID and short in shapes else _shape(short, kind, model, shapes)
        )
        if shape is None:
            raise CheckpointFormatError(
                f"the index of {where} names tensor {shown(name)}, whose shape is unknown",
                hint="fetch the checkpoint's safetensors files, which state shapes",
            )
        linear = module.startswith(_LAYER) and short in shapes and module.endswith(LINEAR)
        quantized = linear and section is not None and not has_component(module, ignored)
        dtype = "f32" if kind in _SCALES else FP8 if quantized and kind == "weight" else kept
        tensors[name] = OutlineTensor(name, shape, dtype, where)
    return tensors


def _module_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Returns the shapes `[N, K]` of all weights but norms, by module: within the layer, and "*" for any expert."""
    hidden, inter = model.hidden_size, model.intermediate_size
    q_rows, kv_rows = model.attention_heads * model.head_dim, model.kv_heads * model.head_dim
    shapes = {
        "model.embed_tokens": (model.vocab_size, hidden),
        "lm_head": (model.vocab_size, hidden),
        "self_attn.q_proj": (q_rows, hidden),
        "self_attn.k_proj": (kv_rows, hidden),
        "self_attn.v_proj": (kv_rows, hidden),
        "self_attn.qkv_proj": (q_rows + 2 * kv_rows, hidden),
        "self_attn.o_proj": (hidden, q_rows),
        "mlp.gate_proj": (inter, hidden),
        "mlp.up_proj": (inter, hidden),
        "mlp.gate_up_proj": (2 * inter, hidden),
        "mlp.down_proj": (hidden, inter),
    }
    return shapes | (_expert_shapes(model.experts, hidden) if model.experts else {})


def _expert_shapes(experts: Experts, hidden: int) -> dict[str, tuple[int, int]]:
    wide, narrow = (experts.intermediate_size, hidden), (hidden, experts.intermediate_size)
    router = (experts.count, hidden)
    return {
        "block_sparse_moe.gate": router,
        "block_sparse_moe.experts.*.w1": wide,
        "block_sparse_moe.experts.*.w3": wide,
        "block_sparse_moe.experts.*.w2": narrow,
        "mlp.gate": router,
        "mlp.experts.*.gate_proj": wide,
        "mlp.experts.*.up_proj": wide,
        "mlp.experts.*.down_proj": narrow,
    }


def _grid(shape: tuple[int, int]) -> tuple[int, int]:
    """Returns the shape of the scales of a weight's blocks."""
    return -(-shape[0] // BLOCK), -(-shape[1] // BLOCK)


def _shape(module: str, kind: str, model: ModelConfig, shapes: Mapping[str, tuple[int, int]]) -> tuple[int, ...] | None:
    if kind in _SCALES:
        return ()
    if kind == "weight" and module in shapes:
        return shapes[module]
    if kind == "bias" and module in shapes:
        return (shapes[module][0],)
    if kind == "weight" and module.endswith(("self_attn.q_norm", "self_attn.k_norm")):
        return (model.head_dim,)
    return (model.hidden_size,) if kind == "weight" and f"{module}.weight".endswith(_NORMS) else None
