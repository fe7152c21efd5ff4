"""What the vector ALU's float instructions compute: exact fused multiply-add, division steps, classes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.emulated.cdna.number_formats import bf16_bits, f16_bits, f16_bits_toward_zero, to_integer
from tests.emulated.cdna.operations import Operation, Table

Floats = NDArray[np.float32]
Array = NDArray[Any]

_TWO_64 = np.float32(2.0**64)
_SMALLEST_NORMAL = 2.0**-126
_HALF_OF_LAST_PLACE = 0x10000000  # the 29 bits that float64 has more than float32: exactly half a unit


def fma32(a: Array, b: Array, c: Array) -> Floats:
    """Fused multiply-add, rounded once to float32.

    The product is exact in float64. Rounding the sum to float64 first matters only where the result is half way
    between two float32 values (or subnormal): there it is rounded to odd before the second rounding.
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = product + addend
    bits = total.view(np.int64)
    unsafe = (bits & 0x1FFFFFFF) == _HALF_OF_LAST_PLACE
    unsafe |= np.abs(total) < _SMALLEST_NORMAL
    if unsafe.any():
        total = _round_to_odd(product, addend, total)
    return total.astype(np.float32)


def _round_to_odd(product: Array, addend: Array, total: Array) -> Array:
    """Returns the float64 sum with its last bit set where the sum is inexact (Boldo and Melquiond, 2008)."""
    rest = total - product
    error = (product - (total - rest)) + (addend - rest)
    bits = total.view(np.int64)
    inexact = (error != 0) & ((bits & 1) == 0) & np.isfinite(total) & np.isfinite(error)
    away = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + away, bits).view(np.float64)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """Fused multiply-add of float64, exact by rational arithmetic."""
    x, y, z = np.broadcast_arrays(a, b, c)
    result = np.array(x * y + z)
    finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    for place in map(tuple, np.argwhere(finite)):
        exact = Fraction(float(x[place])) * Fraction(float(y[place])) + Fraction(float(z[place]))
        result[place] = float(exact)
    return result


def _exponent(x: Array) -> Array:
    return ((x.view(np.uint32) >> np.uint32(23)) & np.uint32(0xFF)).astype(np.int32)


def division_scale(s0: Array, s1: Array, s2: Array) -> tuple[Array, Array]:
    """``v_div_scale_f32``: scales s0, which is the denominator s1 or the numerator s2, so that the steps stay normal.

    Returns:
        The scaled value, and whether the quotient must be scaled back (VCC).
    """
    s0, s1, s2 = np.broadcast_arrays(s0, s1, s2)
    apart = _exponent(s2) - _exponent(s1)
    reciprocal = np.abs(1.0 / s1.astype(np.float64))
    plain = (np.abs(apart) < 96) & (_exponent(s2) > 23) & (_exponent(s1) > 0) & (reciprocal >= _SMALLEST_NORMAL)
    if plain.all():
        return s0, np.zeros(s0.shape, np.bool_)
    up, down = s0 * _TWO_64, s0 / _TWO_64
    tiny_reciprocal = reciprocal < _SMALLEST_NORMAL
    tiny_quotient = (np.abs(s2.astype(np.float64) / s1.astype(np.float64)) < _SMALLEST_NORMAL) & (s2 != 0)
    cases: tuple[tuple[Array, Array, bool], ...] = (
        ((s2 == 0) | (s1 == 0), np.full_like(s0, np.nan), False),
        (apart >= 96, np.where(s0 == s1, up, s0), True),
        ((_exponent(s1) == 0) & (s1 != 0), up, False),
        # The manual scales up here too, which overflows; only down gives the quotient that the last step expects.
        (tiny_reciprocal & tiny_quotient, np.where(s0 == s1, down, s0), True),
        (tiny_reciprocal, down, False),
        (tiny_quotient, np.where(s0 == s2, up, s0), True),
        (_exponent(s2) <= 23, up, False),
    )
    conditions = [case[0] for case in cases]
    result = np.select(conditions, [case[1] for case in cases], s0)
    scaled = np.select(conditions, [np.full(s0.shape, case[2]) for case in cases], default=False)
    return result.astype(np.float32), scaled


def division_scale_back(a: Array, b: Array, c: Array, scaled: Array) -> Floats:
    """``v_div_fmas_f32``: fused multiply-add, times 2^64 or 2^-64 where VCC says that the operands were scaled."""
    result = fma32(a, b, c)
    factor = np.where(np.abs(c) >= 2, _TWO_64, 1 / _TWO_64)
    return np.where(scaled, result * factor, result).astype(np.float32)


