"""What becomes of the product of ``linear``: rounding, quantisation, SiLU, RoPE, the KV cache."""

from __future__ import annotations

import triton
import triton.language as tl

from paiton_kernels.gpu.fp8 import reciprocal, to_fp8
from paiton_kernels.spec import KV_BLOCK_TOKENS

_BLOCK_TOKENS = tl.constexpr(KV_BLOCK_TOKENS)


@triton.jit
def members(tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Splits [BLOCK_M, BLOCK_N], in which neighbouring columns are pairs, into first and second members."""
    return tl.split(tl.reshape(tile, (BLOCK_M, BLOCK_N // 2, 2)))


@triton.jit
def store_silu(
    gate,
    up,
    row,
    pair,
    real,
    inside,
    out,
    out_scale,
    out_amax,
    N: tl.constexpr,
    OUT: tl.constexpr,
    AMAX: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    """Stores silu(gate) * up, rounded to bf16 and, for OUT=FP8, from there to FP8.

    Args:
        gate: f32[BLOCK_M, BLOCK_N / 2].
        up: likewise.
        row: i32[BLOCK_M], rows of `out`; those beyond the step's repeat one.
        pair: i32[BLOCK_N / 2], columns of `out`.
        real: i1[BLOCK_M], which rows are the step's.
        inside: i1[BLOCK_M, BLOCK_N / 2], which elements are.
        out: see the arguments of `linear`, as all below.
    """
    value = (gate / (1.0 + tl.exp(-gate)) * up).to(tl.bfloat16)
    to = out + row.to(tl.int64)[:, None] * (N // 2) + pair[None, :]
    if OUT == "FP8":
        inverse = reciprocal(tl.load(out_scale), FP8_UNIT)
        tl.store(to, to_fp8(value.to(tl.float32), inverse, FP8_UNIT, out.dtype.element_ty), mask=inside)
    else:
        tl.store(to, value, mask=inside)
    if AMAX:
        largest = tl.max(tl.where(inside, tl.abs(value.to(tl.float32)), 0.0), axis=1)
        # The bits of floats that are not negative are ordered as integers are.
        bits = largest.to(tl.int32, bitcast=True)
        tl.atomic_max(out_amax.to(tl.pointer_type(tl.int32)) + row, bits, mask=real, sem="relaxed")


@triton.jit
def _store_kv(
    low,
    high,
    row,
    head,
    i,
    inside,
    positions,
    request_of,
    block_tables,
    block_table_stride,
    kv,
    kv_block_stride,
    k_scale,
    v_scale,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KV: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    """Writes both halves of heads of K (numbers from 0) and of V (after K's) into the KV cache."""
    ELEMENT_BYTES: tl.constexpr = 1 if KV == "FP8" else 2
    inside &= (head >= 0)[None, :]
    position = tl.load(positions + row)
    table = block_tables + tl.load(request_of + row) * block_table_stride
    block = tl.load(table + position // _BLOCK_TOKENS).to(tl.int64)
    # V's heads follow K's within a block, so that one formula places both.
    token = block * (kv_block_stride // ELEMENT_BYTES) + position % _BLOCK_TOKENS * HEAD_DIM
    to = kv + token[:, None] + (head * (_BLOCK_TOKENS * HEAD_DIM) + i)[None, :]
    if KV == "FP8":
        inverse = reciprocal(tl.where(head < KV_HEADS, tl.load(k_scale), tl.load(v_scale)), FP8_UNIT)[None, :]
        tl.store(to, to_fp8(low, inverse, FP8_UNIT, kv.dtype.element_ty), mask=inside)
        tl.store(to + HEAD_DIM // 2, to_fp8(high, inverse, FP8_UNIT, kv.dtype.element_ty), mask=inside)
    else:
        tl.store(to, low.to(tl.bfloat16), mask=inside)
        tl.store(to + HEAD_DIM // 2, high.to(tl.bfloat16), mask=inside)


@triton.jit
def store_rope(
    low,
    high,
    row,
    first_pair,
    pair,
    inside,
    out,
    rope,
    positions,
    request_of,
    block_tables,
    block_table_stride,
    kv,
    kv_block_stride,
    k_scale,
    v_scale,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KV: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    """Rotates heads of q and k by the table of cosines and sines, stores q, writes k and v into the KV cache.

    Args:
        low: f32[BLOCK_M, BLOCK_N / 2], the first halves of heads.
        high: likewise, the second halves.
        row: i32[BLOCK_M], tokens; those beyond the step's repeat one.
        first_pair: the tile's first pair, a number of `pair`.
        pair: i32[BLOCK_N / 2], consecutive.
        inside: i1[BLOCK_M, BLOCK_N / 2], which elements are the step's.
        out: see the arguments of `linear`, as all below.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    head, i = pair // HALF, pair % HALF
    rotated = (head < Q_HEADS + KV_HEADS)[None, :]
    angle = rope + row[:, None] * HEAD_DIM + i[None, :]
    cosine = tl.where(rotated, tl.load(angle), 1.0)
    sine = tl.where(rotated, tl.load(angle + HALF), 0.0)
    low, high = low * cosine - high * sine, high * cosine + low * sine
    if first_pair < Q_HEADS * HALF:
        to = out + row.to(tl.int64)[:, None] * (Q_HEADS * HEAD_DIM) + (head * HEAD_DIM + i)[None, :]
        is_q = inside & (head < Q_HEADS)[None, :]
        tl.store(to, low.to(tl.bfloat16), mask=is_q)
        tl.store(to + HALF, high.to(tl.bfloat16), mask=is_q)
    if first_pair + pair.shape[0] > Q_HEADS * HALF:
        _store_kv(
            low,
            high,
            row,
            head - Q_HEADS,
            i,
            inside,
            positions,
            request_of,
            block_tables,
            block_table_stride,
            kv,
            kv_block_stride,
            k_scale,
            v_scale,
            KV_HEADS,
            HEAD_DIM,
            KV,
            FP8_UNIT,
        )
