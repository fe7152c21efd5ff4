"""Small kernel families to compile: one that works, and ways in which one does not."""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from paiton_kernels.gpu.devices import TARGETS, Profile
from paiton_kernels.gpu.spec import Config, Constant, GpuArg, GpuKernelSpec, GpuVariant, Grid, Step, Work

ALL_TARGETS = tuple(TARGETS.values())
AMD_TARGETS = tuple(target for target in ALL_TARGETS if target.backend == "hip")
NVIDIA_TARGETS = tuple(target for target in ALL_TARGETS if target.backend == "cuda")


@triton.jit
def _scaled(value, factor):
    return value * factor


@triton.constexpr_function
def _die():
    __import__("os")._exit(3)  # Triton refuses to see a function of another module here


def _kernel(counts, x, out, factor, stride, COLUMNS: tl.constexpr, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    if row >= tl.load(counts):
        return
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row.to(tl.int64) * stride + column, mask=column < COLUMNS, other=0.0)
        tl.store(out + row.to(tl.int64) * COLUMNS + column, _scaled(value, factor), mask=column < COLUMNS)
    if FAULT == "ASSERT":
        tl.static_assert(False, "this kernel never compiles")
    if FAULT == "PRINT":
        tl.device_print("row", row)
    if FAULT == "GRID":
        tl.store(out, tl.num_programs(0).to(tl.float32))
    if FAULT == "DIE":
        _die()


def _product(
    x, y, out, K: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, FP8_UNIT: tl.constexpr
):
    rows, k = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    accumulator = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, BLOCK_K):
        left = tl.load(x + rows[:, None] * K + start + k[None, :])
        right = tl.load(y + rows[:, None] * K + start + k[None, :])
        accumulator = tl.dot(left, tl.trans(right), accumulator, max_num_imprecise_acc=128)
    tl.store(out + rows[:, None] * BLOCK + rows[None, :], accumulator * (FP8_UNIT * FP8_UNIT))


def _space(_constants: Mapping[str, Constant], step: Step, _profile: Profile) -> tuple[Config, ...]:
    wide = Config.of(4, 2, BLOCK=1024)
    return (wide, Config.of(1, 2, BLOCK=64)) if step.tokens > 64 else (Config.of(1, 2, BLOCK=64), wide)


def _grid(_values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    return step.tokens, 1, 1


def _work(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Work:
    return Work(bytes=step.tokens * int(values["COLUMNS"]) * 8, blocks=step.tokens)


SCALE = GpuKernelSpec(
    family="scale",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[1]: rows"),
        GpuArg("x", "*fp32", "f32[rows][stride]"),
        GpuArg("out", "*fp32", "f32[rows][COLUMNS]"),
        GpuArg("factor", "fp32", "what x is multiplied by"),
        GpuArg("stride", "i64", "elements from one row of x to the next", divisor=16),
    ),
    constants=("COLUMNS", "FAULT"),
    tunables=("BLOCK",),
    name=lambda values: f"c{values['COLUMNS']}_{str(values['FAULT']).lower()}",
    space=_space,
    grid=_grid,
    work=_work,
    cases=lambda _target: (),
)

PRODUCT = GpuKernelSpec(
    family="product",
    function=_product,
    args=(
        GpuArg("x", "@TYPE", "[BLOCK][K]"),
        GpuArg("y", "@TYPE", "[BLOCK][K]"),
        GpuArg("out", "*fp32", "f32[BLOCK][BLOCK]"),
    ),
    constants=("K", "TYPE"),
    tunables=("BLOCK", "BLOCK_K"),
    name=lambda values: f"k{values['K']}_{str(values['TYPE']).lower()}",
    space=lambda _constants, _step, _profile: (Config.of(4, 3, BLOCK=64, BLOCK_K=128),),
    grid=lambda _values, _step, _profile: (1, 1, 1),
    work=lambda values, _step, _profile: Work(bytes=int(values["K"]) * int(values["BLOCK"]) * 2),
    cases=lambda _target: (),
)


def scale(columns: int = 300, fault: str = "NONE", block: int = 128, warps: int = 4) -> GpuVariant:
    """Returns a variant of SCALE."""
    return SCALE.variant(Config.of(warps, 2, BLOCK=block), COLUMNS=columns, FAULT=fault)


def product(kind: str = "FP8", columns: int = 1024) -> GpuVariant:
    """Returns a variant of PRODUCT."""
    return PRODUCT.variant(Config.of(4, 3, BLOCK=64, BLOCK_K=128), K=columns, TYPE=kind)