def division_fixup(s0: Array, s1: Array, s2: Array) -> Floats:
    """``v_div_fixup_f32``: the quotient s0 of s2 / s1, with zeros, infinities and NaNs put right."""
    s0, s1, s2 = np.broadcast_arrays(s0, s1, s2)
    sign = np.where(np.signbit(s1) ^ np.signbit(s2), np.float32(-1), np.float32(1))
    denominator, numerator = np.abs(s1), np.abs(s2)
    plain = (denominator > 0) & (numerator > 0) & np.isfinite(denominator) & np.isfinite(numerator) & ~np.isnan(s0)
    if plain.all():
        return np.copysign(s0, sign)
    invalid = ((denominator == 0) & (numerator == 0)) | (np.isinf(denominator) & np.isinf(numerator))
    result = np.select(
        [
            np.isnan(s1),
            np.isnan(s2),
            invalid,
            (denominator == 0) | np.isinf(numerator),
            np.isinf(denominator) | (numerator == 0),
            np.isnan(s0),
        ],
        [s1, s2, np.full_like(s0, np.nan), sign * np.float32(np.inf), sign * np.float32(0), sign * np.float32(np.inf)],
        np.copysign(np.abs(s0), sign),
    )
    return result.astype(np.float32)


def float_class(x: Array) -> NDArray[np.uint32]:
    """Returns the bit of ``v_cmp_class_f32``'s mask that each value belongs to.

    0 signalling NaN, 1 quiet NaN, 2 -infinity, 3 -normal, 4 -subnormal, 5 -0, 6 +0, 7 +subnormal, 8 +normal,
    9 +infinity.
    """
    bits = x.view(np.uint32)
    exponent, mantissa = (bits >> np.uint32(23)) & np.uint32(255), bits & np.uint32(0x7FFFFF)
    negative = (bits >> np.uint32(31)) == 1
    largest = np.where(mantissa == 0, np.where(negative, 2, 9), mantissa >> np.uint32(22))
    smallest = np.where(mantissa == 0, np.where(negative, 5, 6), np.where(negative, 4, 7))
    normal = np.where(negative, 3, 8)
    return np.where(exponent == 255, largest, np.where(exponent == 0, smallest, normal)).astype(np.uint32)


def _median(a: Array, b: Array, c: Array) -> Array:
    return np.fmax(np.fmin(a, b), np.fmin(np.fmax(a, b), c))


def _through_float64(function: Any) -> Any:
    """Returns the float32 function whose float64 version is given: correctly rounded, hardware is within 1 ulp."""

    def rounded(x: Array) -> Floats:
        result: Floats = function(np.asarray(x, np.float64)).astype(np.float32)
        return result

    return rounded


def _fma16(a: Array, b: Array, c: Array) -> Array:
    return fma32(*(x.astype(np.float32) for x in (a, b, c))).astype(np.float16)


def _multiply_legacy(a: Array, b: Array) -> Array:
    return np.where((a == 0) | (b == 0), np.float32(0), a * b)


def _pack_u8(a: Array, byte: Array, old: Array) -> Array:
    """``v_cvt_pk_u8_f32``: puts the rounded value into one byte of `old`."""
    shift = (byte & np.uint32(3)) * np.uint32(8)
    result: Array = (old & ~(np.uint32(255) << shift)) | (to_integer(np.rint(a), np.uint8).astype(np.uint32) << shift)
    return result


def _pair(low: Array, high: Array) -> Array:
    result: Array = low | (high << np.uint32(16))
    return result


def _raw16(x: Array) -> Array:
    return x.view(np.uint16).astype(np.uint32)


def _float_table(suffix: str, number: str) -> Table:
    """Returns the instructions that exist alike for f16, f32 and f64."""
    two, three = (number,) * 2, (number,) * 3
    return {
        f"v_add_{suffix}": Operation(number, two, np.add),
        f"v_sub_{suffix}": Operation(number, two, np.subtract),
        f"v_mul_{suffix}": Operation(number, two, np.multiply),
        f"v_max_{suffix}": Operation(number, two, np.fmax),
        f"v_min_{suffix}": Operation(number, two, np.fmin),
        f"v_max3_{suffix}": Operation(number, three, lambda a, b, c: np.fmax(np.fmax(a, b), c)),
        f"v_min3_{suffix}": Operation(number, three, lambda a, b, c: np.fmin(np.fmin(a, b), c)),
        f"v_med3_{suffix}": Operation(number, three, _median),
        f"v_rndne_{suffix}": Operation(number, (number,), np.rint),
        f"v_floor_{suffix}": Operation(number, (number,), np.floor),
        f"v_ceil_{suffix}": Operation(number, (number,), np.ceil),
        f"v_trunc_{suffix}": Operation(number, (number,), np.trunc),
        f"v_fract_{suffix}": Operation(number, (number,), lambda x: x - np.floor(x)),
        f"v_frexp_mant_{suffix}": Operation(number, (number,), lambda x: np.frexp(x)[0]),
    }


