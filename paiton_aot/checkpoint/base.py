"""What every checkpoint offers, whatever its format: configuration, quantisation, tokenizer, tensors in row blocks.

Tensor names are Hugging Face's; see `Checkpoint.tensor`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paiton_aot.checkpoint.quantization.description import Quantization
from paiton_aot.checkpoint.rope import RopeScaling
from paiton_artifacts.errors import MissingTensorError, TensorShapeError, TensorValueError
from paiton_artifacts.schema import NO_ADVICE, SamplingDefaults

NUMPY_DTYPES: Mapping[str, np.dtype[np.generic]] = MappingProxyType(
    {
        "bf16": np.dtype(ml_dtypes.bfloat16),
        "f16": np.dtype(np.float16),
        "f32": np.dtype(np.float32),
        "fp8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
        "ue8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
        "u8": np.dtype(np.uint8),
    }
)
"""The dtypes that a `SourceTensor` can have."""

KV_SCALE_NAMES = (
    # What each generation of exporters calls them, K and V; tried in this order.
    ("self_attn.k_scale", "self_attn.v_scale"),
    ("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
    ("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"),
    ("self_attn.kv_scale", "self_attn.kv_scale"),
)


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture-of-experts blocks of a model.

    Attributes:
        count: experts of a layer.
        per_token: how many of them a token goes through.
        intermediate_size: of one expert.
        normalise: the probabilities of a token's experts are divided by their sum.
        dense_layers: layers that have an ordinary MLP instead, ascending.
    """

    count: int
    per_token: int
    intermediate_size: int
    normalise: bool
    dense_layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The facts of a decoder-only transformer that its weights do not show.

    Attributes:
        architecture: class name in transformers, e.g. "LlamaForCausalLM".
        max_position: context length, in tokens.
        eos_token_ids: any of these ends a generation; may be empty.
        rotary_dim: the first elements of each head, which RoPE rotates; 0 is all of them.
        windows: per layer, the tokens that a token sees, itself included; 0 is all before it. Empty: 0 everywhere.
        local_rope_theta: base of RoPE in layers with a window, unscaled, where it is another than `rope_theta`.
        score_scale: what attention's scores are multiplied by; 0 is head_dim ** -0.5.
        score_softcap: scores become softcap * tanh(score / softcap); 0 leaves them.
        logit_softcap: likewise for logits.
        experts: None where all MLPs are dense, as `intermediate_size` says.
    """

    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    rotary_dim: int = 0
    windows: tuple[int, ...] = ()
    local_rope_theta: float | None = None
    score_scale: float = 0.0
    score_softcap: float = 0.0
    logit_softcap: float = 0.0
    experts: Experts | None = None

    @property
    def intermediate_sizes(self) -> frozenset[int]:
        """The widths of the MLPs, experts' included, that its layers have."""
        if self.experts is None:
            return frozenset((self.intermediate_size,))
        dense = (self.intermediate_size,) if self.experts.dense_layers else ()
        return frozenset((self.experts.intermediate_size, *dense))

    def window(self, layer: int) -> int:
        """Returns the tokens that a token sees in this layer; 0 is all before it."""
        return self.windows[layer] if self.windows else 0


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer in the form that bundles hold.

    Attributes:
        tokenizer_json: what the tokenizers library loads.
        chat_template: Jinja source, where the checkpoint has one.
        add_bos: a prompt of raw text starts with the configuration's `bos_token_id`.
        special_tokens: texts of the tokens that chat templates know by a name, such as "eos_token".
    """

    tokenizer_json: bytes
    chat_template: str | None
    add_bos: bool
    special_tokens: Mapping[str, str] = field(default_factory=dict)


class SourceTensor(ABC):
    """A tensor of a checkpoint, read in blocks of rows; nothing is held in memory between reads.

    Attributes:
        name: canonical name.
        shape: as the architecture sees it; () is a scalar, which counts as one row.
        dtype: of what `read_rows` returns: a key of `NUMPY_DTYPES`.
    """

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype

    @property
    def rows(self) -> int:
        """Length of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_elements(self) -> int:
        """Elements per row; 1 for a vector or a scalar."""
        elements = 1
        for length in self.shape[1:]:
            elements *= length
        return elements

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as `read_rows` returns them (a GGUF file may hold fewer)."""
        return self.rows * self.row_elements * NUMPY_DTYPES[self.dtype].itemsize

    def read_rows(self, start: int, stop: int) -> NDArray[np.generic]:
        """Returns rows [start, stop) as a fresh array of shape [stop - start, *shape[1:]] in this tensor's dtype.

        Raises:
            IndexError: the range does not lie within the tensor.
            CheckpointFormatError: the file became shorter since it was opened.
        """
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start} to {stop} of {self.name}, which has {self.rows}")
        return self._read(start, stop).reshape(stop - start, *self.shape[1:])

    @abstractmethod
    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Returns the rows of a valid range, in any shape."""


