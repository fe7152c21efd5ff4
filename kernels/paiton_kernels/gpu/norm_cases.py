"""What kernels that normalise rows must compute, in float64, and cases of ``norm``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paiton_kernels.gpu.case_rows import within
from paiton_kernels.gpu.spec import Case, Constant, Step
from paiton_kernels.pack import activations

EPS = 1e-5

STATIC_SCALE = 0.004
"""Of static FP8 activations in cases: the largest values saturate."""

_STORED: dict[str, Any] = {"BF16": ml_dtypes.bfloat16, "FP8": np.uint8, "FP32": np.float32}
_ACT = {"NONE": "BF16", "TENSOR": "FP8_STATIC", "ROW": "FP8_DYNAMIC"}


def normed(
    stream: NDArray[np.float64], weight: NDArray[Any], scale: str, offset: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns what a norm makes of rows, and their dynamic scales."""
    factor = weight.astype(np.float64) + offset
    return activations(stream, act=_ACT[scale], norm_weight=factor, eps=EPS, input_scale=STATIC_SCALE)


def add_scales(
    arrays: dict[str, Any],
    expected: dict[str, NDArray[np.float64]],
    bucket: int,
    scales: NDArray[np.float64],
    *,
    scale: str,
    clear: int,
) -> None:
    """Adds the arguments that go with rounded rows (SCALE, CLEAR), and what they must hold for `scales`, one a row."""
    if scale == "TENSOR":
        arrays["out_scale"] = np.array([STATIC_SCALE], np.float32)
    if scale == "ROW":
        arrays["row_scale"] = np.full(bucket, 7, np.float32)
        expected["row_scale"] = within(bucket, scales)
    if clear:
        arrays["clear"] = np.full(bucket, 7, np.float32)
        expected["clear"] = within(bucket, np.zeros(len(scales)))


def _exactly(stream: NDArray[np.float64], weight: NDArray[Any], offset: float) -> NDArray[np.float64]:
    """Returns what a norm makes of rows that are not rounded."""
    mean = np.mean(stream**2, axis=1, keepdims=True)
    return np.asarray(stream / np.sqrt(mean + EPS) * (weight.astype(np.float64) + offset))


def norm_case(
    name: Callable[[Mapping[str, Constant]], str],
    hidden: int,
    rows: str,
    scale: str,
    clear: int,
    *,
    offset: float = 0.0,
    part: int = 0,
    out: str = "",
) -> Case:
    """Returns a case of 3 tokens in a bucket of 4, or of 2 logits rows out of 5 tokens in a bucket of 3 requests."""
    random, out = np.random.default_rng(hidden), out or ("BF16" if scale == "NONE" else "FP8")
    source = np.array([4, 1] if rows == "LOGITS" else [0, 1, 2])
    step = Step(5, 3) if rows == "LOGITS" else Step(4, 3)
    bucket = step.requests if rows == "LOGITS" else step.tokens
    x = (random.standard_normal((5, hidden)) * 10.0 ** np.arange(-2, 3)[:, None]).astype(np.float32)
    x[2] = 0
    weight = random.uniform(0.5, 2, hidden).astype(ml_dtypes.bfloat16)
    stream, added = x.astype(np.float64), random.standard_normal((5, hidden)).astype(np.float32)
    if part:
        weights = random.uniform(-0.5, 2, hidden).astype(ml_dtypes.bfloat16)
        stream = stream + _exactly(added.astype(np.float64), weights, offset)
    values, scales = normed(stream[source], weight, scale, offset)
    if out == "FP32":
        values = _exactly(stream[source], weight, offset)
    arrays: dict[str, Any] = {
        "counts": np.array([5 if rows == "LOGITS" else len(source), 3, len(source), 0], np.int32),
        "x": x,
        "weight": weight,
        "out": np.zeros((bucket, hidden), _STORED[out]),
    }
    expected = {"out": within(bucket, values)}
    if part:
        arrays |= {"part": added, "part_weight": weights}
        expected["x"] = within(5, stream[source]) if rows == "TOKENS" else np.full((5, hidden), np.nan)
    if rows == "LOGITS":
        arrays["rows"] = np.array([*source, 0], np.int32)
    add_scales(arrays, expected, bucket, scales, scale=scale, clear=clear)
    constants: dict[str, Constant] = {
        "HIDDEN": hidden,
        "ROWS": rows,
        "OUT": out,
        "SCALE": scale,
        "CLEAR": clear,
        "OFFSET": offset,
        "PART": part,
    }
    tolerance = {"x": "f32", "out": {"FP32": "f32"}.get(out, out.lower()), "row_scale": "f32", "clear": "exact"}
    return Case(name(constants), constants, step, arrays, {"eps": EPS}, expected, tolerance)
