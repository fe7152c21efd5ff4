"""The inner loop of ``attention`` in Triton's language: a tile of queries against a range of history."""

from __future__ import annotations

import triton
import triton.language as tl

from paiton_kernels.spec import KV_BLOCK_TOKENS

_BLOCK_TOKENS = tl.constexpr(KV_BLOCK_TOKENS)

LOWEST = tl.constexpr(-1e30)
"""Where running maxima start: below every score, and finite, so that a row without any score makes no NaN."""


@triton.jit
def blocks_of(table, start, end, BLOCK_KV: tl.constexpr):
    """Returns i32[BLOCK_KV]: the KV block of each position from `start` on; the last one's beyond `end`."""
    position = tl.minimum(start + tl.arange(0, BLOCK_KV), end - 1)
    return tl.load(table + position // _BLOCK_TOKENS)


@triton.constexpr_function
def padded(head_dim: int) -> int:
    """Returns the columns of a tile: those of a head, up to a power of two."""
    return 1 << (head_dim - 1).bit_length()


@triton.jit
def load_history(
    keys, kv_block_stride, block, start, end, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WORDS: tl.constexpr
):
    """Loads a tile of K and V; beyond `end` the last position again, so that what was never written is never read.

    Args:
        keys: this KV head's K in block 0.
        kv_block_stride: bytes, i64.
        block: i32[BLOCK_KV], from :func:`blocks_of`.
        start: first position.
        end: of the split, exclusive.
        WORDS: whether FP8 comes as i32, four codes each: loop-carried bytes are taken apart as soon as they arrive,
            so that the loop would wait for the tile that it prefetches.

    Returns:
        K and V, [BLOCK_KV][padded(HEAD_DIM)] each as stored, zeros behind the head, or a fourth of that in i32.
    """
    position = tl.minimum(start + tl.arange(0, block.shape[0]), end - 1)
    BF16: tl.constexpr = keys.dtype.element_ty == tl.bfloat16
    # 64 bits before the multiplication: a pool of KV blocks is larger than 4 GiB.
    element = block.to(tl.int64) * (kv_block_stride >> BF16) + position % _BLOCK_TOKENS * HEAD_DIM
    PACK: tl.constexpr = 4 if WORDS else 1
    pointer = keys.to(tl.pointer_type(tl.int32)) if WORDS else keys
    column = tl.arange(0, padded(HEAD_DIM) // PACK)
    at = pointer + (element // PACK)[:, None] + column[None, :]
    to_value: tl.constexpr = KV_HEADS * _BLOCK_TOKENS * HEAD_DIM // PACK
    if padded(HEAD_DIM) == HEAD_DIM:
        key, value = tl.load(at), tl.load(at + to_value)
    else:
        zero: tl.constexpr = 0 if WORDS else 0.0
        inside = (column < HEAD_DIM // PACK)[None, :]
        key, value = tl.load(at, mask=inside, other=zero), tl.load(at + to_value, mask=inside, other=zero)
    return key, value


@triton.jit
def as_bf16(stored, dtype: tl.constexpr):
    """Returns a tile of K or V, as :func:`load_history` gives it, in bf16."""
    if stored.dtype == tl.int32:
        low = tl.join(stored.to(tl.int8), (stored >> 8).to(tl.int8))
        high = tl.join((stored >> 16).to(tl.int8), (stored >> 24).to(tl.int8))
        code = tl.permute(tl.join(low, high), (0, 1, 3, 2))
        code = tl.reshape(code, (stored.shape[0], stored.shape[1] * 4))
        code = code.to(dtype, bitcast=True)
    else:
        code = stored
    return code.to(tl.bfloat16)


@triton.jit
def attend(
    query,
    acc,
    largest,
    total,
    key,
    value,
    start,
    end,
    since,
    everyone,
    visible,
    scale,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    dtype: tl.constexpr,
):
    """Adds a tile of history to the running softmax of a tile of queries.

    Args:
        query: bf16[BLOCK_Q][HEAD_DIM].
        acc: f32[BLOCK_Q][HEAD_DIM], the weighted sum of V so far.
        largest: f32[BLOCK_Q], the largest scaled score so far.
        total: f32[BLOCK_Q], the sum of weights so far.
        key: [BLOCK_KV][HEAD_DIM], as stored.
        value: likewise.
        start: first position.
        end: of the split, exclusive.
        since: positions from this one on are attended to by every row, as far as its window goes (WINDOW).
        everyone: positions below this are attended to by every row.
        visible: i32[BLOCK_Q], the last position that each row attends to.
        scale: what scores are multiplied by, log2(e) included: weights are powers of 2. With a SOFTCAP, what they are
            multiplied by before exp2 gives exp(2 * score / SOFTCAP).
        WINDOW: positions that a row attends to at most; 0 is all.
        SOFTCAP: scores are SOFTCAP * tanh(score / SOFTCAP); 0 is none.

    Returns:
        acc, largest, total.
    """
    score = tl.dot(query, as_bf16(key, dtype).T) * scale
    if SOFTCAP != 0.0:
        CAP: tl.constexpr = SOFTCAP * 1.4426950408889634
        score = CAP - 2.0 * CAP / (1.0 + tl.exp2(score))
    masked = start + key.shape[0] > everyone
    if WINDOW > 0:
        masked |= start < since
    if masked:
        position = start + tl.arange(0, key.shape[0])
        last = tl.minimum(visible, end - 1)
        seen = position[None, :] <= last[:, None]
        if WINDOW > 0:
            seen &= position[None, :] > (visible - WINDOW)[:, None]
        score = tl.where(seen, score, float("-inf"))
    now = tl.maximum(largest, tl.max(score, axis=1))
    weight = tl.exp2(score - now[:, None])
    decay = tl.exp2(largest - now)
    total = total * decay + tl.sum(weight, axis=1)
    acc = tl.dot(weight.to(tl.bfloat16), as_bf16(value, dtype), acc * decay[:, None])
    return acc, now, total


@triton.jit
def attend_range(
    query,
    visible,
    since,
    everyone,
    keys,
    kv_block_stride,
    table,
    begin,
    end,
    scale,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """Attention of a tile of queries to the positions begin..end, before the division by the sum of weights.

    Args:
        query: bf16[BLOCK_Q][padded(HEAD_DIM)], zeros behind the head.
        visible: i32[BLOCK_Q], the last position that each row attends to; -1 for rows that are none.
        since: as in :func:`attend`.
        everyone: positions below this are attended to by every row.
        keys: this KV head's K in block 0.
        kv_block_stride: bytes, i64.
        table: the request's row of the block tables.
        begin: first position.
        end: exclusive; above begin.
        scale: as in :func:`attend`.
        PREFETCH: 1 to load each tile of K and V into registers one iteration ahead, 0 to leave it to the compiler. KV
            blocks are looked up one iteration ahead of that in both cases.

    Returns:
        acc f32[BLOCK_Q][padded(HEAD_DIM)], largest f32[BLOCK_Q] and total f32[BLOCK_Q], as in :func:`attend`.
    """
    dtype: tl.constexpr = keys.dtype.element_ty
    WORDS: tl.constexpr = PREFETCH and dtype != tl.bfloat16
    acc = tl.zeros(query.shape, tl.float32)
    largest = tl.full((query.shape[0],), LOWEST, tl.float32)
    total = tl.zeros((query.shape[0],), tl.float32)
    block = blocks_of(table, begin, end, BLOCK_KV)
    if PREFETCH:
        next_key, next_value = load_history(keys, kv_block_stride, block, begin, end, KV_HEADS, HEAD_DIM, WORDS)
        block = blocks_of(table, begin + BLOCK_KV, end, BLOCK_KV)
    for start in range(begin, end, BLOCK_KV):
        ahead = start + PREFETCH * BLOCK_KV
        loaded = load_history(keys, kv_block_stride, block, ahead, end, KV_HEADS, HEAD_DIM, WORDS)
        block = blocks_of(table, ahead + BLOCK_KV, end, BLOCK_KV)
        if PREFETCH:
            key, value = next_key, next_value
            next_key, next_value = loaded
        else:
            key, value = loaded
        acc, largest, total = attend(
            *(query, acc, largest, total, key, value, start, end, since, everyone, visible, scale),
            *(WINDOW, SOFTCAP, dtype),
        )
    return acc, largest, total
