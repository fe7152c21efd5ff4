"""Number formats that numpy lacks: 8-bit and 4-bit floats, bfloat16, and roundings between formats.

Sources: OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2), OCP Microscaling Formats 1.0 (E2M1), and the "FNUZ"
variants of AMD's CDNA3 instruction set (finite, one zero, NaN is the code of minus zero, bias one larger).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_FLOAT64_MAGNITUDE: Final = np.int64(0x7FFF_FFFF_FFFF_FFFF)
_BEYOND: Final = 2.0**200
"""More than any format holds, and than any scaled float32 is."""


@dataclass(frozen=True, eq=False)
class SmallFloat:
    """A float format of at most 8 bits: sign, exponent, mantissa.

    Attributes:
        exponent_bits: width of the exponent.
        mantissa_bits: width of the mantissa.
        bias: of the exponent.
        special: which codes are not finite: ``fnuz`` (only the code of minus zero, a NaN), ``fn`` (only the largest
            magnitude, a NaN), ``ieee`` (the largest exponent: infinities and NaNs), ``finite`` (none).
        values: float64 value of every code.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    special: Literal["fnuz", "fn", "ieee", "finite"]
    values: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        codes = np.arange(2 * self.sign)
        magnitude = codes & (self.sign - 1)
        exponent, mantissa = magnitude >> self.mantissa_bits, magnitude & ((1 << self.mantissa_bits) - 1)
        steps = np.where(exponent == 0, mantissa, mantissa + (1 << self.mantissa_bits))
        values = np.ldexp(steps.astype(np.float64), np.maximum(exponent, 1) - self.bias - self.mantissa_bits)
        if self.special == "ieee":
            top = exponent == (1 << self.exponent_bits) - 1
            values = np.where(top, np.where(mantissa == 0, np.inf, np.nan), values)
        if self.special == "fn":
            values = np.where(magnitude == self.sign - 1, np.nan, values)
        values = np.where(codes >= self.sign, -values, values)
        if self.special == "fnuz":
            values[self.sign] = np.nan
        object.__setattr__(self, "values", values)

    @property
    def sign(self) -> int:
        """The sign's bit."""
        return 1 << (self.exponent_bits + self.mantissa_bits)

    @property
    def largest(self) -> int:
        """The code of the largest finite value."""
        top = ((1 << self.exponent_bits) - 1) << self.mantissa_bits
        return {"fnuz": self.sign - 1, "finite": self.sign - 1, "fn": self.sign - 2, "ieee": top - 1}[self.special]

    @property
    def nan(self) -> int:
        """The code that a NaN becomes."""
        return self.sign if self.special == "fnuz" else self.sign - 1

    def encode(self, values: NDArray[Any], saturate: NDArray[np.bool_] | bool) -> Words:
        """Rounds to the nearest code, ties to even.

        Args:
            values: float32 or float64 of any shape.
            saturate: where true, magnitudes beyond the largest become the largest; else they become NaN (``ieee``:
                infinity; ``finite`` always saturates).

        Returns:
            Codes, uint32.
        """
        exact = np.array(values, np.float64)
        bits = exact.view(np.int64)
        negative = bits < 0
        bits &= _FLOAT64_MAGNITUDE
        special = exact >= _BEYOND  # infinite, NaN compares false
        exact[~(exact < _BEYOND)] = 0
        lead = np.maximum((bits >> 52) - 1023, 1 - self.bias)  # exponent of the leading bit, as in subnormals
        unit = ((self.mantissa_bits - lead + 1023) << 52).view(np.float64)
        code = ((lead + (self.bias - 1)) << self.mantissa_bits) + np.rint(exact * unit).astype(np.int64)
        over = (code > self.largest) | special
        if over.any():
            beyond = {"ieee": self.largest + 1, "finite": self.largest}.get(self.special, self.nan)
            code = np.where(over, np.where(saturate, self.largest, beyond), code)
        signed = code | (negative.astype(np.int64) * self.sign)
        if self.special == "fnuz":  # has no minus zero
            signed = np.where(code == 0, 0, signed)
        nan = np.isnan(values)
        return (np.where(nan, self.nan, signed) if nan.any() else signed).astype(np.uint32)


E4M3FNUZ = SmallFloat(4, 3, 8, "fnuz")
E5M2FNUZ = SmallFloat(5, 2, 16, "fnuz")
E4M3FN = SmallFloat(4, 3, 7, "fn")
E5M2 = SmallFloat(5, 2, 15, "ieee")
E2M1 = SmallFloat(2, 1, 1, "finite")


def float8_formats(arch: str) -> dict[str, SmallFloat]:
    """Returns what an architecture's instructions call ``fp8`` and ``bf8``."""
    return {"fp8": E4M3FNUZ, "bf8": E5M2FNUZ} if arch == "gfx942" else {"fp8": E4M3FN, "bf8": E5M2}


def bf16_bits(values: NDArray[Any]) -> Words:
    """Rounds float32 to bfloat16, ties to even; returns its 16 bits as uint32. NaNs become quiet."""
    single = np.asarray(values, np.float32)
    bits = single.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nan = np.uint32(0x7FC0) | ((bits >> np.uint32(16)) & np.uint32(0x8000))
    return np.where(np.isnan(single), nan, rounded)


def bf16_values(bits: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the float32 values of bfloat16 codes held in the low 16 bits of each element."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def xf32_values(values: NDArray[Any]) -> NDArray[np.float32]:
    """Rounds float32 to the 10 mantissa bits that XF32 matrix instructions multiply, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + (np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1)))) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(values), values, rounded.view(np.float32))


def f16_bits(values: NDArray[Any]) -> Words:
    """Rounds to float16, ties to even; returns its 16 bits as uint32."""
    return values.astype(np.float16).view(np.uint16).astype(np.uint32)


def f16_bits_toward_zero(values: NDArray[Any]) -> Words:
    """Rounds to float16 toward zero; returns its 16 bits as uint32."""
    half = values.astype(np.float16)
    too_large = np.abs(half.astype(np.float64)) > np.abs(values.astype(np.float64))
    step = np.where(too_large & ~np.isinf(values), np.uint16(1), np.uint16(0))
    return (half.view(np.uint16) - step).astype(np.uint32)


def to_integer(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Truncates floats toward zero and clamps to an integer type's range; NaN becomes 0."""
    limits = np.iinfo(dtype)
    whole = np.nan_to_num(np.trunc(np.asarray(values, np.float64)), nan=0.0, posinf=limits.max, neginf=limits.min)
    result: NDArray[np.float32] = np.clip(whole, limits.min, limits.max).astype(np.int64).astype(dtype)
    return result
