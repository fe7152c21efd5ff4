"""What becomes of the product of ``linear``: scales, biases, rounding, gates, norms of heads, RoPE, the KV cache.

The stores below take the tile f32[BLOCK_M, BLOCK_N], its rows (i32[BLOCK_M]; those beyond the step's repeat one), which
of them are real (i1[BLOCK_M]), and its first column. What else they take is an argument of ``linear``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from paiton_kernels.gpu.fp8 import dynamic_scale, reciprocal, to_fp8
from paiton_kernels.gpu.linear_tile import first_member
from paiton_kernels.spec import KV_BLOCK_TOKENS

_BLOCK_TOKENS = tl.constexpr(KV_BLOCK_TOKENS)


@triton.jit
def scale_rows(tile, a_scale, row, A_SCALE: tl.constexpr, WEIGHT: tl.constexpr, FP8_UNIT: tl.constexpr):
    """Multiplies a tile by the scales of its activations and by what the target's FP8 type leaves out."""
    if A_SCALE == "NONE":
        return tile * FP8_UNIT if WEIGHT == "FP8" else tile
    if A_SCALE == "GROUP":
        return tile * (FP8_UNIT * FP8_UNIT)
    if A_SCALE == "TENSOR":
        return tile * (tl.load(a_scale) * (FP8_UNIT * FP8_UNIT))
    scale = tl.load(a_scale + row)
    if A_SCALE == "AMAX":
        scale = dynamic_scale(scale)
    return tile * (scale * (FP8_UNIT * FP8_UNIT))[:, None]


@triton.jit
def tanh(x):
    """Returns the hyperbolic tangent, to 2 ulp: by its series where the quotient of exponentials loses digits."""
    square = x * x
    series = x + x * square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
    decay = tl.exp(-2.0 * tl.abs(x))
    quotient = (1.0 - decay) / (1.0 + decay)
    return tl.where(square < 0.0625, series, tl.where(x < 0.0, -quotient, quotient))


