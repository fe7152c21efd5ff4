"""The product of ``linear``: which tile a program computes, and the loop over K."""

from __future__ import annotations

import triton
import triton.language as tl

from paiton_kernels.gpu.fp8 import dynamic_scale, reciprocal, to_fp8
from paiton_kernels.gpu.linear_shape import SCALE_COLUMNS

_SCALE_COLUMNS = tl.constexpr(SCALE_COLUMNS)


@triton.jit
def place(program, tiles_m, TILES_N: tl.constexpr, SPLIT_K: tl.constexpr, GROUP_M: tl.constexpr, DIES: tl.constexpr):
    """Returns (tile row, tile column, split) of a program, one to one for programs below tiles_m * TILES_N * SPLIT_K.

    Programs go to the dies in turn, so each die is given a run of neighbours: its L2 then holds the weights and
    activations that they share. Splits of a tile are neighbours: most sums stay within a die. Tiles go in groups of
    GROUP_M rows, column by column, so that programs that run together share both operands.
    """
    if DIES > 1:
        programs = tiles_m * (TILES_N * SPLIT_K)
        die = program % DIES
        program = die * (programs // DIES) + tl.minimum(die, programs % DIES) + program // DIES
    split = program % SPLIT_K
    tile = program // SPLIT_K
    if GROUP_M == 1:
        return tile // TILES_N, tile % TILES_N, split
    first = tile // (GROUP_M * TILES_N) * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    within = tile % (GROUP_M * TILES_N)
    return first + within % height, within // height, split


@triton.jit
def first_member(pair, HALF: tl.constexpr, N: tl.constexpr):
    """Returns the weight row of the first member of a pair; the second one's is HALF rows further.

    Pairs are (i, i + HALF) within blocks of 2 * HALF of the N rows.
    """
    return pair if N == 2 * HALF else pair // HALF * (2 * HALF) + pair % HALF


@triton.jit
def weight_rows(column, HALF: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """Returns the weight row behind a tile's first column, and i32[BLOCK_N] those of all columns relative to it.

    HALF is 0 where there are no pairs. The members of a pair are neighbouring columns: they end up in the registers of
    one thread, whatever the matrix instruction.
    """
    place_in_tile = tl.arange(0, BLOCK_N)
    if HALF == 0:
        first, rows = column, place_in_tile
    else:
        first = first_member(column // 2, HALF, N)
        if HALF & (HALF - 1) == 0 or N == 2 * HALF:
            # Tiles begin with a block of pairs, or are within one.
            rows = first_member(place_in_tile // 2, HALF, N if BLOCK_N > 2 * HALF else 2 * HALF)
        else:
            rows = tl.maximum(first_member(column // 2 + place_in_tile // 2, HALF, N) - first, 0)
        rows += place_in_tile % 2 * HALF
    if N % BLOCK_N:
        rows = tl.where(column + place_in_tile < N, rows, 0)
    return first, rows


@triton.jit
def _convert(left, right, inverse, A: tl.constexpr, A_SCALE: tl.constexpr, SWAP: tl.constexpr, FP8_UNIT: tl.constexpr):
    """Converts what was loaded to what the matrix instruction takes."""
    if A_SCALE == "AMAX":
        if SWAP:
            right = to_fp8(right.to(tl.float32), inverse[None, :], FP8_UNIT, left.dtype)
        else:
            left = to_fp8(left.to(tl.float32), inverse[:, None], FP8_UNIT, right.dtype)
    elif A == "BF16":
        left, right = left.to(tl.bfloat16), right.to(tl.bfloat16)
    return left, right


@triton.constexpr_function
def scale_stride(k: int) -> int:
    """Returns the elements from one row of a grid of scales to the next: of 16 bytes."""
    return -(-k // (4 * SCALE_COLUMNS)) * 4


@triton.jit
def _scaled_dot(left, right, scale, A_SCALE: tl.constexpr, SWAP: tl.constexpr, FP8_UNIT: tl.constexpr):
    """Returns the product of one pass, each weight row multiplied by the scale of its block.

    A pass is at most a block, so that Hopper's imprecise sums are added to f32 often enough. With A_SCALE=GROUP it is a
    whole one, and the activations are quantised here, each row with a scale of its own for this pass.
    """
    factor = tl.load(scale)
    if A_SCALE == "GROUP":
        if SWAP:
            right = right.to(tl.float32)
            x_scale = dynamic_scale(tl.max(tl.abs(right), axis=0))
            right = to_fp8(right, reciprocal(x_scale, FP8_UNIT)[None, :], FP8_UNIT, left.dtype)
        else:
            left = left.to(tl.float32)
            x_scale = dynamic_scale(tl.max(tl.abs(left), axis=1))
            left = to_fp8(left, reciprocal(x_scale, FP8_UNIT)[:, None], FP8_UNIT, right.dtype)
        part = tl.dot(left, right) * (x_scale[None, :] if SWAP else x_scale[:, None])
    else:
        part = tl.dot(left, right)
    return part * (factor[:, None] if SWAP else factor[None, :])


@triton.jit
def _add_pass(
    accumulator,
    left,
    right,
    inverse,
    block,
    A: tl.constexpr,
    A_SCALE: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    EXACT_EVERY: tl.constexpr,
    SWAP: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    """Adds the product of what one pass has loaded; `block`: pointers to the scales of its blocks of weights."""
    if SCALE_ROWS == 0 or A_SCALE != "GROUP":
        left, right = _convert(left, right, inverse, A, A_SCALE, SWAP, FP8_UNIT)
    if SCALE_ROWS > 0:
        accumulator += _scaled_dot(left, right, block, A_SCALE, SWAP, FP8_UNIT)
    else:
        accumulator = tl.dot(left, right, accumulator, max_num_imprecise_acc=EXACT_EVERY)
    return accumulator


@triton.jit
def product(
    x_tile,
    x_row,
    w_tile,
    w_row,
    inverse,
    w_scale,
    split,
    K: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    A: tl.constexpr,
    A_SCALE: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    SWAP: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    """Returns f32[BLOCK_M, BLOCK_N]: rows of activations times rows of weights over this split's part of K.

    Args:
        x_tile: pointer to the first of the tile's activation rows, K elements apart.
        x_row: i32[BLOCK_M], rows to read, relative to it.
        w_tile: pointer to the first of the tile's weight rows, ROW_STRIDE elements apart.
        w_row: i32[BLOCK_N], rows to read, relative to it.
        inverse: f32[BLOCK_M], what activations are multiplied by before rounding (A_SCALE=AMAX).
        w_scale: pointers [BLOCK_N] to the scale of each row's first block of K (SCALE_ROWS > 0).
        split: which part of K, of SPLIT_K.
        SWAP: weights are the left operand of the matrix instruction.
    """
    FULL: tl.constexpr = K // BLOCK_K
    PER_SPLIT: tl.constexpr = (K + BLOCK_K * SPLIT_K - 1) // (BLOCK_K * SPLIT_K)
    # Hopper's FP8 accumulator keeps 13 bits of fraction: it is added to the f32 one after so many elements of K.
    EXACT_EVERY: tl.constexpr = None if A == "BF16" and A_SCALE != "AMAX" else (BLOCK_K if BLOCK_K < 128 else 128)
    k = tl.arange(0, BLOCK_K)
    # Both operands are addressed in the shape that the matrix instruction takes: transposing what was loaded would
    # leave AMD's shared memory without a swizzle.
    if SWAP:
        left_tile, right_tile = w_tile, x_tile
        left_offset, right_offset = w_row[:, None] * ROW_STRIDE + k[None, :], x_row[None, :] * K + k[:, None]
        accumulator = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        left_tile, right_tile = x_tile, w_tile
        left_offset, right_offset = x_row[:, None] * K + k[None, :], w_row[None, :] * ROW_STRIDE + k[:, None]
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if SPLIT_K == 1:
        first, last = 0, FULL
    else:
        first = split * PER_SPLIT
        last = tl.minimum(first + PER_SPLIT, FULL)
    for step in range(first, last):
        left = tl.load(left_tile + step * BLOCK_K + left_offset)
        right = tl.load(right_tile + step * BLOCK_K + right_offset)
        block = w_scale + step * BLOCK_K // _SCALE_COLUMNS
        accumulator = _add_pass(
            *(accumulator, left, right, inverse, block, A, A_SCALE, SCALE_ROWS, EXACT_EVERY, SWAP, FP8_UNIT)
        )
    if K % BLOCK_K:
        if split == FULL // PER_SPLIT:
            inside = k < K % BLOCK_K
            left = tl.load(left_tile + FULL * BLOCK_K + left_offset, mask=inside[None, :], other=0.0)
            right = tl.load(right_tile + FULL * BLOCK_K + right_offset, mask=inside[:, None], other=0.0)
            block = w_scale + FULL * BLOCK_K // _SCALE_COLUMNS
            accumulator = _add_pass(
                *(accumulator, left, right, inverse, block, A, A_SCALE, SCALE_ROWS, EXACT_EVERY, SWAP, FP8_UNIT)
            )
    return tl.trans(accumulator) if SWAP else accumulator


@triton.jit
def store_part(tile, parts, split, real, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Leaves the product over one part of K in `parts`, f32[SPLIT_K][BLOCK_M][BLOCK_N]; `real`: which rows matter."""
    place_in_part = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tl.store(parts + split * (BLOCK_M * BLOCK_N) + place_in_part, tile, mask=real[:, None])


@triton.jit
def sum_of_parts(parts, x_row, SPLIT_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Returns the sum of what all programs of a tile have left, in the order of K; the loads wait for none other."""
    parts += x_row[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tile = tl.load(parts, cache_modifier=".cg")
    for split in tl.static_range(1, SPLIT_K):
        tile += tl.load(parts + split * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
    return tile
