"""``linear``: activations times a weight matrix [N, K], fused with what comes before and after it.

In front: RMSNorm, rounding to bf16 or e4m3, the choice of rows. Behind: a bias, a soft cap; store, add to the residual
stream, SiLU-mul or GELU-mul, or RoPE with the write of K and V into the cache. The decode form reads each weight once
for up to eight rows; the prefill form converts panels of weights once and multiplies them with every row of the step.

Scales belong to rows of the weight and of the activations, or to blocks of their columns; then the products of each
block are scaled and added in order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.pack import (
    INPUT_ARGS,
    INPUT_MACROS,
    SCALE_COLUMNS,
    check_input,
    input_name,
    input_scratch,
    scale_count,
)
from paiton_kernels.spec import (
    COUNTS,
    KV_BLOCK_TOKENS,
    KV_CACHE,
    PACKED_ELEMENT_BYTES,
    PAGING,
    WORKER_SCRATCH,
    WORKER_SCRATCH_STRIDE,
    Arg,
    KernelSpec,
    Macro,
    Value,
)

DECODE_ROWS = 8
"""Rows that the decode form takes in one pass over the weights."""

UNIT_ROWS = 16
"""Weight rows (pairs of rows for ROPE, SILU and GELU) in one unit of work."""

SLICE_COLUMNS = 2048
"""Columns whose products are summed before those of the next slice, and that a panel has at a time."""

PANEL_TOKENS = 512
"""Activation rows whose products with a panel are kept at once."""

WEIGHT_BYTES = {"FP8": 1, "INT8": 1, "BF16": 2}

STORAGE_MACROS = (
    Macro("ROW_STRIDE", "bytes from one weight row to the next"),
    Macro("WEIGHT", "how weights are stored", choices=("FP8", "INT8", "BF16")),
    Macro("SCALES", "one for each weight row, or for each block", choices=("ROW", "BLOCK"), default="ROW"),
    Macro("SCALE_ROWS", "weight rows of a block, which has 128 columns (SCALES=BLOCK)", default=0, minimum=0),
)
"""How a weight matrix of K columns lies in memory."""


def storage_name(macros: Mapping[str, Value]) -> tuple[str, str]:
    """Returns the parts of a symbol that say how weights and scales are stored, and how long rows are."""
    k, weight = int(macros["K"]), str(macros["WEIGHT"])
    blocks = f"_b{macros['SCALE_ROWS']}" if macros["SCALES"] == "BLOCK" else ""
    return weight.lower() + blocks, row_name(k, int(macros["ROW_STRIDE"]), weight)


def row_name(k: int, stride: int, weight: str) -> str:
    """Returns the part of a symbol that says how long weight rows are: `k` elements, and `stride` bytes if more."""
    return f"k{k}" if stride == k * WEIGHT_BYTES[weight] else f"k{k}_s{stride}"


def check_row(k: int, stride: int, weight: str) -> str:
    """Returns what is wrong with the stride in bytes of weight rows of `k` elements, or ""."""
    return "" if stride >= k * WEIGHT_BYTES[weight] else f"ROW_STRIDE {stride} is less than a row of {k} {weight}"


def _name(macros: Mapping[str, Value]) -> str:
    stored, row = storage_name(macros)
    epilogue = str(macros["EPILOGUE"]).lower()
    if epilogue == "rope":
        epilogue += f"_q{macros['Q_HEADS']}_kv{macros['KV_HEADS']}_d{macros['HEAD_DIM']}"
        epilogue += "_kvfp8" if macros["KV"] == "FP8" else ""
    epilogue += "".join(f"_{name.lower()}" for name in ("BIAS", "SOFTCAP") if macros[name])
    parts = (
        stored,
        f"n{macros['N']}",
        row,
        input_name(macros),
        epilogue,
        str(macros["FORM"]).lower(),
    )
    return "_".join(parts)


def _check(macros: Mapping[str, Value]) -> str:
    n, epilogue = int(macros["N"]), macros["EPILOGUE"]
    if n < UNIT_ROWS:
        return f"N is {n}, less than {UNIT_ROWS}"
    if reason := check_row(int(macros["K"]), int(macros["ROW_STRIDE"]), str(macros["WEIGHT"])):
        return reason
    if epilogue in ("SILU", "GELU") and n % (2 * UNIT_ROWS):
        return f"N is {n} with {epilogue}, not a multiple of {2 * UNIT_ROWS}"
    if epilogue == "ROPE":
        q_heads, kv_heads, head_dim = int(macros["Q_HEADS"]), int(macros["KV_HEADS"]), int(macros["HEAD_DIM"])
        if head_dim == 0 or head_dim % (2 * UNIT_ROWS):
            return f"HEAD_DIM is {head_dim}, not a multiple of {2 * UNIT_ROWS}"
        if n != (q_heads + 2 * kv_heads) * head_dim:
            return f"N is {n}, not ({q_heads} + 2*{kv_heads}) heads of {head_dim}"
    elif any(macros[name] for name in ("Q_HEADS", "KV_HEADS", "HEAD_DIM")):
        return f"heads given with EPILOGUE={epilogue}"
    return check_scales(macros) or check_input(macros)


def check_scales(macros: Mapping[str, Value]) -> str:
    """Returns what is wrong with the macros that say where scales belong, or ""."""
    blocks, act = macros["SCALES"] == "BLOCK", macros["ACT"]
    if blocks != (int(macros["SCALE_ROWS"]) > 0) or (blocks and macros["WEIGHT"] != "FP8"):
        return f"SCALES is {macros['SCALES']} with SCALE_ROWS={macros['SCALE_ROWS']} and WEIGHT={macros['WEIGHT']}"
    allowed = ("BF16", "FP8_BLOCK") if blocks else ("BF16", "FP8_STATIC", "FP8_DYNAMIC")
    return "" if act in allowed else f"ACT is {act} with SCALES={macros['SCALES']}, not {' or '.join(allowed)}"


def _scratch(macros: Mapping[str, Value], _max_tokens: int) -> int:
    row = PACKED_ELEMENT_BYTES * -(-int(macros["K"]) // 64) * 64
    if macros["FORM"] == "DECODE":
        return DECODE_ROWS * row + input_scratch(macros) + 4 * DECODE_ROWS * scale_count(macros)
    panel = UNIT_ROWS * min(row, PACKED_ELEMENT_BYTES * SLICE_COLUMNS)
    return 2 * (panel + 4 * PANEL_TOKENS * UNIT_ROWS)


LINEAR = KernelSpec(
    family="linear",
    shared=True,
    args=(
        COUNTS,
        *INPUT_ARGS,
        Arg("weight", "const void*", "[N][K] e4m3, int8 or bf16, rows ROW_STRIDE bytes apart"),
        Arg(
            "scale",
            "f32*",
            "f32[N]: what each output is multiplied by (not read for WEIGHT=BF16); SCALES=BLOCK: a grid",
        ),
        Arg("scale_stride", "i64", "elements from one row of the grid to the next (SCALES=BLOCK)"),
        Arg("packed", "const void*", "rows written by `pack` (FORM=PREFILL)"),
        Arg("packed_scale", "f32*", "written by `pack` (FORM=PREFILL)"),
        Arg("out", "void*", "f32 for STORE and ADD, bf16 for SILU, GELU and for ROPE's q"),
        Arg("out_stride", "i64", "elements from one output row to the next (not ROPE)"),
        Arg("out_col", "i64", "column of the first output (STORE, ADD)"),
        Arg("rope", "f32*", "f32[T][HEAD_DIM] written by `rope_table` (ROPE)"),
        *PAGING,
        *KV_CACHE,
        WORKER_SCRATCH,
        WORKER_SCRATCH_STRIDE,
        Arg("bias", "f32*", "f32[N]: added to each output (BIAS=1)"),
        Arg("softcap", "f64", "outputs become softcap * tanh(output / softcap) (SOFTCAP=1)"),
    ),
    macros=(
        Macro("N", "rows of the weight matrix"),
        Macro("K", "columns of the weight matrix"),
        *STORAGE_MACROS,
        *INPUT_MACROS,
        Macro("FORM", "own packing and few rows, or packed rows in any number", choices=("DECODE", "PREFILL")),
        Macro("EPILOGUE", "what becomes of the product", choices=("STORE", "ADD", "SILU", "ROPE", "GELU")),
        Macro("Q_HEADS", "query heads (ROPE)", default=0, minimum=0),
        Macro("KV_HEADS", "KV heads (ROPE)", default=0, minimum=0),
        Macro("HEAD_DIM", "elements of a head (ROPE)", default=0, minimum=0),
        Macro("KV", "how K and V are stored (ROPE)", choices=("BF16", "FP8"), default="BF16"),
        Macro("BIAS", "1: outputs have a bias", default=0, minimum=0),
        Macro("SOFTCAP", "1: outputs are capped", default=0, minimum=0),
    ),
    name=_name,
    check=_check,
    scratch=_scratch,
)


def linear(
    x: NDArray[np.float64],
    x_scale: NDArray[np.float64],
    weight: NDArray[np.float64],
    weight_scale: NDArray[np.float64] | None,
    bias: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Returns f64[T][N]: the product of packed activations with a weight matrix, scaled.

    Args:
        x: f64[T][K], already rounded (:func:`paiton_kernels.pack.activations`).
        x_scale: f64[T], or f64[T][ceil(K/128)] for ACT=FP8_BLOCK.
        weight: f64[N][K], the stored values.
        weight_scale: f64[N], None for WEIGHT=BF16, or f64[N][ceil(K/128)] for SCALES=BLOCK.
        bias: f64[N], or None.
    """
    if weight_scale is not None and weight_scale.ndim == 2:
        weight, weight_scale = weight * _per_column(weight_scale, weight.shape[1]), None
    if x_scale.ndim == 2:
        x, x_scale = x * _per_column(x_scale, x.shape[1]), np.ones(len(x))
    product = x @ weight.T * x_scale[:, None]
    product = product if weight_scale is None else product * weight_scale[None, :]
    return np.asarray(product if bias is None else product + bias[None, :])


