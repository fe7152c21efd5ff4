"""``rope_table``: cosines and sines of rotary position embedding, once per step.

Sine and cosine are computed here rather than by the vendors' libraries, whose general range reduction spills to local
memory. Angles need only the reduction of Cody and Waite (Software Manual for the Elementary Functions, 1980): pi/2 in
three f32 parts. That is accurate to 1 ulp for angles from 0 to 2^22.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from paiton_kernels.gpu.devices import Profile, Target
from paiton_kernels.gpu.spec import Case, Config, Constant, GpuArg, GpuKernelSpec, Grid, Step, Work
from paiton_kernels.rope_table import rope_table

_TO_INTEGER = tl.constexpr(12582912.0)
"""1.5 * 2^23: f32 that this is added to is rounded to a whole number."""


@triton.jit
def _flip_sign(value, quadrant):
    """Returns the value, negated in the third and fourth quadrant."""
    return (value.to(tl.int32, bitcast=True) ^ ((quadrant & 2) << 30)).to(tl.float32, bitcast=True)


@triton.jit
def sine_and_cosine(angle):
    """Returns sine and cosine of f32 angles from 0 to 2^22 radians, to 1 ulp."""
    quarter_turns = (angle * 0.6366197723675814 + _TO_INTEGER) - _TO_INTEGER
    # The first difference is exact: both of its terms are multiples of 2^-24 and it is below 1.
    first = tl.fma(quarter_turns, -1.5707963705062866, angle)
    rest = tl.fma(quarter_turns, 4.371138828673793e-08, first)
    # What rounding the second difference lost, where the step back is exact, and the third part of pi/2.
    step = first - rest
    low = tl.where(tl.abs(step) <= tl.abs(rest), tl.fma(quarter_turns, 4.371138828673793e-08, step), 0.0)
    low = tl.fma(quarter_turns, 1.7151245100058819e-15, low)
    square = rest * rest
    # Polynomials of least maximal error on [-pi/4, pi/4], coefficients rounded to f32 one after the other.
    sine = tl.fma(square, 2.8373952e-06, -0.00019853505)
    sine = tl.fma(square, tl.fma(square, sine, 0.00833338), -0.16666667)
    sine = rest + tl.fma(rest * square, sine, low)
    cosine = tl.fma(square, tl.fma(square, 2.4430661e-05, -0.0013887301), 0.041666646)
    near = tl.fma(square, -0.5, 1.0)
    cosine = near + (tl.fma(square, -0.5, 1.0 - near) + (square * square * cosine - rest * low))
    quadrant = quarter_turns.to(tl.int32)
    swap = (quadrant & 1) != 0
    sine, cosine = tl.where(swap, cosine, sine), tl.where(swap, sine, cosine)
    return _flip_sign(sine, quadrant), _flip_sign(cosine, quadrant + 1)


def _kernel(counts, positions, inv_freq, out, HEAD_DIM: tl.constexpr, TOKENS: tl.constexpr):
    HALF: tl.constexpr = HEAD_DIM // 2
    tokens = tl.load(counts)
    first = tl.program_id(0) * TOKENS
    if first >= tokens:
        return
    token = first + tl.arange(0, TOKENS)
    column = tl.arange(0, triton.next_power_of_2(HALF))
    position = tl.load(positions + token, mask=token < tokens, other=0)
    frequency = tl.load(inv_freq + column, mask=column < HALF, other=0.0)
    sine, cosine = sine_and_cosine(position.to(tl.float32)[:, None] * frequency[None, :])
    place = out + token.to(tl.int64)[:, None] * HEAD_DIM + column[None, :]
    inside = (token < tokens)[:, None] & (column < HALF)[None, :]
    tl.store(place, cosine, mask=inside)
    tl.store(place + HALF, sine, mask=inside)


def _grid(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    return triton.cdiv(step.tokens, int(values["TOKENS"])), 1, 1


def _space(_constants: Mapping[str, Constant], step: Step, _profile: Profile) -> tuple[Config, ...]:
    few = Config.of(1, 1, TOKENS=1)
    return (few,) if step.tokens < 64 else (Config.of(4, 1, TOKENS=16), few)


def _work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    return Work(bytes=4 * step.tokens * (int(values["HEAD_DIM"]) + 1), blocks=_grid(values, step, profile)[0])


def _check(values: Mapping[str, Constant], _target: Target) -> str:
    head_dim = int(values["HEAD_DIM"])
    return "" if head_dim > 0 and head_dim % 8 == 0 else f"HEAD_DIM is {head_dim}, not a multiple of 8"


def llama3_frequencies(head_dim: int, base: float = 500000.0) -> NDArray[np.float32]:
    """Returns f32[head_dim/2] radians per position, scaled as Llama 3.1 extends 8,192 positions to 131,072."""
    plain = base ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = 8192 * plain / (2 * np.pi)
    share = np.clip((turns - 1) / (4 - 1), 0, 1)
    return (plain * (share + (1 - share) / 8)).astype(np.float32)


def _cases(_target: Target) -> Iterator[Case]:
    for head_dim, tokens, bucket in ((64, 3, 4), (96, 35, 40), (128, 64, 64)):
        positions = np.zeros(bucket, np.int32)
        positions[:tokens] = np.geomspace(1, 131072, tokens).astype(np.int32) - 1
        inv_freq = llama3_frequencies(head_dim)
        expected = np.full((bucket, head_dim), np.nan)
        expected[:tokens] = rope_table(positions[:tokens], inv_freq)
        arrays: dict[str, Any] = {
            "counts": np.array([tokens, 1, 1, 0], np.int32),
            "positions": positions,
            "inv_freq": inv_freq,
            "out": np.zeros((bucket, head_dim), np.float32),
        }
        configs = (Config.of(1, 1, TOKENS=1), Config.of(4, 1, TOKENS=16))
        constants = {"HEAD_DIM": head_dim}
        yield Case(f"d{head_dim}", constants, Step(bucket, 1), arrays, {}, {"out": expected}, {"out": "f32"}, configs)


ROPE_TABLE = GpuKernelSpec(
    family="rope_table",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows of this step, 0"),
        GpuArg("positions", "*i32", "i32[T]"),
        GpuArg("inv_freq", "*fp32", "f32[HEAD_DIM/2]: radians per position"),
        GpuArg("out", "*fp32", "f32[T][HEAD_DIM]: HEAD_DIM/2 cosines, then as many sines"),
    ),
    constants=("HEAD_DIM",),
    tunables=("TOKENS",),
    name=lambda values: f"d{values['HEAD_DIM']}",
    space=_space,
    grid=_grid,
    work=_work,
    cases=_cases,
    check=_check,
)
