"""``expert_linear``: every row of activations times the matrix of its token's experts, fused with what comes after it.

The entries of a step (routes.py) are cut into tiles within each expert, so that one launch multiplies all of them as
``linear`` does. How many tiles there are says the list; the grid has the most that a bucket can need. Rows of a tile do
not touch each other, so that a token's results are the same whatever others are in the batch.
"""

from __future__ import annotations

import triton.language as tl

from paiton_kernels.gpu.expert_cases import cases
from paiton_kernels.gpu.expert_shape import check, grid, name, row_limit, space, work, workspace
from paiton_kernels.gpu.fp8 import dynamic_scale, reciprocal
from paiton_kernels.gpu.last_arriver import arrives_last
from paiton_kernels.gpu.linear_epilogue import scale_rows, store_gated, store_plain
from paiton_kernels.gpu.linear_tile import place, product, scale_stride, store_part, sum_of_parts, weight_rows
from paiton_kernels.gpu.routes import extents, order_start, width_of
from paiton_kernels.gpu.spec import GpuArg, GpuKernelSpec
from paiton_kernels.gpu.uniform import uniform


def _kernel(
    routes,
    a,
    a_scale,
    weight,
    scale,
    out,
    out_scale,
    out_amax,
    workspace,
    semaphores,
    N: tl.constexpr,
    K: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    INPUT: tl.constexpr,
    A: tl.constexpr,
    A_SCALE: tl.constexpr,
    WEIGHT: tl.constexpr,
    EPILOGUE: tl.constexpr,
    OUT: tl.constexpr,
    AMAX: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
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
    HALF: tl.constexpr = 0 if EPILOGUE == "STORE" else N // 2
    SCALED: tl.constexpr = WEIGHT != "BF16" and SCALE_ROWS == 0
    starts, ends, first_tiles, tiles = extents(routes, EXPERTS, BLOCK_M)
    tiles_m = uniform(tl.sum(tiles))
    program = tl.program_id(0)
    if program >= tiles_m * (TILES_N * SPLIT_K):
        return
    tile_m, tile_n, split = place(program, tiles_m, TILES_N, SPLIT_K, GROUP_M, DIES)
    number, first_column = tile_m * TILES_N + tile_n, tile_n * BLOCK_N
    mine = (first_tiles <= tile_m) & (tile_m < first_tiles + tiles)
    expert = uniform(tl.sum(tl.where(mine, tl.arange(0, width_of(EXPERTS)), 0))).to(tl.int64)
    first = uniform(tl.sum(tl.where(mine, starts + (tile_m - first_tiles) * BLOCK_M, 0)))
    end = uniform(tl.sum(tl.where(mine, ends, 0)))

    # Rows beyond the end repeat a real one, so that loads need no mask. The compiler sees that they are within what
    # 32-bit offsets reach (`row_limit`), which lets AMD's loads take 32 bits of them.
    in_tile = tl.arange(0, BLOCK_M)
    x_row, real = tl.minimum(in_tile, end - 1 - first), first + in_tile < end
    entry = tl.load(routes + order_start(EXPERTS) + first + x_row)
    row = entry // TOP_K if INPUT == "TOKENS" else entry
    row = tl.minimum(tl.maximum(row, 0), row_limit(K, A) - 1)
    w_first, w_row = weight_rows(first_column, HALF, N, BLOCK_N)
    w_tile = weight + (expert * N + w_first) * ROW_STRIDE
    inverse = tl.full((BLOCK_M,), 1.0, tl.float32)
    if A_SCALE == "AMAX":
        inverse = reciprocal(dynamic_scale(tl.load(a_scale + row)), FP8_UNIT)
    w_scale = scale
    if SCALE_ROWS > 0:
        w_scale += (expert * (N // SCALE_ROWS) + (w_first + w_row) // SCALE_ROWS) * scale_stride(K)
    if SCALED:
        scale += expert * N
    tile = product(
        *(a, row, w_tile, w_row, inverse, w_scale, split, K, ROW_STRIDE, A, A_SCALE, SCALE_ROWS),
        *(BLOCK_M, BLOCK_N, BLOCK_K, SPLIT_K, SWAP, FP8_UNIT),
    )

    if SPLIT_K > 1:
        parts = workspace + number.to(tl.int64) * (SPLIT_K * BLOCK_M * BLOCK_N)
        store_part(tile, parts, split, real, BLOCK_M, BLOCK_N)
        if not arrives_last(semaphores + number, SPLIT_K):
            return
        tile = sum_of_parts(parts, x_row, SPLIT_K, BLOCK_M, BLOCK_N)
        tl.store(semaphores + number, 0)

    tile = scale_rows(tile, a_scale, row, A_SCALE, WEIGHT, FP8_UNIT)
    if HALF == 0:
        store_plain(tile, scale, scale, entry, real, first_column, out, N, N, SCALED, 0, 0.0, EPILOGUE, BLOCK_N)
    else:
        store_gated(
            *(tile, scale, scale, entry, real, first_column, out, out_scale, out_amax),
            *(N, SCALED, 0, EPILOGUE, OUT, AMAX, BLOCK_M, BLOCK_N, FP8_UNIT),
        )


EXPERT_LINEAR = GpuKernelSpec(
    family="expert_linear",
    function=_kernel,
    args=(
        GpuArg("routes", "*i32", "the list of entries (routes.py)"),
        GpuArg("a", "@A", "[T][K] (INPUT=TOKENS) or [T * TOP_K][K] (ENTRIES): bf16 or e4m3fn codes"),
        GpuArg("a_scale", "*fp32", "of a: f32[1] (A_SCALE=TENSOR), f32[rows] (ROW), f32[rows] magnitudes (AMAX)"),
        GpuArg("weight", "@WEIGHT", "[EXPERTS][N][ROW_STRIDE] e4m3fn codes, int8 or bf16"),
        GpuArg(
            "scale",
            "*fp32",
            "f32[EXPERTS][N]: what each output is multiplied by (not WEIGHT=BF16), or "
            "f32[EXPERTS][N / SCALE_ROWS][stride]: what each block of weights is multiplied by (SCALE_ROWS > 0)",
        ),
        GpuArg("out", "@OUT", "[T * TOP_K][N] f32 (STORE), [T * TOP_K][N / 2] (gates): a row for each entry"),
        GpuArg("out_scale", "*fp32", "f32[1]: what the codes in out are multiplied by (OUT=FP8)"),
        GpuArg("out_amax", "*fp32", "f32[T * TOP_K]: raised to the largest magnitude of each row of out (AMAX=1)"),
        GpuArg("workspace", "*fp32", "f32[tiles][SPLIT_K][BLOCK_M][BLOCK_N] (SPLIT_K > 1)"),
        GpuArg("semaphores", "*i32", "i32[tiles], zero before and after a launch (SPLIT_K > 1)"),
    ),
    constants=(
        "N",
        "K",
        "ROW_STRIDE",
        "EXPERTS",
        "TOP_K",
        "INPUT",
        "A",
        "A_SCALE",
        "WEIGHT",
        "EPILOGUE",
        "OUT",
        "AMAX",
        "SCALE_ROWS",
    ),
    tunables=("BLOCK_M", "BLOCK_N", "BLOCK_K", "SPLIT_K", "GROUP_M", "DIES", "SWAP"),
    name=name,
    space=space,
    grid=grid,
    work=work,
    cases=cases,
    check=check,
    workspace=workspace,
    defaults={"SCALE_ROWS": 0},
)
