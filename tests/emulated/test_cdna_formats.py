"""The emulator's number formats, exhaustively against ml_dtypes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulated.cdna.number_formats import (
    E2M1,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    SmallFloat,
    bf16_bits,
    bf16_values,
    f16_bits,
    f16_bits_toward_zero,
    to_integer,
    xf32_values,
)

FORMATS = [
    pytest.param(E4M3FN, ml_dtypes.float8_e4m3fn, id="e4m3fn"),
    pytest.param(E4M3FNUZ, ml_dtypes.float8_e4m3fnuz, id="e4m3fnuz"),
    pytest.param(E5M2, ml_dtypes.float8_e5m2, id="e5m2"),
    pytest.param(E5M2FNUZ, ml_dtypes.float8_e5m2fnuz, id="e5m2fnuz"),
    pytest.param(E2M1, ml_dtypes.float4_e2m1fn, id="e2m1"),
]


def codes_of(format_: SmallFloat) -> NDArray[np.uint8]:
    return np.arange(2 * format_.sign).astype(np.uint8)


def boundaries(format_: SmallFloat) -> NDArray[np.float32]:
    """Every value, every midpoint of neighbours, their float32 neighbours, and what lies beyond; both signs."""
    finite = np.unique(format_.values[np.isfinite(format_.values)])
    step = finite[-1] - finite[-2]
    midpoints = (finite[1:] + finite[:-1]) / 2
    beyond = [finite[-1] + step * factor for factor in (0.25, 0.5, 0.75, 1, 100)]
    places = np.concatenate([finite, midpoints, beyond]).astype(np.float32)
    near = [np.nextafter(places, np.float32(direction)) for direction in (-np.inf, np.inf)]
    return np.concatenate([places, -places, *near, np.array([0.0, -0.0, 1e-30, -1e-30], np.float32)])


@pytest.mark.parametrize(("format_", "dtype"), FORMATS)
def test_every_code_has_its_value(format_: SmallFloat, dtype: Any) -> None:
    expected = codes_of(format_).view(dtype).astype(np.float64)
    np.testing.assert_array_equal(format_.values, expected)
    np.testing.assert_array_equal(np.signbit(format_.values)[expected == 0], np.signbit(expected)[expected == 0])


@pytest.mark.parametrize(("format_", "dtype"), FORMATS)
def test_rounding_is_to_nearest_even(format_: SmallFloat, dtype: Any) -> None:
    values = boundaries(format_)
    found = format_.encode(values, saturate=False)
    np.testing.assert_array_equal(found, values.astype(dtype).view(np.uint8))


@pytest.mark.parametrize(("format_", "dtype"), FORMATS)
def test_saturation_replaces_only_what_overflows(format_: SmallFloat, dtype: Any) -> None:
    values = boundaries(format_)
    limit = np.float32(format_.values[format_.largest])
    clamped = np.clip(values, -limit, limit)
    found = format_.encode(values, saturate=True)
    np.testing.assert_array_equal(found, clamped.astype(dtype).view(np.uint8))
    infinite = format_.encode(np.array([np.inf, -np.inf]), saturate=True)
    np.testing.assert_array_equal(format_.values[infinite], [limit, -limit])


@pytest.mark.parametrize(("format_", "dtype"), FORMATS[:4])
def test_what_is_not_finite(format_: SmallFloat, dtype: Any) -> None:
    values = np.array([np.nan, np.inf, -np.inf], np.float32)
    with np.errstate(invalid="ignore"):
        expected = values.astype(dtype)
    found = format_.values[format_.encode(values, saturate=False)]
    np.testing.assert_array_equal(found, expected.astype(np.float64))


def test_bfloat16_is_rounded_and_read_as_ml_dtypes_does() -> None:
    high = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (high | np.uint32(low)).view(np.float32)
        number = ~np.isnan(values)
        expected = values[number].astype(ml_dtypes.bfloat16).view(np.uint16)
        np.testing.assert_array_equal(bf16_bits(values)[number], expected)
        assert np.isnan(bf16_values(bf16_bits(values[~number]))).all()


def test_float16_is_rounded_both_ways() -> None:
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16)
    between = ((finite[1:].astype(np.float64) + finite[:-1].astype(np.float64)) / 2).astype(np.float32)
    for sign in (1, -1):
        values = sign * between
        np.testing.assert_array_equal(f16_bits(values), values.astype(np.float16).view(np.uint16))
        for near in (values, np.nextafter(values, np.float32(0)), np.nextafter(values, np.float32(sign * 1e9))):
            np.testing.assert_array_equal(f16_bits_toward_zero(near), (sign * finite[:-1]).view(np.uint16))


def test_xf32_keeps_ten_bits_of_the_mantissa() -> None:
    random = np.random.default_rng(1)
    values = random.standard_normal(4096).astype(np.float32)
    found = xf32_values(values).astype(np.float64)
    mantissa, exponent = np.frexp(values.astype(np.float64))
    np.testing.assert_array_equal(found, np.ldexp(np.rint(mantissa * 2**11), exponent - 11))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.uint8])
def test_conversion_to_integers_truncates_and_clamps(dtype: Any) -> None:
    limits = np.iinfo(dtype)
    values = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 2.9, -2.9, -0.0, 77.5, limits.max, limits.min])
    expected = [
        0,
        limits.max,
        limits.min,
        limits.max,
        limits.min,
        2,
        max(-2, limits.min),
        0,
        77,
        limits.max,
        limits.min,
    ]
    np.testing.assert_array_equal(to_integer(values, dtype), np.array(expected, dtype))