class Checkpoint(ABC):
    """An open checkpoint. Tensors may be read from several threads; close it, or use it as a context manager.

    Attributes:
        name: for messages: the directory's or file's name, or what its metadata calls the model.
        title: what its metadata calls the model, else its architecture and size. It never depends on where the
            checkpoint lies, so that a bundle does not either.
        config: the model's facts.
        quantization: how its linear layers are quantised, None where they are not (or where `read_rows` undoes it).
        outlined: it has no weights, only their names, shapes and dtypes; see `outline`.
        left_out: tensors that belong to no model of text, such as a vision tower's.
    """

    outlined = False
    left_out = 0

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        tensors: Mapping[str, SourceTensor],
        quantization: Quantization | None = None,
        title: str | None = None,
    ) -> None:
        self.name = name
        self.title = title or _describe(config, tensors)
        self.config = config
        self.quantization = quantization
        self._tensors = dict(tensors)

    def names(self) -> Collection[str]:
        """Returns the canonical names of all tensors."""
        return self._tensors.keys()

    def tensor(self, name: str) -> SourceTensor:
        """Returns a tensor by its name in Hugging Face's LlamaForCausalLM, e.g. "model.layers.0.mlp.up_proj.weight".

        Raises:
            MissingTensorError: there is none of this name.
        """
        return find_tensor(self._tensors, name)

    def kv_scales(self, layer: int) -> tuple[float, float]:
        """Returns the factors that this layer's cached K and V are divided by; 1.0 where the checkpoint has none.

        Raises:
            MissingTensorError: there is a scale for one of K and V only.
            TensorShapeError: a scale is not a single number.
            TensorValueError: a scale is not a positive number.
        """
        return find_kv_scales(self._tensors, layer)

    def input_scale(self, module: str) -> float:
        """Returns the static activation scale of a quantised module, which has one.

        Raises:
            TensorShapeError, TensorValueError: it is not one positive number.
        """
        described = self.quantization.modules[module] if self.quantization else None
        if described is None or not described.input_scale:
            raise ValueError(f"{module} has no static activation scale")
        return read_scale(self._tensors, described.input_scale)

    def sampling(self) -> SamplingDefaults:
        """Returns how the model's makers advise to draw tokens."""
        return NO_ADVICE

    @abstractmethod
    def tokenizer(self) -> TokenizerFiles:
        """Returns the tokenizer.

        Raises:
            TokenizerError: it is absent, damaged or of a kind that we do not carry over.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the files; tensors cannot be read afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _describe(config: ModelConfig, tensors: Mapping[str, SourceTensor]) -> str:
    """Returns e.g. "LlamaForCausalLM 8.0B"."""
    parameters = sum(tensor.rows * tensor.row_elements for tensor in tensors.values())
    size = f"{parameters / 1e9:.1f}B" if parameters >= 10**9 else f"{parameters / 1e6:.1f}M"
    return f"{config.architecture} {size}"


def find_tensor(tensors: Mapping[str, SourceTensor], name: str) -> SourceTensor:
    """Returns a tensor by name.

    Raises:
        MissingTensorError: there is none of this name.
    """
    if name not in tensors:
        raise MissingTensorError(
            f"tensor {name} is not in the checkpoint", hint="the download may be incomplete: fetch the checkpoint again"
        )
    return tensors[name]


def expect_tensor(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], dtypes: Iterable[str] = tuple(NUMPY_DTYPES)
) -> SourceTensor:
    """Returns a tensor after checking that it is what the architecture needs.

    Raises:
        MissingTensorError: there is none of this name.
        TensorShapeError: it has another shape, or none of the dtypes.
    """
    tensor = checkpoint.tensor(name)
    if tensor.shape != shape:
        raise TensorShapeError(
            f"tensor {name} has shape {list(tensor.shape)}, the configuration implies {list(shape)}",
            hint="weights and configuration belong to different models",
        )
    if tensor.dtype not in (allowed := tuple(dtypes)):
        raise TensorShapeError(
            f"tensor {name} has dtype {tensor.dtype}, expected {' or '.join(allowed)}",
            hint="check the checkpoint's quantization_config, or convert the tensor",
        )
    return tensor


def read_scale(tensors: Mapping[str, SourceTensor], name: str) -> float:
    """Returns the value of a per-tensor scale, stored with shape [] or [1].

    Raises:
        MissingTensorError: there is none of this name.
        TensorShapeError: it holds more than one number.
        TensorValueError: it is not a positive number.
    """
    tensor = find_tensor(tensors, name)
    if tensor.shape not in ((), (1,)) or tensor.dtype == "fp8_e4m3fn":
        raise TensorShapeError(
            f"scale {name} is {tensor.dtype} of shape {list(tensor.shape)}, expected one f32, f16 or bf16 number",
            hint="export the checkpoint with per-tensor scales",
        )
    value = float(tensor.read_rows(0, 1).astype(np.float32)[0])
    if not 0 < value < float("inf"):
        raise TensorValueError(f"scale {name} is {value}, expected a positive number", hint="quantise the model again")
    return value


def find_kv_scales(tensors: Mapping[str, SourceTensor], layer: int) -> tuple[float, float]:
    """Returns a layer's K and V scales under any of their spellings; see `Checkpoint.kv_scales`."""
    for spelling in KV_SCALE_NAMES:
        names = [f"model.layers.{layer}.{part}" for part in spelling]
        if any(name in tensors for name in names):
            k_scale, v_scale = (read_scale(tensors, name) for name in names)
            return k_scale, v_scale
    return 1.0, 1.0
