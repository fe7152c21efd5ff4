"""``pack``: normalise, round and lay out activations for the prefill form of ``linear``.

The packed layout (element type, order inside blocks of 64) is private to a level; only its size is bounded:
``T * round_up(K, 64) * 4`` bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.numeric_formats import E4M3_MAX, round_bf16, round_e4m3
from paiton_kernels.spec import COUNTS, Arg, KernelSpec, Macro, Value

SCALE_COLUMNS = 128
"""Columns that share a scale where scales are of blocks."""

INPUT_ARGS = (
    Arg("x", "const void*", "f32[*][K] (INPUT=NORM) or bf16[*][K] (INPUT=BF16)"),
    Arg("rows", "i32*", "i32[logits rows]: the row of x for each row (GATHER=1)"),
    Arg("norm_weight", "bf16*", "bf16[K] (INPUT=NORM)"),
    Arg("eps", "f64", "added to the mean of squares (INPUT=NORM)"),
    Arg("input_scale", "f32*", "f32[1]: what a quantised activation is multiplied by (ACT=FP8_STATIC)"),
)

INPUT_MACROS = (
    Macro("INPUT", "RMSNorm of the f32 residual stream, or bf16 as it is", choices=("NORM", "BF16")),
    Macro(
        "ACT",
        "what an activation is rounded to: e4m3 with a given scale, one of the row, or one of each 128 columns",
        choices=("BF16", "FP8_STATIC", "FP8_DYNAMIC", "FP8_BLOCK"),
        default="BF16",
    ),
    Macro("GATHER", "1: row t is x[rows[t]], for the rows that want logits", default=0, minimum=0),
    Macro("NORM_OFFSET", "1: norm weights are stored less 1 (INPUT=NORM)", default=0, minimum=0),
)


def input_name(macros: Mapping[str, Value]) -> str:
    """Returns the part of a symbol that says how activations are read."""
    act = "" if macros["ACT"] == "BF16" else "_" + str(macros["ACT"]).lower().replace("_", "")
    norm = f"{str(macros['INPUT']).lower()}{'_offset' if macros['NORM_OFFSET'] else ''}"
    return f"{norm}{act}{'_gather' if macros['GATHER'] else ''}"


def check_input(macros: Mapping[str, Value]) -> str:
    """Returns what is wrong with the input macros, or ""."""
    for name in ("GATHER", "NORM_OFFSET"):
        if int(macros[name]) > 1:
            return f"{name} is {macros[name]}, not 0 or 1"
    return "NORM_OFFSET given without INPUT=NORM" if macros["NORM_OFFSET"] and macros["INPUT"] != "NORM" else ""


def _name(macros: Mapping[str, Value]) -> str:
    return f"k{macros['K']}_{input_name(macros)}"


def input_scratch(macros: Mapping[str, Value]) -> int:
    """Returns the bytes that a worker needs to normalise one row: K f32."""
    return 4 * -(-int(macros["K"]) // 64) * 64


def scale_count(macros: Mapping[str, Value]) -> int:
    """Returns how many scales a packed row has."""
    return -(-int(macros["K"]) // SCALE_COLUMNS) if macros["ACT"] == "FP8_BLOCK" else 1


PACK = KernelSpec(
    family="pack",
    args=(
        COUNTS,
        *INPUT_ARGS,
        Arg("packed", "void*", "T rows of round_up(K, 64) elements in the level's own layout"),
        Arg("packed_scale", "mut f32*", "f32[T][scale_count]: what each row's, or block's, products are multiplied by"),
        Arg("worker_scratch", "void*", "private memory of worker 0, 64-byte aligned"),
        Arg("worker_scratch_stride", "i64", "bytes from one worker's scratch to the next one's"),
    ),
    macros=(Macro("K", "elements of a row"), *INPUT_MACROS),
    name=_name,
    check=check_input,
    scratch=lambda macros, _max_tokens: input_scratch(macros),
)


def rms_norm(
    x: NDArray[np.float64], weight: NDArray[np.float64], eps: float, offset: float = 0.0
) -> NDArray[np.float64]:
    """Returns f64[..., D]: every row over its root mean square, times (weight + offset)."""
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * (weight + offset))


def activations(
    x: NDArray[np.float64],
    *,
    act: str,
    norm_weight: NDArray[np.float64] | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    input_scale: float = 1.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The values that enter a linear layer.

    Args:
        x: f64[T][K].
        act: BF16, FP8_STATIC, FP8_DYNAMIC or FP8_BLOCK.
        norm_weight: f64[K], or None for no RMSNorm.
        eps: added to the mean of squares.
        offset: added to the norm's weights.
        input_scale: the static scale.

    Returns:
        The rounded values f64[T][K] and the scale of each row f64[T], or of each block f64[T][ceil(K/128)].
    """
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, eps, offset)
    if act == "BF16":
        return round_bf16(x), np.ones(len(x))
    if act == "FP8_BLOCK":
        blocks = [x[:, start : start + SCALE_COLUMNS] for start in range(0, x.shape[1], SCALE_COLUMNS)]
        scales = np.stack([_dynamic_scale(block) for block in blocks], axis=1)
        return round_e4m3(x / np.repeat(scales, SCALE_COLUMNS, axis=1)[:, : x.shape[1]]), scales
    scale = np.full(len(x), input_scale) if act == "FP8_STATIC" else _dynamic_scale(x)
    return round_e4m3(x / scale[:, None]), scale


def _dynamic_scale(x: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = np.abs(x).max(axis=1)
    return np.where(largest == 0, 1.0, largest / E4M3_MAX)
