"""What kernels that normalise rows share: RMSNorm, and how a row is rounded to what the next linear layer takes."""

from __future__ import annotations

import triton
import triton.language as tl

from paiton_kernels.gpu.fp8 import dynamic_scale, reciprocal, to_fp8


@triton.jit
def normalised(value, column, inside, weight, eps, HIDDEN: tl.constexpr, OFFSET: tl.constexpr):
    """Returns RMSNorm(value) * (weight + OFFSET); the arguments are those of `store_normalised`."""
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if OFFSET != 0.0:
        factor += OFFSET
    return value * tl.rsqrt(tl.sum(value * value, 0) / HIDDEN + eps) * factor


@triton.jit
def store_normalised(
    value,
    row,
    column,
    inside,
    weight,
    eps,
    out,
    out_scale,
    row_scale,
    clear,
    HIDDEN: tl.constexpr,
    OUT: tl.constexpr,
    SCALE: tl.constexpr,
    CLEAR: tl.constexpr,
    OFFSET: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    """Stores RMSNorm(value) * (weight + OFFSET) as row `row` of `out`.

    Args:
        value: f32 of a whole row, 0 outside.
        row: of `out`, `row_scale` and `clear`.
        column: of each element.
        inside: which elements are real.
        weight: bf16[HIDDEN].
        eps: added to the mean of squares.
        out: bf16, FP8 or f32 [*][HIDDEN].
        out_scale: f32[1] (SCALE=TENSOR).
        row_scale: f32[*], written (SCALE=ROW).
        clear: f32[*], set to 0 (CLEAR=1).
    """
    value = normalised(value, column, inside, weight, eps, HIDDEN, OFFSET)
    if OUT == "BF16":
        result = value.to(tl.bfloat16)
    elif OUT == "FP32":
        result = value
    else:
        if SCALE == "ROW":
            scale = dynamic_scale(tl.max(tl.abs(value), 0))
            tl.store(row_scale + row, scale)
        else:
            scale = tl.load(out_scale)
        result = to_fp8(value, reciprocal(scale, FP8_UNIT), FP8_UNIT, out.dtype.element_ty)
    tl.store(out + row.to(tl.int64) * HIDDEN + column, result, mask=inside)
    if CLEAR:
        tl.store(clear + row, 0.0)