@triton.jit
def store_plain(
    tile,
    scale,
    bias,
    row,
    real,
    first_column,
    out,
    out_stride,
    N: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    EPILOGUE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Stores f32, or adds it to what is there."""
    column = first_column + tl.arange(0, BLOCK_N)
    covered = (column < N) | (N % BLOCK_N == 0)
    if SCALED:
        tile *= tl.load(scale + column, mask=covered, other=0.0)[None, :]
    if BIAS:
        tile += tl.load(bias + column, mask=covered, other=0.0)[None, :]
    if SOFTCAP != 0.0:
        tile = tanh(tile / SOFTCAP) * SOFTCAP
    stride = N if EPILOGUE == "ADD" else out_stride
    to = out + row.to(tl.int64)[:, None] * stride + column[None, :]
    if EPILOGUE == "ADD":
        tile += tl.load(to, mask=covered[None, :], other=0.0)
    tl.store(to, tile, mask=real[:, None] & covered[None, :])


@triton.jit
def _members(
    tile,
    scale,
    bias,
    real,
    first_column,
    HALF: tl.constexpr,
    N: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Returns the first and second members of pairs, scale and bias applied, their numbers, and what is real."""
    first, second = tl.split(tl.reshape(tile, (BLOCK_M, BLOCK_N // 2, 2)))
    pair = first_column // 2 + tl.arange(0, BLOCK_N // 2)
    covered = (pair < N // 2) | (N % BLOCK_N == 0)
    if SCALED:
        scale += first_member(pair, HALF, N)
        first *= tl.load(scale, mask=covered, other=0.0)[None, :]
        second *= tl.load(scale + HALF, mask=covered, other=0.0)[None, :]
    if BIAS:
        bias += first_member(pair, HALF, N)
        first += tl.load(bias, mask=covered, other=0.0)[None, :]
        second += tl.load(bias + HALF, mask=covered, other=0.0)[None, :]
    return first, second, pair, real[:, None] & covered[None, :]


@triton.jit
def store_gated(
    tile,
    scale,
    bias,
    row,
    real,
    first_column,
    out,
    out_scale,
    out_amax,
    N: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    OUT: tl.constexpr,
    AMAX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    """Stores activation(first member) * second member, rounded to bf16 and, for OUT=FP8, from there to FP8."""
    gate, up, pair, inside = _members(tile, scale, bias, real, first_column, N // 2, N, SCALED, BIAS, BLOCK_M, BLOCK_N)
    if EPILOGUE == "SILU":
        value = (gate / (1.0 + tl.exp(-gate)) * up).to(tl.bfloat16)
    else:
        # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), with u = sqrt(2 / pi) * (gate + 0.044715 * gate^3)
        value = (gate / (1.0 + tl.exp(gate * (-1.5957691216 - 0.0713548163 * gate * gate))) * up).to(tl.bfloat16)
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
def _norm_heads(
    low,
    high,
    head,
    i,
    q_norm,
    k_norm,
    eps,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Applies the RMSNorm of heads to both halves of the heads of q and k of a tile, which holds whole heads."""
    HEADS: tl.constexpr = BLOCK_N // (2 * HALF)
    squares = tl.reshape(low * low + high * high, (BLOCK_M, HEADS, HALF))
    inverse = tl.rsqrt(tl.sum(squares, axis=2) / (2 * HALF) + eps)
    inverse = tl.reshape(tl.broadcast_to(inverse[:, :, None], (BLOCK_M, HEADS, HALF)), (BLOCK_M, BLOCK_N // 2))
    q, normed = head < Q_HEADS, (head < Q_HEADS + KV_HEADS)[None, :]
    first = tl.where(q, tl.load(q_norm + i), tl.load(k_norm + i)).to(tl.float32)
    second = tl.where(q, tl.load(q_norm + HALF + i), tl.load(k_norm + HALF + i)).to(tl.float32)
    if OFFSET != 0.0:
        first, second = first + OFFSET, second + OFFSET
    low = tl.where(normed, low * inverse * first[None, :], low)
    return low, tl.where(normed, high * inverse * second[None, :], high)


@triton.jit
def store_rope(
    tile,
    scale,
    bias,
    row,
    real,
    first_column,
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
    q_norm,
    k_norm,
    norm_eps,
    N: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    HEAD_NORM: tl.constexpr,
    NORM_OFFSET: tl.constexpr,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    """Rotates heads of q and k by the table of cosines and sines, stores q, writes k and v into the KV cache."""
    HALF: tl.constexpr = HEAD_DIM // 2
    low, high, pair, inside = _members(tile, scale, bias, real, first_column, HALF, N, SCALED, BIAS, BLOCK_M, BLOCK_N)
    head, i = pair // HALF, pair % HALF
    if HEAD_NORM:
        low, high = _norm_heads(
            *(low, high, head, i, q_norm, k_norm, norm_eps, Q_HEADS, KV_HEADS, HALF, NORM_OFFSET, BLOCK_M, BLOCK_N),
        )
    rotated = (head < Q_HEADS + KV_HEADS)[None, :]
    angle = rope + row[:, None] * HEAD_DIM + i[None, :]
    cosine = tl.where(rotated, tl.load(angle), 1.0)
    sine = tl.where(rotated, tl.load(angle + HALF), 0.0)
    low, high = low * cosine - high * sine, high * cosine + low * sine
    if first_column < Q_HEADS * HEAD_DIM:
        to = out + row.to(tl.int64)[:, None] * (Q_HEADS * HEAD_DIM) + (head * HEAD_DIM + i)[None, :]
        is_q = inside & (head < Q_HEADS)[None, :]
        tl.store(to, low.to(tl.bfloat16), mask=is_q)
        tl.store(to + HALF, high.to(tl.bfloat16), mask=is_q)
    if first_column + BLOCK_N > Q_HEADS * HEAD_DIM:
        _store_kv(
            *(low, high, row, head - Q_HEADS, i, inside, positions, request_of, block_tables, block_table_stride),
            *(kv, kv_block_stride, k_scale, v_scale, KV_HEADS, HEAD_DIM, KV, FP8_UNIT),
        )
