"""A GGUF file of the Llama-like architectures as a checkpoint: Hugging Face's names, rows and numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from paiton_aot.checkpoint.base import NUMPY_DTYPES, Checkpoint, ModelConfig, SourceTensor, TokenizerFiles
from paiton_aot.checkpoint.files import CheckpointFile
from paiton_aot.checkpoint.gguf_config import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS, parse_config
from paiton_aot.checkpoint.gguf_file import GgufExtent, read_contents
from paiton_aot.checkpoint.gguf_tokenizer import rebuild_tokenizer
from paiton_aot.checkpoint.heads import ReorderedHeads, in_order, neighbours
from paiton_aot.checkpoint.split import split_fused
from paiton_artifacts.errors import TensorShapeError, UnsupportedArchitectureError, UnsupportedQuantizationError

FACTORS = (ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS)
"""Tensors that say how RoPE is scaled."""

STORED = {
    GGMLQuantizationType.BF16: "bf16",
    GGMLQuantizationType.F16: "f16",
    GGMLQuantizationType.F32: "f32",
}
"""Types that are read as they are; all others are dequantised and rounded to bf16."""

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's names of modules, and Hugging Face's."""

HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
AROUND_BLOCKS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
WEIGHTS_OF: Mapping[str, Mapping[str, str]] = {
    "Gemma2ForCausalLM": NAMES | AROUND_BLOCKS,
    "Gemma3ForCausalLM": NAMES | AROUND_BLOCKS | HEAD_NORMS,
    "Phi3ForCausalLM": NAMES | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    "Qwen3ForCausalLM": NAMES | HEAD_NORMS,
}
BIASES_OF: Mapping[str, Mapping[str, str]] = {
    "Qwen2ForCausalLM": {name: NAMES[name] for name in ("attn_q", "attn_k", "attn_v")}
}
"""What architectures have that differ from Llama: modules with weights, modules with biases."""

PERMUTED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
"""In files of the architecture `llama`, whose rows llama.cpp's converter puts in the order of `heads.neighbours`; those
of the others are as in Hugging Face's checkpoints."""

NORMS_PLUS_ONE = ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM")
"""Architectures whose norms are stored with the 1 that Hugging Face's leave to the model."""


class GgufTensor(SourceTensor):
    """A tensor of a GGUF file, dequantised to bf16 where it is quantised.

    Args:
        name: canonical name.
        extent: where it is stored.
        file: the open file.
    """

    def __init__(self, name: str, extent: GgufExtent, file: CheckpointFile) -> None:
        super().__init__(name, extent.shape, STORED.get(extent.kind, "bf16"))
        self._extent = extent
        self._file = file
        # Of a row as it is read, not as it is stored: a vector has as many rows as elements.
        self._row_bytes = extent.nbytes // extent.shape[0]

    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        data = self._file.read(self._extent.offset + start * self._row_bytes, (stop - start) * self._row_bytes)
        rows = data.reshape(stop - start, self._row_bytes)
        if self._extent.kind in STORED:
            return rows.view(NUMPY_DTYPES[self.dtype])
        values: NDArray[np.float32] = dequantize(rows, self._extent.kind)
        return values.astype(ml_dtypes.bfloat16)


class LessOne(SourceTensor):
    """A vector whose elements are 1 less than those stored, as f32."""

    def __init__(self, stored: SourceTensor) -> None:
        super().__init__(stored.name, stored.shape, "f32")
        self._stored = stored

    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        return self._stored.read_rows(start, stop).astype(np.float32) - np.float32(1)


