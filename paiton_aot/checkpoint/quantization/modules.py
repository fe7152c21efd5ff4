"""Holds a configuration against the tensors: exactly the modules that it quantises are stored as FP8, with scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from paiton_aot.checkpoint.base import SourceTensor, find_kv_scales, find_tensor, read_scale
from paiton_aot.checkpoint.quantization.description import Quantization, QuantizedModule, ScaleKind
from paiton_aot.checkpoint.quantization.scales import read_scales
from paiton_artifacts.errors import CheckpointFormatError, UnsupportedQuantizationError

FP8 = "fp8_e4m3fn"
WEIGHT = ".weight"
SUPPORTED = (
    "no quantisation (bf16, f16, f32), and FP8 as written by fp8 (per tensor, 128x128 blocks), quark,"
    " compressed-tensors, fbgemm_fp8 or modelopt"
)
LINEAR = ("_proj", ".w1", ".w2", ".w3")
"""How the names of linear layers end, in every architecture that we lower; embeddings, norms and routers do not."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a configuration says that a module is stored.

    Attributes:
        kind: what one of its scales belongs to.
        static: its activations have a static scale.
        scale: what its scales are called, after the module's name.
        input_scale: what the static scale of its activations is called.
    """

    kind: ScaleKind
    static: bool = False
    scale: str = "weight_scale"
    input_scale: str = "input_scale"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint holds.

    Attributes:
        tensors: all of them.
        layers: number of transformer layers.
        what: names the configuration in errors.
    """

    tensors: Mapping[str, SourceTensor]
    layers: int
    what: str

    @property
    def stored_as_fp8(self) -> frozenset[str]:
        """The modules whose weights are e4m3fn."""
        return frozenset(
            name.removesuffix(WEIGHT)
            for name, tensor in self.tensors.items()
            if tensor.dtype == FP8 and name.endswith(WEIGHT)
        )

    @property
    def linear(self) -> frozenset[str]:
        """The linear layers of the decoder, which a configuration quantises unless it says otherwise."""
        names = (name.removesuffix(WEIGHT) for name in self.tensors if name.endswith(WEIGHT))
        return frozenset(name for name in names if name.startswith("model.layers.") and name.endswith(LINEAR))

    def has(self, module: str, tensor: str) -> bool:
        """Returns whether a module has a tensor of this name."""
        return f"{module}.{tensor}" in self.tensors


def describe(contents: Contents, name: str, scheme_of: Callable[[str], Scheme | None], excludes: str) -> Quantization:
    """Returns the description of a checkpoint after checking it: modules, and the shape and value of every scale.

    Args:
        contents: of the checkpoint.
        name: of the format.
        scheme_of: how a module is stored, by its name; None where the configuration leaves it alone.
        excludes: what the configuration calls the list of those, for errors.

    Raises:
        CheckpointFormatError: tensors and configuration disagree on what is quantised.
        MissingTensorError: a quantised layer has no scale.
        TensorShapeError, TensorValueError: a scale is not what its kind implies.
    """
    stored, modules = contents.stored_as_fp8, {}
    for module in sorted(stored | contents.linear):
        scheme = scheme_of(module)
        if (module in stored) != (scheme is not None):
            facts = "FP8, but {} lists" if module in stored else "not FP8, but {} does not list"
            raise CheckpointFormatError(
                f"tensor {module}.weight is {facts.format(contents.what)} it in {excludes}",
                hint="restore config.json from where the checkpoint was exported",
            )
        if scheme is None:
            _check_plain(contents, module)
            continue
        input_scale = f"{module}.{scheme.input_scale}" if scheme.static else ""
        modules[module] = QuantizedModule(scheme.kind, f"{module}.{scheme.scale}", input_scale)
        read_scales(partial(find_tensor, contents.tensors), module, modules[module])
        if input_scale:
            read_scale(contents.tensors, input_scale)
    layers = range(contents.layers)
    has_kv = any([find_kv_scales(contents.tensors, layer) != (1.0, 1.0) for layer in layers])  # noqa: C419  (check all)
    return Quantization(name, modules, has_kv)


def _check_plain(contents: Contents, module: str) -> None:
    """Checks that a module that is not quantised has no scale: its weight would be off by that factor."""
    for scale in ("weight_scale", "weight_scale_inv"):
        if contents.has(module, scale):
            raise CheckpointFormatError(
                f"tensor {module}.{scale} is there, but {module}.weight is {contents.tensors[module + WEIGHT].dtype}",
                hint="formats are mixed; export the checkpoint again",
            )


def unsupported(message: str) -> UnsupportedQuantizationError:
    """Returns the error for a format, or a variant of one, that we do not read."""
    return UnsupportedQuantizationError(message, hint=f"supported: {SUPPORTED}; build from one of those")
