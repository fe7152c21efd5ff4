"""``norm``: RMSNorm of the residual stream, rounded to what the next linear layer takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from paiton_kernels.gpu.devices import Profile, Target, target_named
from paiton_kernels.gpu.fp8 import dynamic_scale, reciprocal, to_fp8
from paiton_kernels.gpu.spec import Case, Config, Constant, GpuArg, GpuKernelSpec, Grid, Step, Work
from paiton_kernels.pack import activations

MAX_HIDDEN = 32768
"""A row stays in registers: 32 elements in each of 1,024 threads."""


def _kernel(
    counts,
    x,
    rows,
    weight,
    eps,
    out,
    out_scale,
    row_scale,
    clear,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    SCALE: tl.constexpr,
    CLEAR: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    row = tl.program_id(0)
    if row >= tl.load(counts + (2 if ROWS == "LOGITS" else 0)):
        return
    source = tl.load(rows + row) if ROWS == "LOGITS" else row
    column = tl.arange(0, triton.next_power_of_2(HIDDEN))
    inside = column < HIDDEN
    value = tl.load(x + source.to(tl.int64) * HIDDEN + column, mask=inside, other=0.0)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    value = value * tl.rsqrt(tl.sum(value * value, 0) / HIDDEN + eps) * factor
    if OUT == "BF16":
        result = value.to(tl.bfloat16)
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


def _rows(values: Mapping[str, Constant], step: Step) -> int:
    return step.requests if values["ROWS"] == "LOGITS" else step.tokens


def _grid(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    return _rows(values, step), 1, 1


def _space(constants: Mapping[str, Constant], _step: Step, profile: Profile) -> tuple[Config, ...]:
    """Threads with 32 elements of the row at most, and with one vector of 16 bytes at least."""
    warp_size = target_named(profile.target).warp_size
    columns = triton.next_power_of_2(int(constants["HIDDEN"]))
    least = max(1, columns // (32 * warp_size))
    most = max(least, min(1024, columns // 4) // warp_size)
    warps = [least]
    while warps[-1] < most:
        warps.append(2 * warps[-1])
    preferred = min(warps, key=lambda count: abs(columns // (count * warp_size) - 8))
    return tuple(Config.of(count, 1) for count in sorted(warps, key=lambda count: (count != preferred, count)))


def _work(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Work:
    rows, width = _rows(values, step), int(values["HIDDEN"])
    return Work(bytes=rows * width * (5 if values["OUT"] == "FP8" else 6) + 2 * width, blocks=rows)


def _check(values: Mapping[str, Constant], _target: Target) -> str:
    if not 0 < int(values["HIDDEN"]) <= MAX_HIDDEN:
        return f"HIDDEN is {values['HIDDEN']}, more than the {MAX_HIDDEN} that registers hold"
    if (values["OUT"] == "FP8") != (values["SCALE"] != "NONE"):
        return f"OUT={values['OUT']} with SCALE={values['SCALE']}"
    return ""


def _name(values: Mapping[str, Constant]) -> str:
    rows = "_gather" if values["ROWS"] == "LOGITS" else ""
    out = {"NONE": "bf16", "TENSOR": "fp8static", "ROW": "fp8dynamic"}[str(values["SCALE"])]
    return f"h{values['HIDDEN']}{rows}_{out}{'_clear' if values['CLEAR'] else ''}"


_ACT = {"NONE": "BF16", "TENSOR": "FP8_STATIC", "ROW": "FP8_DYNAMIC"}


def _padded(values: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """Returns the values with rows of NaN appended, which mark what must not be written."""
    return np.concatenate([values, np.full((rows - len(values), *values.shape[1:]), np.nan)])


def _case(hidden: int, rows: str, scale: str, clear: int) -> Case:
    """Returns a case of 3 tokens in a bucket of 4, or of 2 logits rows out of 5 tokens in a bucket of 3 requests."""
    random = np.random.default_rng(hidden)
    source = np.array([4, 1] if rows == "LOGITS" else [0, 1, 2])
    step = Step(5, 3) if rows == "LOGITS" else Step(4, 3)
    bucket = step.requests if rows == "LOGITS" else step.tokens
    x = (random.standard_normal((5, hidden)) * 10.0 ** np.arange(-2, 3)[:, None]).astype(np.float32)
    x[2] = 0
    weight = random.uniform(0.5, 2, hidden).astype(ml_dtypes.bfloat16)
    static = 0.004  # so that the largest values saturate
    values, scales = activations(
        x[source].astype(np.float64),
        act=_ACT[scale],
        norm_weight=weight.astype(np.float64),
        eps=1e-5,
        input_scale=static,
    )
    arrays: dict[str, Any] = {
        "counts": np.array([5 if rows == "LOGITS" else len(source), 3, len(source), 0], np.int32),
        "x": x,
        "weight": weight,
        "out": np.zeros((bucket, hidden), ml_dtypes.bfloat16 if scale == "NONE" else np.uint8),
    }
    expected = {"out": _padded(values, bucket)}
    if rows == "LOGITS":
        arrays["rows"] = np.array([*source, 0], np.int32)
    if scale == "TENSOR":
        arrays["out_scale"] = np.array([static], np.float32)
    if scale == "ROW":
        arrays["row_scale"] = np.full(bucket, 7, np.float32)
        expected["row_scale"] = _padded(scales, bucket)
    if clear:
        arrays["clear"] = np.full(bucket, 7, np.float32)
        expected["clear"] = _padded(np.zeros(len(source)), bucket)
    constants: dict[str, Constant] = {
        "HIDDEN": hidden,
        "ROWS": rows,
        "OUT": "BF16" if scale == "NONE" else "FP8",
        "SCALE": scale,
        "CLEAR": clear,
    }
    tolerance = {"out": "bf16" if scale == "NONE" else "fp8", "row_scale": "f32", "clear": "exact"}
    return Case(_name(constants), constants, step, arrays, {"eps": 1e-5}, expected, tolerance)


def _cases(target: Target) -> Iterator[Case]:
    yield _case(576, "TOKENS", "NONE", 0)
    yield _case(100, "LOGITS", "NONE", 1)
    if target.fp8:
        yield _case(576, "TOKENS", "ROW", 1)
        yield _case(4096, "LOGITS", "ROW", 0)
        yield _case(1032, "TOKENS", "TENSOR", 0)
        yield _case(16384, "TOKENS", "ROW", 0)


NORM = GpuKernelSpec(
    family="norm",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows of this step, 0"),
        GpuArg("x", "*fp32", "f32[*][HIDDEN]: the residual stream"),
        GpuArg("rows", "*i32", "i32[logits rows]: the row of x for each row (ROWS=LOGITS)"),
        GpuArg("weight", "*bf16", "bf16[HIDDEN]"),
        GpuArg("eps", "fp32", "added to the mean of squares"),
        GpuArg("out", "@OUT", "[T or logits rows][HIDDEN]"),
        GpuArg("out_scale", "*fp32", "f32[1]: what codes are multiplied by (SCALE=TENSOR)"),
        GpuArg("row_scale", "*fp32", "f32[T]: what the codes of each row are multiplied by, written (SCALE=ROW)"),
        GpuArg("clear", "*fp32", "f32[T]: set to 0 (CLEAR=1): the largest magnitudes that a later launch collects"),
    ),
    constants=("HIDDEN", "ROWS", "OUT", "SCALE", "CLEAR"),
    tunables=(),
    name=_name,
    space=_space,
    grid=_grid,
    work=_work,
    cases=_cases,
    check=_check,
)
