"""``quantize``: activations to FP8 with the scales of rows whose largest magnitudes are already known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import triton
import triton.language as tl

from paiton_kernels.gpu.devices import Profile, Target, target_named
from paiton_kernels.gpu.fp8 import dynamic_scale, reciprocal, to_fp8
from paiton_kernels.gpu.spec import Case, Config, Constant, GpuArg, GpuKernelSpec, Grid, Step, Work
from paiton_kernels.pack import activations


def _kernel(counts, x, amax, out, row_scale, K: tl.constexpr, BLOCK: tl.constexpr, FP8_UNIT: tl.constexpr):
    token = tl.program_id(0)
    if token >= tl.load(counts):
        return
    scale = dynamic_scale(tl.load(amax + token))
    if tl.program_id(1) == 0:
        tl.store(row_scale + token, scale)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < K
    row = token.to(tl.int64) * K
    value = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    codes = to_fp8(value, reciprocal(scale, FP8_UNIT), FP8_UNIT, out.dtype.element_ty)
    tl.store(out + row + column, codes, mask=inside)


def _grid(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    return step.tokens, triton.cdiv(int(values["K"]), int(values["BLOCK"])), 1


def _space(constants: Mapping[str, Constant], _step: Step, profile: Profile) -> tuple[Config, ...]:
    """Blocks in which each thread has one vector of 16 bytes; one warp, if that covers the row, to four."""
    warp = 8 * target_named(profile.target).warp_size
    most = max(1, min(4, triton.next_power_of_2(int(constants["K"])) // warp))
    return tuple(Config.of(warps, 1, BLOCK=warps * warp) for warps in (4, 2, 1) if warps <= most)


def _work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    x, y, _ = _grid(values, step, profile)
    return Work(bytes=step.tokens * (3 * int(values["K"]) + 8), blocks=x * y)


def _cases(target: Target) -> Iterator[Case]:
    if not target.fp8:
        return
    random = np.random.default_rng(3)
    for k, tokens, bucket in ((576, 3, 4), (1532, 7, 8), (8192, 2, 2)):
        x = (random.standard_normal((bucket, k)) * 10.0 ** random.uniform(-6, 6, (bucket, 1))).astype(
            ml_dtypes.bfloat16
        )
        x[1] = 0
        values, scales = activations(x[:tokens].astype(np.float64), act="FP8_DYNAMIC")
        expected = {"out": np.full((bucket, k), np.nan), "row_scale": np.full(bucket, np.nan)}
        expected["out"][:tokens], expected["row_scale"][:tokens] = values, scales
        arrays: dict[str, Any] = {
            "counts": np.array([tokens, 1, 1, 0], np.int32),
            "x": x,
            "amax": np.abs(x.astype(np.float32)).max(axis=1),
            "out": np.zeros((bucket, k), np.uint8),
            "row_scale": np.zeros(bucket, np.float32),
        }
        tolerance = {"out": "fp8", "row_scale": "f32"}
        yield Case(f"k{k}", {"K": k}, Step(bucket, 1), arrays, {}, expected, tolerance)


QUANTIZE = GpuKernelSpec(
    family="quantize",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows of this step, 0"),
        GpuArg("x", "*bf16", "bf16[T][K]"),
        GpuArg("amax", "*fp32", "f32[T]: largest magnitude of each row of x"),
        GpuArg("out", "*fp8", "e4m3fn codes [T][K]"),
        GpuArg("row_scale", "*fp32", "f32[T]: what the codes of each row are multiplied by, written"),
    ),
    constants=("K",),
    tunables=("BLOCK",),
    name=lambda values: f"k{values['K']}",
    space=_space,
    grid=_grid,
    work=_work,
    cases=_cases,
)
