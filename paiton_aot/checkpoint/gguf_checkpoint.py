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
from paiton_aot.checkpoint.gguf_config import ROPE_FACTORS, parse_config
from paiton_aot.checkpoint.gguf_file import GgufExtent, read_contents
from paiton_aot.checkpoint.gguf_tokenizer import rebuild_tokenizer
from paiton_artifacts.errors import TensorShapeError, UnsupportedArchitectureError, UnsupportedQuantizationError

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
WEIGHTS_OF: Mapping[str, Mapping[str, str]] = {"Qwen3ForCausalLM": {**NAMES, **HEAD_NORMS}}
BIASES_OF: Mapping[str, Mapping[str, str]] = {
    "Qwen2ForCausalLM": {name: NAMES[name] for name in ("attn_q", "attn_k", "attn_v")}
}
"""What architectures have that differ from Llama: modules with weights, modules with biases."""

PERMUTED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
"""In files of the architecture `llama`; those of the others are as in Hugging Face's checkpoints."""


class GgufTensor(SourceTensor):
    """A tensor of a GGUF file, dequantised to bf16 where it is quantised.

    Args:
        name: canonical name.
        extent: where it is stored.
        file: the open file.
        head_dim: of a q or k projection, whose rows llama.cpp's converter permuted within each head so that rotary
            pairs are neighbours; 0 for all others.
    """

    def __init__(self, name: str, extent: GgufExtent, file: CheckpointFile, head_dim: int) -> None:
        super().__init__(name, extent.shape, STORED.get(extent.kind, "bf16"))
        self._extent = extent
        self._file = file
        self._head_dim = head_dim
        # Of a row as it is read, not as it is stored: a vector has as many rows as elements.
        self._row_bytes = extent.nbytes // extent.shape[0]

    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        rows = self._stored_rows(start, stop)
        if self._extent.kind in STORED:
            return rows.view(NUMPY_DTYPES[self.dtype])
        values: NDArray[np.float32] = dequantize(rows, self._extent.kind)
        return values.astype(ml_dtypes.bfloat16)

    def _stored_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Returns the bytes [stop - start, bytes per row] of the rows, in Hugging Face's order."""
        if not self._head_dim:
            return self._read_bytes(start, stop)
        head, half = self._head_dim, self._head_dim // 2
        first = start // head * head
        last = min(-(-stop // head) * head, self.rows)
        # Row i of the first half of a head is stored at 2 i, row i of the second half at 2 i + 1.
        wanted = np.arange(start, stop)
        within = wanted % head
        stored = wanted - within + within % half * 2 + within // half
        rows: NDArray[np.uint8] = self._read_bytes(first, last)[stored - first]
        return rows

    def _read_bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        data = self._file.read(self._extent.offset + start * self._row_bytes, (stop - start) * self._row_bytes)
        return data.reshape(stop - start, self._row_bytes)


class GgufCheckpoint(Checkpoint):
    """A GGUF file, opened for reading. Raises what its parts raise; see `read_contents` and `parse_config`."""

    def __init__(self, path: Path) -> None:
        self._file = CheckpointFile(path)
        try:
            contents = read_contents(self._file)
            self._metadata = contents.metadata
            _check_types(contents.tensors, path)
            factors = contents.tensors.get(ROPE_FACTORS)
            config = parse_config(
                contents.metadata,
                str(path),
                tied="output.weight" not in contents.tensors,
                rope_factors=None if factors is None else _read_vector(factors, self._file),
            )
            tensors = _canonical(contents.tensors, config, self._file)
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
    values = GgufTensor(extent.name, extent, file, 0).read_rows(0, extent.shape[0])
    return [float(value) for value in values.astype(np.float32).reshape(-1)]


def _canonical(stored: Mapping[str, GgufExtent], config: ModelConfig, file: CheckpointFile) -> dict[str, SourceTensor]:
    """Returns the tensors under Hugging Face's names.

    Raises:
        UnsupportedArchitectureError: a tensor is none that the architecture has (a bias, an expert).
        TensorShapeError: a permuted projection is not made of whole heads.
    """
    tensors: dict[str, SourceTensor] = {}
    for extent in stored.values():
        if extent.name == ROPE_FACTORS:
            continue
        name = _canonical_name(extent.name, config.architecture, str(file.path))
        if len(extent.shape) < 2 and extent.kind not in STORED:
            raise TensorShapeError(
                f"vector {extent.name} of {file.path} has type {extent.kind.name}", hint="convert the model again"
            )
        permuted = config.architecture == "LlamaForCausalLM" and name.endswith(PERMUTED)
        head_dim = config.head_dim if permuted else 0
        if head_dim and (len(extent.shape) < 2 or extent.shape[0] % head_dim or head_dim % 2):
            raise TensorShapeError(
                f"tensor {extent.name} of {file.path} has shape {list(extent.shape)}, not heads of {head_dim} rows",
                hint="convert the model again",
            )
        tensors[name] = GgufTensor(name, extent, file, head_dim)
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
