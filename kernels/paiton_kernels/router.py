"""``router``: the scores of a mixture's experts for every token, after an RMSNorm that is rounded to bf16.

The normalised rows are left as bf16 for `experts`, which would else normalise a row for each of its experts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.linear import DECODE_ROWS, UNIT_ROWS, check_row, row_name
from paiton_kernels.pack import input_scratch
from paiton_kernels.spec import (
    COUNTS,
    MAX_EXPERTS,
    PACKED_ELEMENT_BYTES,
    WORKER_SCRATCH,
    WORKER_SCRATCH_STRIDE,
    Arg,
    KernelSpec,
    Macro,
    Value,
)


def _name(macros: Mapping[str, Value]) -> str:
    row = row_name(int(macros["K"]), int(macros["ROW_STRIDE"]), "BF16")
    return f"e{macros['EXPERTS']}_{row}{'_offset' if macros['NORM_OFFSET'] else ''}"


def _check(macros: Mapping[str, Value]) -> str:
    if int(macros["EXPERTS"]) > MAX_EXPERTS:
        return f"EXPERTS is {macros['EXPERTS']}, more than {MAX_EXPERTS}"
    if int(macros["NORM_OFFSET"]) > 1:
        return f"NORM_OFFSET is {macros['NORM_OFFSET']}, not 0 or 1"
    return check_row(int(macros["K"]), int(macros["ROW_STRIDE"]), "BF16")


def _scratch(macros: Mapping[str, Value], _max_tokens: int) -> int:
    k = -(-int(macros["K"]) // 64) * 64
    filled_up = UNIT_ROWS * int(macros["ROW_STRIDE"]) if int(macros["EXPERTS"]) < UNIT_ROWS else 0
    return DECODE_ROWS * PACKED_ELEMENT_BYTES * k + input_scratch(macros) + filled_up


ROUTER = KernelSpec(
    family="router",
    args=(
        COUNTS,
        Arg("x", "f32*", "f32[T][K]: the residual stream"),
        Arg("norm_weight", "bf16*", "bf16[K]"),
        Arg("eps", "f64", "added to the mean of squares"),
        Arg("weight", "const void*", "bf16[EXPERTS][K], rows ROW_STRIDE bytes apart"),
        Arg("normed", "mut bf16*", "bf16[T][K]: the normalised rows"),
        Arg("scores", "mut f32*", "f32[T][EXPERTS]"),
        WORKER_SCRATCH,
        WORKER_SCRATCH_STRIDE,
    ),
    macros=(
        Macro("EXPERTS", "rows of the weight matrix"),
        Macro("K", "elements of a row"),
        Macro("ROW_STRIDE", "bytes from one weight row to the next"),
        Macro("NORM_OFFSET", "1: norm weights are stored less 1", default=0, minimum=0),
    ),
    name=_name,
    check=_check,
    scratch=_scratch,
)


def scores(normed: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns f64[T][EXPERTS] of rows f64[T][K] that are normalised and rounded to bf16."""
    return normed @ weight.T
