"""``expert_sum``: the results of a token's experts, times their probabilities, added up in the order of its choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import triton
import triton.language as tl

from paiton_kernels.expert_sum import expert_sum
from paiton_kernels.gpu.devices import Profile, Target, target_named
from paiton_kernels.gpu.spec import Case, Config, Constant, GpuArg, GpuKernelSpec, Grid, Step, Work


def _kernel(
    counts,
    x,
    probability,
    out,
    HIDDEN: tl.constexpr,
    TOP_K: tl.constexpr,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    if token >= tl.load(counts):
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < HIDDEN
    to = out + token.to(tl.int64) * HIDDEN + column
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(TOP_K):
        entry = token * TOP_K + j
        value = tl.load(x + entry.to(tl.int64) * HIDDEN + column, mask=inside, other=0.0)
        total += value * tl.load(probability + entry)
    if MODE == "ADD":
        total += tl.load(to, mask=inside, other=0.0)
    tl.store(to, total, mask=inside)


def _grid(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    return step.tokens, triton.cdiv(int(values["HIDDEN"]), int(values["BLOCK"])), 1


def _space(constants: Mapping[str, Constant], _step: Step, profile: Profile) -> tuple[Config, ...]:
    """Blocks in which each thread has one vector of 16 bytes of every expert; one to four warps."""
    warp = 4 * target_named(profile.target).warp_size
    most = max(1, triton.next_power_of_2(int(constants["HIDDEN"])) // warp)
    return tuple(Config.of(warps, 1, BLOCK=warps * warp) for warps in (2, 4, 1) if warps <= most)


def _work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    x, y, _ = _grid(values, step, profile)
    rows = int(values["TOP_K"]) + (2 if values["MODE"] == "ADD" else 1)
    return Work(bytes=4 * step.tokens * (rows * int(values["HIDDEN"]) + int(values["TOP_K"])), blocks=x * y)


def _cases(_target: Target) -> Iterator[Case]:
    random, tokens, bucket = np.random.default_rng(5), 3, 4
    for hidden, top_k, mode in ((576, 2, "ADD"), (1030, 8, "STORE"), (64, 1, "ADD")):
        x = random.standard_normal((bucket * top_k, hidden)).astype(np.float32)
        probability = random.dirichlet(np.ones(top_k), bucket).astype(np.float32)
        out = random.standard_normal((bucket, hidden)).astype(np.float32)
        expected = np.full(out.shape, np.nan)
        products = x.reshape(bucket, top_k, hidden)[:tokens].astype(np.float64)
        expected[:tokens] = expert_sum(products, probability[:tokens].astype(np.float64))
        if mode == "ADD":
            expected += out
        arrays: dict[str, Any] = {
            "counts": np.array([tokens, 1, 1, 0], np.int32),
            "x": x,
            "probability": probability,
            "out": out,
        }
        constants: dict[str, Constant] = {"HIDDEN": hidden, "TOP_K": top_k, "MODE": mode}
        yield Case(f"h{hidden}_{mode}", constants, Step(bucket, 1), arrays, {}, {"out": expected}, {"out": "f32"})


EXPERT_SUM = GpuKernelSpec(
    family="expert_sum",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows of this step, 0"),
        GpuArg("x", "*fp32", "f32[T * TOP_K][HIDDEN]"),
        GpuArg("probability", "*fp32", "f32[T][TOP_K]"),
        GpuArg("out", "*fp32", "f32[T][HIDDEN]: replaced (STORE) or added to (ADD)"),
    ),
    constants=("HIDDEN", "TOP_K", "MODE"),
    tunables=("BLOCK",),
    name=lambda values: f"h{values['HIDDEN']}_top{values['TOP_K']}_{str(values['MODE']).lower()}",
    space=_space,
    grid=_grid,
    work=_work,
    cases=_cases,
)
