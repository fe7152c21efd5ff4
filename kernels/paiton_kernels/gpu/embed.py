"""``embed``: rows of the embedding table, times a scale that a model may have, as the residual stream.

With ranks, each has a share of the table's rows, and leaves zeros for a token whose row is another's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import triton
import triton.language as tl

from paiton_kernels.embed import embed
from paiton_kernels.gpu.devices import Profile, Target, target_named
from paiton_kernels.gpu.spec import Case, Config, Constant, GpuArg, GpuKernelSpec, Grid, Step, Work, spelled


def _kernel(
    counts,
    token_ids,
    last_token,
    table,
    first_row,
    out,
    HIDDEN: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    if token >= tl.load(counts):
        return
    row = tl.load(token_ids + token)
    if row < 0:  # what the previous step sampled, not known to the host yet
        row = tl.load(last_token - 1 - row)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < HIDDEN
    read = inside
    if ROWS:
        row -= first_row.to(tl.int32)
        read &= (row >= 0) & (row < ROWS)
    value = tl.load(table + row.to(tl.int64) * ROW_STRIDE + column, mask=read, other=0.0)
    value = value.to(tl.float32)
    if SCALE != 1.0:
        value *= SCALE
    tl.store(out + token.to(tl.int64) * HIDDEN + column, value, mask=inside)


def _grid(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    return step.tokens, triton.cdiv(int(values["HIDDEN"]), int(values["BLOCK"])), 1


def _space(constants: Mapping[str, Constant], _step: Step, profile: Profile) -> tuple[Config, ...]:
    """Blocks in which each thread stores one vector of 16 bytes: one warp, if that covers the row, to eight."""
    warp = 4 * target_named(profile.target).warp_size
    most = max(1, triton.next_power_of_2(int(constants["HIDDEN"])) // warp)
    return tuple(Config.of(warps, 1, BLOCK=warps * warp) for warps in (4, 8, 2, 1) if warps <= most)


def _work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    x, y, _ = _grid(values, step, profile)
    return Work(bytes=step.tokens * int(values["HIDDEN"]) * 6, blocks=x * y)


def _check(values: Mapping[str, Constant], _target: Target) -> str:
    hidden, stride = int(values["HIDDEN"]), int(values["ROW_STRIDE"])
    return f"ROW_STRIDE {stride} is less than a row of {hidden} elements" if stride < hidden else ""


def _name(values: Mapping[str, Constant]) -> str:
    stride = "" if values["HIDDEN"] == values["ROW_STRIDE"] else f"_s{values['ROW_STRIDE']}"
    scale = "" if values["SCALE"] == 1.0 else f"_x{spelled(values['SCALE'])}"
    share = f"_r{values['ROWS']}" if values["ROWS"] else ""
    return f"h{values['HIDDEN']}{stride}{share}{scale}"


def _cases(_target: Target) -> Iterator[Case]:
    """Rows by token id and by what a slot sampled last, in a bucket with a token to spare; also of a share."""
    random = np.random.default_rng(1)
    token_ids, last_token = np.array([5, -1 - 3, 2, 0], np.int32), np.array([0, 0, 0, 36], np.int32)
    shapes = ((576, 576, 1.0, 0, 0), (1536, 1544, 1.0, 0, 0), (100, 103, 1.0, 0, 0), (256, 256, 33.5, 0, 0))
    for hidden, stride, scale, rows, first_row in (*shapes, (576, 576, 1.0, 32, 5), (576, 576, 1.0, 5, 0)):
        table = random.standard_normal((rows or 37, stride)).astype(ml_dtypes.bfloat16)
        expected = np.full((4, hidden), np.nan)
        found = embed(np.array([5, 36, 2], np.int32), table[:, :hidden].astype(np.float64), first_row)
        expected[:3] = found * scale
        arrays: dict[str, Any] = {
            "counts": np.array([3, 1, 1, 0], np.int32),
            "token_ids": token_ids,
            "last_token": last_token,
            "table": table,
            "out": np.zeros((4, hidden), np.float32),
        }
        constants = {"HIDDEN": hidden, "ROW_STRIDE": stride, "SCALE": scale, "ROWS": rows}
        name = f"h{hidden}_r{rows}" if rows else f"h{hidden}"
        scalars = {"first_row": first_row}
        yield Case(name, constants, Step(4, 1), arrays, scalars, {"out": expected}, {"out": "exact"})


EMBED = GpuKernelSpec(
    family="embed",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows of this step, 0"),
        GpuArg("token_ids", "*i32", "i32[T]: a row of the table, or -1 - s for what slot s sampled last"),
        GpuArg("last_token", "*i32", "i32[slots]: what each slot sampled last"),
        GpuArg("table", "*bf16", "bf16[rows][ROW_STRIDE], of which HIDDEN are used"),
        GpuArg("first_row", "i64", "of the model's table, that is the first here (ROWS > 0)"),
        GpuArg("out", "*fp32", "f32[T][HIDDEN]"),
    ),
    constants=("HIDDEN", "ROW_STRIDE", "ROWS", "SCALE"),
    tunables=("BLOCK",),
    name=_name,
    space=_space,
    grid=_grid,
    work=_work,
    cases=_cases,
    check=_check,
    defaults={"ROWS": 0, "SCALE": 1.0},
)
