"""``linear``: activations times a weight matrix [N, K], fused with what comes after it.

One launch for every step size: tiles of few rows and split K where the weights' bytes are the cost, large tiles where
the matrix units are. Behind the product: a bias, then store, add to the residual stream, a gate (SILU, GELU), or norms
of heads and RoPE with the write of K and V into the cache.
"""

from __future__ import annotations

import triton.language as tl

from paiton_kernels.gpu.fp8 import dynamic_scale, reciprocal
from paiton_kernels.gpu.last_arriver import arrives_last
from paiton_kernels.gpu.linear_cases import cases
from paiton_kernels.gpu.linear_epilogue import scale_rows, store_gated, store_plain, store_rope
from paiton_kernels.gpu.linear_shape import OPTIONAL, check, grid, name, work, workspace
from paiton_kernels.gpu.linear_space import space
from paiton_kernels.gpu.linear_tile import place, product, scale_stride, store_part, sum_of_parts, weight_rows
from paiton_kernels.gpu.spec import GpuArg, GpuKernelSpec


def _kernel(
    counts,
    a,
    a_scale,
    weight,
    scale,
    out,
    out_stride,
    out_scale,
    out_amax,
    rope,
    positions,
    request_of,
    block_tables,
    block_table_stride,
    kv,
    kv_block_stride,
    k_scale,
    v_scale,
    workspace,
    semaphores,
    bias,
    q_norm,
    k_norm,
    norm_eps,
    N: tl.constexpr,
    K: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    A: tl.constexpr,
    A_SCALE: tl.constexpr,
    WEIGHT: tl.constexpr,
    EPILOGUE: tl.constexpr,
    OUT: tl.constexpr,
    AMAX: tl.constexpr,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KV: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HEAD_NORM: tl.constexpr,
    NORM_OFFSET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    DIES: tl.constexpr,
    SWAP: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    # From the first to the second member of a pair of rows that the epilogue takes together; 0 for STORE and ADD.
    HALF: tl.constexpr = N // 2 if EPILOGUE == "SILU" or EPILOGUE == "GELU" else HEAD_DIM // 2
    SCALED: tl.constexpr = WEIGHT != "BF16" and SCALE_ROWS == 0
    rows = tl.load(counts + (2 if ROWS == "LOGITS" else 0))
    tiles_m = (rows + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    if program >= tiles_m * (TILES_N * SPLIT_K):
        return
    tile_m, tile_n, split = place(program, tiles_m, TILES_N, SPLIT_K, GROUP_M, DIES)

    # Rows and columns beyond the ends repeat a real one, so that loads need no mask: masked ones are branches on AMD,
    # each with a wait. Offsets are seen not to be negative, which lets AMD's loads take 32 bits of them.
    first_row, first_column = tile_m * BLOCK_M, tile_n * BLOCK_N
    x_row = tl.maximum(tl.minimum(tl.arange(0, BLOCK_M), rows - 1 - first_row), 0)
    row, real = first_row + x_row, first_row + tl.arange(0, BLOCK_M) < rows
    w_first, w_row = weight_rows(first_column, HALF, N, BLOCK_N)
    x_tile, w_tile = a + first_row.to(tl.int64) * K, weight + w_first.to(tl.int64) * ROW_STRIDE
    inverse = tl.full((BLOCK_M,), 1.0, tl.float32)
    if A_SCALE == "AMAX":
        inverse = reciprocal(dynamic_scale(tl.load(a_scale + row)), FP8_UNIT)
    w_scale = scale
    if SCALE_ROWS > 0:
        w_scale += (w_first + w_row) // SCALE_ROWS * scale_stride(K)
    tile = product(
        *(x_tile, x_row, w_tile, w_row, inverse, w_scale, split, K, ROW_STRIDE, A, A_SCALE, SCALE_ROWS),
        *(BLOCK_M, BLOCK_N, BLOCK_K, SPLIT_K, SWAP, FP8_UNIT),
    )

    if SPLIT_K > 1:
        number = tile_m * TILES_N + tile_n
        parts = workspace + number.to(tl.int64) * (SPLIT_K * BLOCK_M * BLOCK_N)
        store_part(tile, parts, split, real, BLOCK_M, BLOCK_N)
        if not arrives_last(semaphores + number, SPLIT_K):
            return
        tile = sum_of_parts(parts, x_row, SPLIT_K, BLOCK_M, BLOCK_N)
        tl.store(semaphores + number, 0)

    tile = scale_rows(tile, a_scale, row, A_SCALE, WEIGHT, FP8_UNIT)
    if HALF == 0:
        store_plain(
            *(tile, scale, bias, row, real, first_column, out, out_stride),
            *(N, SCALED, BIAS, SOFTCAP, EPILOGUE, BLOCK_N),
        )
    elif EPILOGUE != "ROPE":
        store_gated(
            *(tile, scale, bias, row, real, first_column, out, out_scale, out_amax),
            *(N, SCALED, BIAS, EPILOGUE, OUT, AMAX, BLOCK_M, BLOCK_N, FP8_UNIT),
        )
    else:
        store_rope(
            *(tile, scale, bias, row, real, first_column, out, rope),
            *(positions, request_of, block_tables, block_table_stride, kv, kv_block_stride, k_scale, v_scale),
            *(q_norm, k_norm, norm_eps, N, SCALED, BIAS, HEAD_NORM, NORM_OFFSET),
            *(Q_HEADS, KV_HEADS, HEAD_DIM, KV, BLOCK_M, BLOCK_N, FP8_UNIT),
        )


LINEAR = GpuKernelSpec(
    family="linear",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows of this step, 0"),
        GpuArg("a", "@A", "[M][K] bf16, e4m3fn codes, or f32 (A_SCALE=GROUP); M is the step's tokens or logits rows"),
        GpuArg("a_scale", "*fp32", "of a: f32[1] (A_SCALE=TENSOR), f32[T] (ROW), f32[T] largest magnitudes (AMAX)"),
        GpuArg("weight", "@WEIGHT", "[N][ROW_STRIDE] e4m3fn codes, int8 or bf16"),
        GpuArg(
            "scale",
            "*fp32",
            "f32[N]: what each output is multiplied by (not WEIGHT=BF16), or f32[ceil(N / SCALE_ROWS)][stride]: "
            "what each block of weights is multiplied by (SCALE_ROWS > 0)",
        ),
        GpuArg("out", "@OUT", "[M][out_stride] (STORE), [M][N] (ADD), [M][N / 2] (gates), [M][Q_HEADS * D] (ROPE)"),
        GpuArg("out_stride", "i64", "elements from one row of out to the next (STORE)"),
        GpuArg("out_scale", "*fp32", "f32[1]: what the codes in out are multiplied by (OUT=FP8)"),
        GpuArg("out_amax", "*fp32", "f32[T]: raised to the largest magnitude of each row of out (AMAX=1)"),
        GpuArg("rope", "*fp32", "f32[T][HEAD_DIM]: cosines, sines (ROPE)"),
        GpuArg("positions", "*i32", "i32[T]: position of each token in its request (ROPE)"),
        GpuArg("request_of", "*i32", "i32[T]: row of block_tables of each token (ROPE)"),
        GpuArg("block_tables", "*i32", "i32[R][block_table_stride]: KV block of every 16 positions (ROPE)"),
        GpuArg("block_table_stride", "i64", "columns of block_tables (ROPE)"),
        GpuArg("kv", "@KV", "this layer's part of KV block 0: K [KV_HEADS][16][D], then V (ROPE)"),
        GpuArg("kv_block_stride", "i64", "bytes from one KV block to the next (ROPE)", divisor=16),
        GpuArg("k_scale", "*fp32", "f32[1]: what a stored K is multiplied by (KV=FP8)"),
        GpuArg("v_scale", "*fp32", "f32[1]: what a stored V is multiplied by (KV=FP8)"),
        GpuArg("workspace", "*fp32", "f32[tiles][SPLIT_K][BLOCK_M][BLOCK_N] (SPLIT_K > 1)"),
        GpuArg("semaphores", "*i32", "i32[tiles], zero before and after a launch (SPLIT_K > 1)"),
        GpuArg("bias", "*fp32", "f32[N]: added to each output, before what the epilogue does (BIAS=1)"),
        GpuArg("q_norm", "*bf16", "bf16[HEAD_DIM]: weight of the RMSNorm of each head of q (HEAD_NORM=1)"),
        GpuArg("k_norm", "*bf16", "bf16[HEAD_DIM]: likewise of k (HEAD_NORM=1)"),
        GpuArg("norm_eps", "fp32", "added to the mean of squares of a head (HEAD_NORM=1)"),
    ),
    constants=(
        "N",
        "K",
        "ROW_STRIDE",
        "ROWS",
        "A",
        "A_SCALE",
        "WEIGHT",
        "EPILOGUE",
        "OUT",
        "AMAX",
        "Q_HEADS",
        "KV_HEADS",
        "HEAD_DIM",
        "KV",
        "SCALE_ROWS",
        "BIAS",
        "SOFTCAP",
        "HEAD_NORM",
        "NORM_OFFSET",
    ),
    tunables=("BLOCK_M", "BLOCK_N", "BLOCK_K", "SPLIT_K", "GROUP_M", "DIES", "SWAP"),
    name=name,
    space=space,
    grid=grid,
    work=work,
    cases=cases,
    check=check,
    workspace=workspace,
    defaults=OPTIONAL,
)
