"""What weights and programs say about launches of linear layers and attention: constants, and weights by argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paiton_aot.program import Attention, RopeKvWrite
from paiton_aot.targets.draft import Reference, Weight
from paiton_aot.targets.words import STORAGE
from paiton_artifacts.errors import UnsupportedShapeError
from paiton_artifacts.layout import DTYPE_BYTES
from paiton_artifacts.schema import Tensor
from paiton_kernels.gpu.linear_tile import scale_stride
from paiton_kernels.gpu.spec import Constant

Operands = tuple[dict[str, Constant], dict[str, Reference]]
"""Constants of a kernel, and arguments by name."""


@dataclass(frozen=True, slots=True)
class Activation:
    """What enters a linear layer: its storage and how it is scaled (constants of `linear`), and its arguments."""

    storage: str  # A: "BF16" or "FP8"
    scale: str  # A_SCALE
    references: Mapping[str, Reference]


def row_elements(tensor: Tensor) -> int:
    """Returns the elements from one row of a tensor to the next."""
    return tensor.row_stride // DTYPE_BYTES[tensor.dtype]


def input_scale(weight: Tensor, activations: str) -> str:
    """Returns how the input of a linear layer is scaled: as the program says where its weights are FP8.

    Weights with a scale for each block want one for each group of activations; `linear` finds those as it loads.
    """
    if weight.dtype != "fp8_e4m3fn" or activations == "bf16":
        return "NONE"
    if weight.scale_kind == "block":
        return "GROUP"
    return {"fp8-static": "TENSOR", "fp8-dynamic": "ROW"}[activations]


def weight_operands(name: str, tensors: Mapping[str, Tensor], experts: int = 1) -> Operands:
    """Returns what a linear layer's kernel must know of its weights.

    Args:
        name: of the weights.
        tensors: by name.
        experts: matrices that lie below one another in it; N is the rows of one.

    Raises:
        UnsupportedShapeError: a grid of scales is not laid out as the kernel reads it.
    """
    weight = tensors[name]
    constants: dict[str, Constant] = {
        "N": weight.shape[0] // experts,
        "K": weight.shape[1],
        "ROW_STRIDE": row_elements(weight),
        "WEIGHT": STORAGE[weight.dtype],
    }
    references: dict[str, Reference] = {"weight": Weight(name)}
    if weight.scale:
        references["scale"] = Weight(weight.scale)
    if weight.scale_kind == "block":
        grid = tensors[weight.scale]
        if row_elements(grid) != scale_stride(weight.shape[1]):
            raise UnsupportedShapeError(
                f"the rows of {weight.scale} are {row_elements(grid)} elements apart, "
                f"the kernel reads them {scale_stride(weight.shape[1])} apart",
                hint="build the bundle anew with this version",
            )
        constants["SCALE_ROWS"] = weight.scale_block[0]
    return constants, references


def produced_constants(scale: str) -> dict[str, Constant]:
    """Returns how a launch stores what it hands to a linear layer whose input is scaled like this."""
    return {"OUT": "FP8" if scale == "TENSOR" else "BF16", "AMAX": int(scale == "ROW")}


def head_norm_operands(op: RopeKvWrite) -> Operands:
    """Returns what `linear` must know of the norms of heads in front of RoPE; nothing where there are none."""
    if not op.q_norm:
        return {}, {}
    constants: dict[str, Constant] = {"HEAD_NORM": 1}
    if op.norm_offset:
        constants["NORM_OFFSET"] = op.norm_offset
    return constants, {"q_norm": Weight(op.q_norm), "k_norm": Weight(op.k_norm)}


def score_constants(op: Attention) -> dict[str, Constant]:
    """Returns the constants of `attention` that say which scores count, and how."""
    constants: dict[str, Constant] = {}
    if op.window:
        constants["WINDOW"] = op.window
    if op.softcap:
        constants["SOFTCAP"] = op.softcap
    return constants
