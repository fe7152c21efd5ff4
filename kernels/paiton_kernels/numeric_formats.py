"""Rounding to the storage formats, in numpy, by arithmetic on values: independent of the kernels' bit tricks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

E4M3_MAX = 448.0
E4M3_SMALLEST_NORMAL_EXPONENT = -6
E4M3_FRACTION_BITS = 3


def _round_to(x: NDArray[np.float64], fraction_bits: int, smallest_exponent: int) -> NDArray[np.float64]:
    """Rounds to nearest, ties to even, keeping `fraction_bits` after the leading bit and gradual underflow."""
    _, exponent = np.frexp(x)
    unit = np.ldexp(1.0, np.maximum(exponent - 1, smallest_exponent) - fraction_bits)
    return np.asarray(np.rint(x / unit) * unit)


def round_bf16(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounds to bf16 (8 exponent bits, 7 fraction bits)."""
    return _round_to(np.asarray(x, np.float64), 7, -126)


def round_e4m3(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clamps to +-448 and rounds to e4m3fn (4 exponent bits, 3 fraction bits)."""
    clamped = np.clip(np.asarray(x, np.float64), -E4M3_MAX, E4M3_MAX)
    return _round_to(clamped, E4M3_FRACTION_BITS, E4M3_SMALLEST_NORMAL_EXPONENT)


def e4m3_values() -> NDArray[np.float64]:
    """Returns f64[256]: the value of every e4m3fn code, NaN for 0x7F and 0xFF."""
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, code & 7
    magnitude = np.where(exponent == 0, np.ldexp(fraction, -9), np.ldexp(8.0 + fraction, exponent - 10))
    magnitude = np.where((code & 127) == 127, np.nan, magnitude)
    return np.where(code >= 128, -magnitude, magnitude)


def bf16_bits(x: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Returns the bf16 bit patterns of the rounded values."""
    return (round_bf16(x).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def bf16_values(bits: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Returns the values of bf16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
