"""Rows of a bucket as cases expect them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def within(bucket: int, rows: NDArray[Any]) -> NDArray[np.float64]:
    """Returns rows of a bucket, those beyond the real ones marked as not written: they are NaN."""
    expected = np.full((bucket, *rows.shape[1:]), np.nan)
    expected[: len(rows)] = rows
    return expected