def _per_column(scales: NDArray[np.float64], columns: int) -> NDArray[np.float64]:
    return np.repeat(scales, SCALE_COLUMNS, axis=1)[:, :columns]


def silu_mul(product: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns f64[T][N/2]: silu of the first half of the columns times the second half."""
    gate, up = np.split(product, 2, axis=1)
    return np.asarray(gate / (1 + np.exp(-gate)) * up)


def gelu_mul(product: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns f64[T][N/2]: gelu (its tanh form) of the first half of the columns times the second half."""
    gate, up = np.split(product, 2, axis=1)
    cubic = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    return np.asarray(0.5 * gate * (1 + np.tanh(cubic)) * up)


def soft_cap(values: NDArray[np.float64], cap: float) -> NDArray[np.float64]:
    """Returns cap * tanh(values / cap)."""
    return np.asarray(cap * np.tanh(values / cap))


def rotate(heads: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Applies RoPE to f64[T][heads][D] with f64[T][D] of cosines and sines; pairs are (i, i + D/2)."""
    half = heads.shape[-1] // 2
    cos, sin = table[:, None, :half], table[:, None, half:]
    low, high = heads[..., :half], heads[..., half:]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def kv_slots(
    positions: NDArray[np.int32], request_of: NDArray[np.int32], block_tables: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns the KV block and the place within it of every token."""
    return block_tables[request_of, positions // KV_BLOCK_TOKENS], positions % KV_BLOCK_TOKENS


def kv_tiles(k: NDArray[np.generic], v: NDArray[np.generic]) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Lays K and V out as the cache holds them (cpu/kv_layout.h).

    Args:
        k: [..., KV_HEADS, 16, HEAD_DIM] of any dtype.
        v: likewise.

    Returns:
        Two arrays [..., KV_HEADS, 16 * HEAD_DIM].
    """
    *outer, positions, head_dim = k.shape
    words = k.reshape(*outer, positions, head_dim // 2, 2)
    halves = v.reshape(*outer, positions, head_dim // 32, 2, 16)
    flat = (*outer, positions * head_dim)
    return np.swapaxes(words, -3, -2).reshape(flat), np.swapaxes(halves, -2, -1).reshape(flat)