FLOAT_OPERATIONS: Table = {
    **_float_table("f32", "f32"),
    **_float_table("f64", "f64"),
    **_float_table("f16", "f16"),
    "v_subrev_f32": Operation("f32", ("f32", "f32"), lambda a, b: b - a),
    "v_subrev_f16": Operation("f16", ("f16", "f16"), lambda a, b: b - a),
    "v_mul_legacy_f32": Operation("f32", ("f32", "f32"), _multiply_legacy),
    "v_fma_f32": Operation("f32", ("f32",) * 3, fma32),
    "v_fma_f64": Operation("f64", ("f64",) * 3, fma64),
    "v_fma_f16": Operation("f16", ("f16",) * 3, _fma16),
    "v_div_fixup_f32": Operation("f32", ("f32",) * 3, division_fixup),
    "v_rcp_f32": Operation("f32", ("f32",), _through_float64(lambda x: 1 / x)),
    "v_rcp_iflag_f32": Operation("f32", ("f32",), _through_float64(lambda x: 1 / x)),
    "v_rsq_f32": Operation("f32", ("f32",), _through_float64(lambda x: 1 / np.sqrt(x))),
    "v_sqrt_f32": Operation("f32", ("f32",), _through_float64(np.sqrt)),
    "v_exp_f32": Operation("f32", ("f32",), _through_float64(np.exp2)),
    "v_log_f32": Operation("f32", ("f32",), _through_float64(np.log2)),
    "v_sin_f32": Operation("f32", ("f32",), _through_float64(lambda x: np.sin(2 * np.pi * x))),
    "v_cos_f32": Operation("f32", ("f32",), _through_float64(lambda x: np.cos(2 * np.pi * x))),
    "v_rcp_f64": Operation("f64", ("f64",), lambda x: 1 / x),
    "v_rsq_f64": Operation("f64", ("f64",), lambda x: 1 / np.sqrt(x)),
    "v_sqrt_f64": Operation("f64", ("f64",), np.sqrt),
    "v_ldexp_f32": Operation(
        "f32", ("f32", "i32"), lambda a, b: np.ldexp(np.asarray(a, np.float64), np.clip(b, -300, 300))
    ),
    "v_ldexp_f64": Operation("f64", ("f64", "i32"), lambda a, b: np.ldexp(a, np.clip(b, -2200, 2200))),
    "v_frexp_exp_i32_f32": Operation("i32", ("f32",), lambda x: np.frexp(x)[1]),
    "v_frexp_exp_i32_f64": Operation("i32", ("f64",), lambda x: np.frexp(x)[1]),
    "v_cvt_f32_i32": Operation("f32", ("i32",), lambda a: a.astype(np.float32)),
    "v_cvt_f32_u32": Operation("f32", ("u32",), lambda a: a.astype(np.float32)),
    "v_cvt_i32_f32": Operation("i32", ("f32",), lambda a: to_integer(a, np.int32)),
    "v_cvt_u32_f32": Operation("u32", ("f32",), lambda a: to_integer(a, np.uint32)),
    "v_cvt_i32_f64": Operation("i32", ("f64",), lambda a: to_integer(a, np.int32)),
    "v_cvt_u32_f64": Operation("u32", ("f64",), lambda a: to_integer(a, np.uint32)),
    "v_cvt_f32_f16": Operation("f32", ("f16",), lambda a: a.astype(np.float32)),
    "v_cvt_f16_f32": Operation("f16", ("f32",), lambda a: a.astype(np.float16)),
    "v_cvt_f32_bf16": Operation("f32", ("u16",), lambda a: (a.astype(np.uint32) << np.uint32(16)).view(np.float32)),
    "v_cvt_f64_f32": Operation("f64", ("f32",), lambda a: a.astype(np.float64)),
    "v_cvt_f32_f64": Operation("f32", ("f64",), lambda a: a.astype(np.float32)),
    "v_cvt_f64_i32": Operation("f64", ("i32",), lambda a: a.astype(np.float64)),
    "v_cvt_f64_u32": Operation("f64", ("u32",), lambda a: a.astype(np.float64)),
    "v_cvt_pk_f16_f32": Operation("u32", ("f32", "f32"), lambda a, b: _pair(f16_bits(a), f16_bits(b))),
    "v_cvt_pkrtz_f16_f32": Operation(
        "u32", ("f32", "f32"), lambda a, b: _pair(f16_bits_toward_zero(a), f16_bits_toward_zero(b))
    ),
    "v_cvt_pk_bf16_f32": Operation("u32", ("f32", "f32"), lambda a, b: _pair(bf16_bits(a), bf16_bits(b))),
    "v_cvt_pk_u8_f32": Operation("u32", ("f32", "u32", "u32"), _pack_u8),
    "v_pack_b32_f16": Operation("u32", ("f16", "f16"), lambda a, b: _pair(_raw16(a), _raw16(b))),
}
"""Float instructions of the vector ALU whose lanes are independent and that need nothing but their sources."""
