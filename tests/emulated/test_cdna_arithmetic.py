"""Exactness of the emulator's float arithmetic: fused multiply-add and division."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tests.emulated.cdna.float_arithmetic import fma32, fma64
from tests.emulated.cdna.snippets import run_lanes

DIVISION = """
    v_div_scale_f32 v10, s[40:41], v2, v2, v1
    v_div_scale_f32 v11, vcc, v1, v2, v1
    v_rcp_f32_e32 v12, v10
    v_fma_f32 v13, -v10, v12, 1.0
    v_fma_f32 v12, v13, v12, v12
    v_mul_f32_e32 v13, v11, v12
    v_fma_f32 v14, -v10, v13, v11
    v_fmac_f32_e32 v13, v14, v12
    v_fma_f32 v10, -v10, v13, v11
    v_div_fmas_f32 v10, v10, v12, v13
    v_div_fixup_f32 v10, v10, v2, v1
"""
"""What the compiler makes of a float32 division."""


def nearest(exact: Fraction) -> np.float32:
    """Returns the float32 nearest to a rational, ties to even, by comparing the candidates."""
    guess = np.float32(float(exact))
    candidates = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(candidates, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.uint32)) & 1))


def difficult(count: int, seed: int) -> NDArray[np.float32]:
    """Values whose products and sums lie near the middle between two float32 values, or are subnormal."""
    random = np.random.default_rng(seed)
    exponents = random.integers(-70, 20, count)
    mantissas = (1 << 23) + random.choice([0, 1, 2, 3, 4095, 4096, 4097, (1 << 23) - 1, 1 << 22], count)
    return (random.choice([-1, 1], count) * np.ldexp(mantissas.astype(np.float64), exponents - 23)).astype(np.float32)


def test_fused_multiply_add_rounds_once() -> None:
    a, b, c = (difficult(3000, seed) for seed in (1, 2, 3))
    c[::3] = (a[::3].astype(np.float64) * b[::3] * 2.0**-25).astype(np.float32)  # beside the last place of the product
    c[1::3] = (-a[1::3].astype(np.float64) * b[1::3]).astype(np.float32)  # cancels almost everything
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    np.testing.assert_array_equal(fma32(a, b, c), [nearest(value) for value in exact])


def test_fused_multiply_add_of_float64_rounds_once() -> None:
    a, b, c = np.float64(1 + 2.0**-30), np.float64(1 - 2.0**-30), np.float64(-1)
    assert fma64(np.array([a]), np.array([b]), np.array([c]))[0] == -(2.0**-60)
    with np.errstate(invalid="ignore"):
        assert np.isnan(fma64(np.array([np.inf]), np.array([0.0]), np.array([1.0]))[0])


def test_division_is_correctly_rounded() -> None:
    random = np.random.default_rng(4)
    for span in (1, 60, 120):
        numerator, denominator = (
            np.ldexp(random.uniform(1, 2, 64), random.integers(-span, span + 1, 64)).astype(np.float32)
            * random.choice(np.array([-1, 1], np.float32), 64)
            for _ in range(2)
        )
        found = run_lanes(DIVISION, [numerator, denominator])[0].view(np.float32)
        with np.errstate(all="ignore"):
            expected = numerator / denominator
        normal = np.abs(expected) > 2.0**-126
        np.testing.assert_array_equal(found[normal], expected[normal])
        np.testing.assert_allclose(found[~normal], expected[~normal], rtol=0, atol=2.0**-149)


def test_division_of_what_is_special() -> None:
    values = np.array([0, -0.0, 1, -2, np.inf, -np.inf, np.nan, 3e38], np.float32)
    numerator, denominator = (x.ravel() for x in np.meshgrid(values, values))
    found = run_lanes(DIVISION, [numerator, denominator])[0].view(np.float32)
    with np.errstate(all="ignore"):
        expected = numerator / denominator
    np.testing.assert_array_equal(found, expected)
    zero = expected == 0
    np.testing.assert_array_equal(np.signbit(found[zero]), np.signbit(expected[zero]))
