"""``route``: chooses the experts of every token, and rounds what enters them.

The router's product is split over K, so that a step of few tokens has the bytes of all its rows in flight; the last
program of a tile of tokens sums the parts, and takes softmax and the best experts. A step that is one tile gets its
list of entries (routes.py) here; several tiles leave how often they chose each expert, and ``route_order`` makes it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from paiton_kernels.gpu.fp8 import reciprocal, to_fp8
from paiton_kernels.gpu.last_arriver import arrives_last
from paiton_kernels.gpu.linear_tile import product, store_part, sum_of_parts
from paiton_kernels.gpu.route_cases import cases
from paiton_kernels.gpu.route_shape import check, grid, name, space, work, workspace
from paiton_kernels.gpu.routes import width_of, write_extents, write_order
from paiton_kernels.gpu.spec import GpuArg, GpuKernelSpec

_LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _round(
    x_tile,
    x_row,
    first,
    real,
    split,
    x_scale,
    quantised,
    amax,
    HIDDEN: tl.constexpr,
    OUT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    """Stores this part of a tile of tokens as FP8 (OUT=FP8), or raises the largest magnitudes of its rows."""
    PASSES: tl.constexpr = (HIDDEN + BLOCK_K - 1) // BLOCK_K
    PER_SPLIT: tl.constexpr = (PASSES + SPLIT_K - 1) // SPLIT_K
    token = first + tl.arange(0, TILE)
    largest = tl.zeros((TILE,), tl.float32)
    for step in range(split * PER_SPLIT, tl.minimum((split + 1) * PER_SPLIT, PASSES)):
        column = step * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = (column < HIDDEN)[None, :]
        value = tl.load(x_tile + x_row[:, None] * HIDDEN + column[None, :], mask=inside, other=0.0).to(tl.float32)
        if OUT == "FP8":
            codes = to_fp8(value, reciprocal(tl.load(x_scale), FP8_UNIT), FP8_UNIT, quantised.dtype.element_ty)
            to = quantised + token.to(tl.int64)[:, None] * HIDDEN + column[None, :]
            tl.store(to, codes, mask=real[:, None] & inside)
        else:
            largest = tl.maximum(largest, tl.max(tl.abs(value), axis=1))
    if OUT != "FP8":
        # The bits of floats that are not negative are ordered as integers are.
        bits = largest.to(tl.int32, bitcast=True)
        tl.atomic_max(amax.to(tl.pointer_type(tl.int32)) + token, bits, mask=real, sem="relaxed")


@triton.jit
def _choose(score, real, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, NORMALISE: tl.constexpr, TILE: tl.constexpr):
    """Returns which of a token's experts each is, i32[TILE][width] with -1 for none, and their probabilities.

    A token has TOP_K different experts whatever the scores are: what is not a number counts as the lowest one.
    """
    expert = tl.arange(0, width_of(EXPERTS))[None, :]
    known = expert < EXPERTS
    score = tl.where(known, score, float("-inf"))
    share = tl.exp(score - tl.max(score, axis=1)[:, None])
    left = tl.where(known, tl.maximum(score, _LOWEST), float("-inf"))  # of NaN and a number, the number
    slot = tl.full((TILE, width_of(EXPERTS)), -1, tl.int32)
    for j in range(TOP_K):
        best = left == tl.max(left, axis=1)[:, None]
        taken = expert == tl.min(tl.where(best, expert, EXPERTS), axis=1)[:, None]
        slot = tl.where(taken, j, slot)
        left = tl.where(taken, float("-inf"), left)
    among = tl.where(slot >= 0, share, 0.0) if NORMALISE else share
    return tl.where(real[:, None], slot, -1), share / tl.sum(among, axis=1)[:, None]


def _kernel(
    counts,
    x,
    router,
    x_scale,
    quantised,
    amax,
    clear,
    probability,
    expert,
    routes,
    histogram,
    workspace,
    semaphores,
    HIDDEN: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    OUT: tl.constexpr,
    AMAX: tl.constexpr,
    CLEAR: tl.constexpr,
    TILE: tl.constexpr,
    ORDER: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    WIDTH: tl.constexpr = width_of(EXPERTS)
    tokens = tl.load(counts)
    tile, split = tl.program_id(0) // SPLIT_K, tl.program_id(0) % SPLIT_K
    first = tile * TILE
    if first >= tl.maximum(tokens, 1):  # the list of a step without tokens is written too
        return
    # Rows and columns beyond the ends repeat a real one, as in `linear`.
    x_row = tl.maximum(tl.minimum(tl.arange(0, TILE), tokens - 1 - first), 0)
    real = first + tl.arange(0, TILE) < tokens
    x_tile = x + first.to(tl.int64) * HIDDEN
    column = tl.arange(0, WIDTH)
    known = column < EXPERTS
    score = product(
        *(x_tile, x_row, router, tl.where(known, column, 0), x_row, router, split, HIDDEN, ROW_STRIDE),
        *("BF16", "NONE", 0, TILE, WIDTH, BLOCK_K, SPLIT_K, 0, FP8_UNIT),
    )
    if OUT == "FP8" or AMAX:
        _round(
            *(x_tile, x_row, first, real, split, x_scale, quantised, amax),
            *(HIDDEN, OUT, TILE, BLOCK_K, SPLIT_K, FP8_UNIT),
        )
    if SPLIT_K > 1:
        parts = workspace + tile.to(tl.int64) * (SPLIT_K * TILE * WIDTH)
        store_part(score, parts, split, real, TILE, WIDTH)
        if not arrives_last(semaphores + tile, SPLIT_K):
            return
        score = sum_of_parts(parts, x_row, SPLIT_K, TILE, WIDTH)
        tl.store(semaphores + tile, 0)

    slot, share = _choose(score, real, EXPERTS, TOP_K, NORMALISE, TILE)
    chosen = slot >= 0
    entry = (first + tl.arange(0, TILE))[:, None] * TOP_K + slot
    tl.store(probability + entry, share, mask=chosen)
    tl.store(expert + entry, tl.broadcast_to(column[None, :], (TILE, WIDTH)), mask=chosen)
    if CLEAR:
        tl.store(clear + entry, 0.0, mask=chosen)
    times = tl.sum(chosen.to(tl.int32), axis=0)
    if ORDER:
        end = tl.cumsum(times, 0)
        write_extents(routes, end, tokens, EXPERTS, TOP_K)
        write_order(routes, slot, end - times, first, EXPERTS, TOP_K, TILE)
    else:
        tl.store(histogram + tile * EXPERTS + column, times, mask=known)


ROUTE = GpuKernelSpec(
    family="route",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows of this step, 0"),
        GpuArg("x", "*bf16", "bf16[T][HIDDEN]"),
        GpuArg("router", "*bf16", "bf16[EXPERTS][ROW_STRIDE], of which HIDDEN are used"),
        GpuArg("x_scale", "*fp32", "f32[1]: what the codes in quantised are multiplied by (OUT=FP8)"),
        GpuArg("quantised", "@OUT", "e4m3fn codes [T][HIDDEN] of x (OUT=FP8)"),
        GpuArg("amax", "*fp32", "f32[T]: raised to the largest magnitude of each row of x (AMAX=1)"),
        GpuArg(
            "clear", "*fp32", "f32[T][TOP_K]: set to 0 (CLEAR=1): the largest magnitudes that a later launch collects"
        ),
        GpuArg("probability", "*fp32", "f32[T][TOP_K]: of a token's experts, the largest first"),
        GpuArg("expert", "*i32", "i32[T][TOP_K]: a token's experts; of equal scores the lower one is first"),
        GpuArg("routes", "*i32", "the list (routes.py), written (ORDER=1)"),
        GpuArg("histogram", "*i32", "i32[tiles][EXPERTS]: how often a tile of tokens chose each, written (ORDER=0)"),
        GpuArg("workspace", "*fp32", "f32[tiles][SPLIT_K][TILE][width] (SPLIT_K > 1)"),
        GpuArg("semaphores", "*i32", "i32[tiles], zero before and after a launch (SPLIT_K > 1)"),
    ),
    constants=("HIDDEN", "ROW_STRIDE", "EXPERTS", "TOP_K", "NORMALISE", "OUT", "AMAX", "CLEAR", "TILE", "ORDER"),
    tunables=("BLOCK_K", "SPLIT_K"),
    name=name,
    space=space,
    grid=grid,
    work=work,
    cases=cases,
    check=check,
    workspace=workspace,
)
