"""``experts``: each token's row times the matrices of the experts that were chosen for it.

The matrices of all experts lie below one another. An *entry* is a token and one of its choices; every worker sorts the
entries by expert and cuts them into segments of one expert, so that its weights are read once for all of its rows.
Workers share the segments in pieces of 32 weight rows, by what they cost. The few entries of a decode step may be added
up by token at once: then workers share the outputs, and each has all experts' products for its own.

A product is that of `linear`, and a sum is in the order of a token's choices: nothing depends on other tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.linear import (
    SLICE_COLUMNS,
    STORAGE_MACROS,
    UNIT_ROWS,
    check_row,
    check_scales,
    linear,
    storage_name,
)
from paiton_kernels.pack import INPUT_ARGS, INPUT_MACROS, check_input, input_name, input_scratch, scale_count
from paiton_kernels.route import check_choice
from paiton_kernels.spec import (
    COUNTS,
    PACKED_ELEMENT_BYTES,
    WORKER_SCRATCH,
    WORKER_SCRATCH_STRIDE,
    Arg,
    KernelSpec,
    Macro,
    Value,
)

SEGMENT_ROWS = 128
"""Entries of one expert that are multiplied with one conversion of its weights."""

DIRECT_ROWS = 8
"""Rows of an expert up to which its weights are converted on the way, without a panel of them."""

SUMS = ("STORE", "ADD")
"""Epilogues that add up a token's entries."""


def _name(macros: Mapping[str, Value]) -> str:
    stored, row = storage_name(macros)
    parts = (
        stored,
        f"e{macros['EXPERTS']}_top{macros['TOP_K']}",
        f"n{macros['N']}",
        row,
        input_name(macros),
        str(macros["EPILOGUE"]).lower(),
    )
    return "_".join(parts)


def _check(macros: Mapping[str, Value]) -> str:
    n, epilogue = int(macros["N"]), macros["EPILOGUE"]
    if n % (unit := UNIT_ROWS if epilogue in SUMS else 2 * UNIT_ROWS):
        return f"N is {n} with {epilogue}, not a multiple of {unit}"
    if reason := check_row(int(macros["K"]), int(macros["ROW_STRIDE"]), str(macros["WEIGHT"])):
        return reason
    if macros["GATHER"]:
        return "GATHER is 1"
    if macros["SCALES"] == "BLOCK" and n % (int(macros["SCALE_ROWS"]) or 1):
        return f"SCALE_ROWS is {macros['SCALE_ROWS']}, which does not divide the {n} rows of an expert"
    return check_choice(macros) or check_scales(macros) or check_input(macros)


def _scratch(macros: Mapping[str, Value], max_tokens: int) -> int:
    """Sorted entries, rows of a segment and two panels; or, for sums, all rows and their products for 16 outputs."""
    entries = max_tokens * int(macros["TOP_K"])
    segments = min(int(macros["EXPERTS"]), entries) + entries // SEGMENT_ROWS + 1
    row = PACKED_ELEMENT_BYTES * -(-int(macros["K"]) // 64) * 64
    size = input_scratch(macros) + -(-4 * (entries + 2 * segments) // 64) * 64
    packed = row + 4 * scale_count(macros)
    if macros["EPILOGUE"] in SUMS:
        return size + entries * (packed + 4 * UNIT_ROWS)
    panels = 2 * UNIT_ROWS * min(row, PACKED_ELEMENT_BYTES * SLICE_COLUMNS)
    return size + min(SEGMENT_ROWS, max_tokens) * packed + panels


EXPERTS = KernelSpec(
    family="experts",
    shared=True,
    args=(
        COUNTS,
        Arg("chosen", "i32*", "i32[T][TOP_K] written by `route`"),
        Arg("probability", "f32*", "f32[T][TOP_K] written by `route` (STORE, ADD)"),
        *INPUT_ARGS,
        Arg("weight", "const void*", "[EXPERTS][N][K] e4m3, int8 or bf16, rows ROW_STRIDE bytes apart"),
        Arg("scale", "f32*", "f32[EXPERTS][N], or a grid: as in `linear`"),
        Arg("scale_stride", "i64", "elements from one row of the grid to the next (SCALES=BLOCK)"),
        Arg("out", "void*", "bf16[T][TOP_K][N/2] (SILU, GELU), f32[T][TOP_K][N] (ROWS), f32[T][N] (STORE, ADD)"),
        WORKER_SCRATCH,
        WORKER_SCRATCH_STRIDE,
    ),
    macros=(
        Macro("EXPERTS", "matrices"),
        Macro("TOP_K", "experts of a token"),
        Macro("N", "rows of each matrix"),
        Macro("K", "columns of each matrix"),
        *STORAGE_MACROS,
        *INPUT_MACROS,
        Macro(
            "EPILOGUE",
            "gated, of rows of tokens (SILU, GELU); or of rows of entries, kept apart or added up by token",
            choices=("SILU", "GELU", "ROWS", *SUMS),
        ),
    ),
    name=_name,
    check=_check,
    scratch=_scratch,
)


def in_order(chosen: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns i64[T*TOP_K]: the entries (token * TOP_K + choice) sorted by expert, of one expert as they were."""
    return np.argsort(chosen.ravel(), kind="stable")


def products(
    x: NDArray[np.float64],
    x_scale: NDArray[np.float64],
    experts: NDArray[np.int32],
    weight: NDArray[np.float64],
    weight_scale: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Returns f64[M][N]: each row times the matrix of its expert.

    Args:
        x: f64[M][K], already rounded.
        x_scale: as :func:`paiton_kernels.linear.linear` takes it.
        experts: i32[M].
        weight: f64[EXPERTS][N][K], the stored values.
        weight_scale: f64[EXPERTS][N], f64[EXPERTS][N][ceil(K/128)], or None for WEIGHT=BF16.
    """
    rows = [
        linear(x[i : i + 1], x_scale[i : i + 1], weight[e], None if weight_scale is None else weight_scale[e])
        for i, e in enumerate(experts)
    ]
    return np.concatenate(rows)


def expected_experts(experts: int, top_k: int, tokens: float) -> float:
    """Returns how many experts a step is expected to use: E (1 - (1 - k/E)^T), as if tokens chose evenly, at random.

    Trained routers are balanced over much text, not over the tokens of one step, so a step may well use fewer.
    """
    missed: float = (1 - top_k / experts) ** tokens
    return experts * (1 - missed)