class GgufCheckpoint(Checkpoint):
    """A GGUF file, opened for reading. Raises what its parts raise; see `read_contents` and `parse_config`."""

    def __init__(self, path: Path) -> None:
        self._file = CheckpointFile(path)
        from paiton_aot.models import ARCHITECTURES  # noqa: PLC0415  (which are made of checkpoints)

        try:
            contents = read_contents(self._file)
            self._metadata = contents.metadata
            _check_types(contents.tensors, path)
            factors = {name: contents.tensors.pop(name) for name in FACTORS if name in contents.tensors}
            config = parse_config(
                contents.metadata,
                str(path),
                tied="output.weight" not in contents.tensors,
                rope_factors={name: _read_vector(extent, self._file) for name, extent in factors.items()},
            )
            stored = _canonical(contents.tensors, config, self._file)
            split = split_fused(stored, ARCHITECTURES[config.architecture].fused(config), config.layers)
            tensors, _ = in_order(split, None, config)
        except BaseException:
            self._file.close()
            raise
        name = contents.metadata.get("general.name")
        title = name if isinstance(name, str) and name else None
        super().__init__(title or path.stem, config, tensors, title=title)

    def tokenizer(self) -> TokenizerFiles:
        """Returns the tokenizer, rebuilt from the metadata; see `Checkpoint.tokenizer`."""
        return rebuild_tokenizer(self._metadata, self.config, str(self._file.path))

    def close(self) -> None:
        """Closes the file; may be called again."""
        self._file.close()


def _check_types(tensors: Mapping[str, GgufExtent], path: Path) -> None:
    """Refuses types that the gguf library does not dequantise, before hours of conversion rather than within."""
    kinds = {extent.kind: extent for extent in tensors.values()}
    for kind, extent in kinds.items():
        if not _is_readable(kind):
            raise UnsupportedQuantizationError(
                f"tensor {extent.name} of {path} has type {kind.name}",
                hint=f"supported: {', '.join(sorted(known.name for known in GGML_QUANT_SIZES if _is_readable(known)))}",
            )


def _is_readable(kind: GGMLQuantizationType) -> bool:
    """Returns whether a type is read as it is, or dequantised by the gguf library."""
    if kind in STORED:
        return True
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _read_vector(extent: GgufExtent, file: CheckpointFile) -> list[float]:
    values = GgufTensor(extent.name, extent, file).read_rows(0, extent.shape[0])
    return [float(value) for value in values.astype(np.float32).reshape(-1)]


def _canonical(stored: Mapping[str, GgufExtent], config: ModelConfig, file: CheckpointFile) -> dict[str, SourceTensor]:
    """Returns the tensors under Hugging Face's names.

    Raises:
        UnsupportedArchitectureError: a tensor is none that the architecture has (a bias, an expert).
        TensorShapeError: a permuted projection is not made of whole heads.
    """
    tensors: dict[str, SourceTensor] = {}
    for extent in stored.values():
        name = _canonical_name(extent.name, config.architecture, str(file.path))
        if len(extent.shape) < 2 and extent.kind not in STORED:
            raise TensorShapeError(
                f"vector {extent.name} of {file.path} has type {extent.kind.name}", hint="convert the model again"
            )
        tensor: SourceTensor = GgufTensor(name, extent, file)
        if config.architecture == "LlamaForCausalLM" and name.endswith(PERMUTED):
            head_dim = config.head_dim
            if len(extent.shape) < 2 or extent.shape[0] % head_dim or head_dim % 2:
                raise TensorShapeError(
                    f"tensor {extent.name} of {file.path} has shape {list(extent.shape)}, not heads of {head_dim} rows",
                    hint="convert the model again",
                )
            tensor = ReorderedHeads(tensor, neighbours(head_dim))
        elif config.architecture in NORMS_PLUS_ONE and name.endswith("norm.weight"):
            tensor = LessOne(tensor)
        tensors[name] = tensor
    return tensors


def _canonical_name(name: str, architecture: str, where: str) -> str:
    match = re.fullmatch(r"(?:blk\.(0|[1-9]\d{0,5})\.)?(\w+)\.(weight|bias)", name)
    module = None
    if match is not None:
        names = WEIGHTS_OF.get(architecture, NAMES) if match[3] == "weight" else BIASES_OF.get(architecture, {})
        module = names.get(match[2])
    if match is None or module is None or (match[1] is None) != module.startswith(("model.", "lm_head")):
        raise UnsupportedArchitectureError(
            f"{where} has tensor {name}, which {architecture} does not",
            hint="supported: the plain models of their architectures, without further biases or experts",
        )
    return f"{module}.{match[3]}" if match[1] is None else f"model.layers.{match[1]}.{module}.{match[3]}"
