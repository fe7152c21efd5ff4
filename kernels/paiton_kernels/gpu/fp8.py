"""Rounding to FP8 inside kernels: one reciprocal a row, and codes that are never NaN."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dynamic_scale(amax):
    """Returns what the codes of a row are multiplied by: its largest magnitude / 448, or 1 for a row of zeros."""
    return tl.where(amax == 0, 1.0, tl.div_rn(amax, tl.full(amax.shape, 448.0, tl.float32)))


@triton.jit
def reciprocal(scale, unit: tl.constexpr):
    """Returns what values are multiplied by before :func:`to_fp8`; finite also where the scale is subnormal."""
    return tl.minimum(tl.div_rn(1.0, scale * unit), 3.4028234663852886e38)


@triton.jit
def to_fp8(value, inverse, unit: tl.constexpr, dtype: tl.constexpr):
    """Returns the codes of value / scale, clamped to what e4m3fn and the target's type can both hold.

    Args:
        value: f32.
        inverse: of the scale, from :func:`reciprocal`.
        unit: FP8_UNIT of the target.
        dtype: the target's FP8 type.
    """
    return tl.clamp(value * inverse, -448.0 / unit, 448.0 / unit).to(dtype)
