"""One metric for every numeric test, and the tolerance of each dtype. A test never brings a tolerance of its own.

The metric is that of DeepGEMM's tests (`calc_diff`), plus the largest error relative to the largest value, since a
sum over many elements hides a single wrong one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

TOLERANCE = {
    "f32": (1e-11, 4e-6),
    "bf16": (1e-5, 8e-3),
    "fp8": (1e-3, 7e-2),
}
"""By the dtype that the last rounding goes to: limits of :func:`difference` and of :func:`largest_error`."""


def difference(actual: ArrayLike, expected: ArrayLike) -> float:
    """Returns 1 - 2<x,y> / (|x|^2 + |y|^2) in float64: 0 for equal arrays, 1 for orthogonal ones."""
    x, y = np.asarray(actual, np.float64).ravel(), np.asarray(expected, np.float64).ravel()
    norm = x @ x + y @ y
    return float((x - y) @ (x - y) / norm) if norm else 0.0


def largest_error(actual: ArrayLike, expected: ArrayLike) -> float:
    """Returns max|x - y| / max|y| in float64; the plain maximum where y is 0."""
    x, y = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    scale = float(np.abs(y).max(initial=0.0))
    return float(np.abs(x - y).max(initial=0.0)) / (scale or 1.0)


def assert_close(actual: ArrayLike, expected: ArrayLike, dtype: str) -> None:
    """Fails if `actual` is not what `expected` says, by both measures, at the tolerance of `dtype`."""
    x = np.asarray(actual, np.float64)
    assert np.isfinite(x).all(), f"{np.count_nonzero(~np.isfinite(x))} values are not finite"
    limits = TOLERANCE[dtype]
    measured = difference(actual, expected), largest_error(actual, expected)
    assert measured[0] <= limits[0], f"difference {measured[0]:.3g} exceeds {limits[0]:g} ({dtype})"
    assert measured[1] <= limits[1], f"largest error {measured[1]:.3g} exceeds {limits[1]:g} ({dtype})"


def assert_same_bits(actual: NDArray[np.generic], expected: NDArray[np.generic]) -> None:
    """Fails, with the place of the first difference, unless both arrays hold the same bytes."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    x, y = (np.ascontiguousarray(a).view(f"u{a.dtype.itemsize}") for a in (actual, expected))
    wrong = np.argwhere(x != y)
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise AssertionError(
            f"{len(wrong)} of {x.size} differ, first at {place}: {actual[place]} and {expected[place]}"
        )
