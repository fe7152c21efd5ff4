"""What becomes of ``attention``'s results: partial results of splits are added up, and the output is rounded."""

from __future__ import annotations

import triton
import triton.language as tl

from paiton_kernels.gpu.attention_items import FAN_IN
from paiton_kernels.gpu.attention_tile import LOWEST, padded
from paiton_kernels.gpu.fp8 import reciprocal, to_fp8
from paiton_kernels.gpu.last_arriver import arrives_last


@triton.jit
def add_partials(sums, weights, first, step, count, acc, largest, row, HEAD_DIM: tl.constexpr, UNROLL: tl.constexpr):
    """Adds up `count` partial results, at slots first, first + step, ..., in this order.

    Loads bypass the caches (".cv"): another program wrote what they read.

    Returns:
        acc, largest, total.
    """
    BLOCK_Q: tl.constexpr = row.shape[0]
    element = row[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    now = tl.full(largest.shape, LOWEST, tl.float32)
    for index in range(0, count, UNROLL):
        for ahead in tl.static_range(UNROLL):
            at = first + step * tl.minimum(index + ahead, count - 1)
            now = tl.maximum(now, tl.load(weights + at * (2 * BLOCK_Q) + row, cache_modifier=".cv"))
    acc = tl.zeros_like(acc)
    total = tl.zeros_like(largest)
    for index in range(0, count, UNROLL):
        for ahead in tl.static_range(UNROLL):
            # Beyond the last partial, the last one again with weight 0: loads without a mask can all be under way.
            at = first + step * tl.minimum(index + ahead, count - 1)
            part = tl.load(sums + at * (BLOCK_Q * HEAD_DIM) + element, cache_modifier=".cv")
            part_largest = tl.load(weights + at * (2 * BLOCK_Q) + row, cache_modifier=".cv")
            part_total = tl.load(weights + at * (2 * BLOCK_Q) + BLOCK_Q + row, cache_modifier=".cv")
            scale = tl.where(index + ahead < count, tl.exp2(part_largest - now), 0.0)
            total += scale * part_total
            acc += scale[:, None] * part
    return acc, now, total


@triton.jit
def leave_partial(sums, weights, slot, acc, largest, total, row, HEAD_DIM: tl.constexpr):
    """Stores a partial result in a slot."""
    BLOCK_Q: tl.constexpr = row.shape[0]
    element = row[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(sums + slot * (BLOCK_Q * HEAD_DIM) + element, acc)
    tl.store(weights + slot * (2 * BLOCK_Q) + row, largest)
    tl.store(weights + slot * (2 * BLOCK_Q) + BLOCK_Q + row, total)


@triton.jit
def join_splits(
    acc,
    largest,
    total,
    split,
    splits,
    first,
    step,
    sums,
    weights,
    semaphores,
    row,
    HEAD_DIM: tl.constexpr,
):
    """Leaves the partial result of a split; the last of a tile's splits to arrive gets their sum.

    Splits are added up in groups of FAN_IN, whose results take the place of the first of each group and are added up by
    the last group to be complete: in a fixed order, whoever comes last.

    Args:
        acc: f32[BLOCK_Q][HEAD_DIM] of this split.
        largest: f32[BLOCK_Q].
        total: f32[BLOCK_Q].
        split: its number.
        splits: of the tile.
        first: slot of split 0.
        step: slots from one split to the next.
        sums: workspace of the sums.
        weights: workspace of largest and total.
        semaphores: one for each slot; 0 before and after.

    Returns:
        acc, total, and whether this program finishes the tile.
    """
    UNROLL: tl.constexpr = 4 if row.shape[0] * HEAD_DIM <= 4096 else 1
    leave_partial(sums, weights, first + split * step, acc, largest, total, row, HEAD_DIM)
    group = first + split // FAN_IN * FAN_IN * step
    members = tl.minimum(splits - split // FAN_IN * FAN_IN, FAN_IN)
    last = arrives_last(semaphores + group, members)
    if last:
        tl.store(semaphores + group, 0)
        acc, largest, total = add_partials(sums, weights, group, step, members, acc, largest, row, HEAD_DIM, UNROLL)
        if splits > FAN_IN:
            tl.debug_barrier()  # every wave has read the slot that the group's result overwrites
            leave_partial(sums, weights, group, acc, largest, total, row, HEAD_DIM)
            # With more than one group, the first has a second slot, whose semaphore counts the groups.
            groups = tl.cdiv(splits, FAN_IN)
            last = arrives_last(semaphores + first + step, groups)
            if last:
                tl.store(semaphores + first + step, 0)
                acc, largest, total = add_partials(
                    sums, weights, first, step * FAN_IN, groups, acc, largest, row, HEAD_DIM, UNROLL
                )
    return acc, total, last


@triton.jit
def write_output(
    value,
    out,
    out_scale,
    out_amax,
    token,
    head,
    real,
    Q_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    OUT: tl.constexpr,
    AMAX: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    """Stores the rows of a tile: rounded to bf16 and, for OUT=FP8, from there to FP8.

    Args:
        value: f32[BLOCK_Q][padded(HEAD_DIM)]; zeros behind the head.
        token: i32[BLOCK_Q], in the batch.
        head: i32[BLOCK_Q], of the query.
        real: whether a row is one.
    """
    rounded = value.to(tl.bfloat16)
    column = tl.arange(0, padded(HEAD_DIM))
    inside = real[:, None]
    if padded(HEAD_DIM) != HEAD_DIM:
        inside &= (column < HEAD_DIM)[None, :]
    to = out + (token.to(tl.int64) * (Q_HEADS * HEAD_DIM) + head * HEAD_DIM)[:, None] + column[None, :]
    if OUT == "FP8":
        inverse = reciprocal(tl.load(out_scale), FP8_UNIT)
        tl.store(to, to_fp8(rounded.to(tl.float32), inverse, FP8_UNIT, out.dtype.element_ty), mask=inside)
    else:
        tl.store(to, rounded, mask=inside)
    if AMAX:
        largest = tl.max(tl.abs(rounded.to(tl.float32)), axis=1)
        # The bits of floats that are not negative are ordered as integers are.
        bits = largest.to(tl.int32, bitcast=True)
        tl.atomic_max(out_amax.to(tl.pointer_type(tl.int32)) + token, bits, mask=real, sem="relaxed")
