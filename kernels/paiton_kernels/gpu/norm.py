"""``norm``: RMSNorm of the residual stream, rounded to what the next linear layer takes.

A block whose result goes through a norm of its own before it is added to the residual stream is added here (PART).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import triton
import triton.language as tl

from paiton_kernels.gpu.devices import Profile, Target, target_named
from paiton_kernels.gpu.norm_cases import norm_case
from paiton_kernels.gpu.norm_row import normalised, store_normalised
from paiton_kernels.gpu.spec import Case, Config, Constant, GpuArg, GpuKernelSpec, Grid, Step, Work, spelled

MAX_HIDDEN = 32768
"""A row stays in registers: 32 elements in each of 1,024 threads."""


def _kernel(
    counts,
    x,
    rows,
    weight,
    eps,
    out,
    out_scale,
    row_scale,
    clear,
    part,
    part_weight,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    SCALE: tl.constexpr,
    CLEAR: tl.constexpr,
    OFFSET: tl.constexpr,
    PART: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    row = tl.program_id(0)
    if row >= tl.load(counts + (2 if ROWS == "LOGITS" else 0)):
        return
    source = tl.load(rows + row) if ROWS == "LOGITS" else row
    column = tl.arange(0, triton.next_power_of_2(HIDDEN))
    inside = column < HIDDEN
    value = tl.load(x + source.to(tl.int64) * HIDDEN + column, mask=inside, other=0.0)
    if PART:
        added = tl.load(part + source.to(tl.int64) * HIDDEN + column, mask=inside, other=0.0)
        value += normalised(added, column, inside, part_weight, eps, HIDDEN, OFFSET)
        if ROWS == "TOKENS":
            tl.store(x + source.to(tl.int64) * HIDDEN + column, value, mask=inside)
    store_normalised(
        value, row, column, inside, weight, eps, out, out_scale, row_scale, clear,
        HIDDEN, OUT, SCALE, CLEAR, OFFSET, FP8_UNIT,
    )  # fmt: skip


def _rows(values: Mapping[str, Constant], step: Step) -> int:
    return step.requests if values["ROWS"] == "LOGITS" else step.tokens


def _grid(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    return _rows(values, step), 1, 1


def _space(constants: Mapping[str, Constant], _step: Step, profile: Profile) -> tuple[Config, ...]:
    """Threads with 32 elements of the row at most, and with one vector of 16 bytes at least."""
    warp_size = target_named(profile.target).warp_size
    columns = triton.next_power_of_2(int(constants["HIDDEN"]))
    least = max(1, columns // (32 * warp_size))
    most = max(least, min(1024, columns // 4) // warp_size)
    warps = [least]
    while warps[-1] < most:
        warps.append(2 * warps[-1])
    preferred = min(warps, key=lambda count: abs(columns // (count * warp_size) - 8))
    return tuple(Config.of(count, 1) for count in sorted(warps, key=lambda count: (count != preferred, count)))


def _work(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Work:
    rows, width = _rows(values, step), int(values["HIDDEN"])
    moved = {"FP8": 5, "BF16": 6, "FP32": 8}[str(values["OUT"])] + (8 if values["PART"] else 0)
    return Work(bytes=rows * width * moved + 2 * width * (1 + int(values["PART"])), blocks=rows)


def _check(values: Mapping[str, Constant], _target: Target) -> str:
    if not 0 < int(values["HIDDEN"]) <= MAX_HIDDEN:
        return f"HIDDEN is {values['HIDDEN']}, more than the {MAX_HIDDEN} that registers hold"
    if (values["OUT"] == "FP8") != (values["SCALE"] != "NONE"):
        return f"OUT={values['OUT']} with SCALE={values['SCALE']}"
    return ""


def _name(values: Mapping[str, Constant]) -> str:
    rows = "_gather" if values["ROWS"] == "LOGITS" else ""
    out = {"NONE": str(values["OUT"]).lower(), "TENSOR": "fp8static", "ROW": "fp8dynamic"}[str(values["SCALE"])]
    special = f"_off{spelled(values['OFFSET'])}" if values["OFFSET"] else ""
    special += "_part" if values["PART"] else ""
    return f"h{values['HIDDEN']}{rows}_{out}{'_clear' if values['CLEAR'] else ''}{special}"


def _cases(target: Target) -> Iterator[Case]:
    yield norm_case(_name, 576, "TOKENS", "NONE", 0)
    yield norm_case(_name, 100, "LOGITS", "NONE", 1)
    yield norm_case(_name, 640, "TOKENS", "NONE", 0, offset=1.0)
    yield norm_case(_name, 640, "TOKENS", "NONE", 0, offset=1.0, part=1)
    yield norm_case(_name, 100, "LOGITS", "NONE", 0, part=1)
    yield norm_case(_name, 576, "TOKENS", "NONE", 1, out="FP32")
    if target.fp8:
        yield norm_case(_name, 576, "TOKENS", "ROW", 1)
        yield norm_case(_name, 4096, "LOGITS", "ROW", 0)
        yield norm_case(_name, 1032, "TOKENS", "TENSOR", 0)
        yield norm_case(_name, 16384, "TOKENS", "ROW", 0)
        yield norm_case(_name, 640, "TOKENS", "ROW", 1, offset=1.0, part=1)


NORM = GpuKernelSpec(
    family="norm",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows of this step, 0"),
        GpuArg("x", "*fp32", "f32[*][HIDDEN]: the residual stream; written with PART=1 and ROWS=TOKENS"),
        GpuArg("rows", "*i32", "i32[logits rows]: the row of x for each row (ROWS=LOGITS)"),
        GpuArg("weight", "*bf16", "bf16[HIDDEN]"),
        GpuArg("eps", "fp32", "added to the mean of squares"),
        GpuArg("out", "@OUT", "[T or logits rows][HIDDEN]"),
        GpuArg("out_scale", "*fp32", "f32[1]: what codes are multiplied by (SCALE=TENSOR)"),
        GpuArg("row_scale", "*fp32", "f32[T]: what the codes of each row are multiplied by, written (SCALE=ROW)"),
        GpuArg("clear", "*fp32", "f32[T]: set to 0 (CLEAR=1): the largest magnitudes that a later launch collects"),
        GpuArg("part", "*fp32", "f32[*][HIDDEN]: normalised and added to x in front of the norm (PART=1)"),
        GpuArg("part_weight", "*bf16", "bf16[HIDDEN]: of the norm of part (PART=1)"),
    ),
    constants=("HIDDEN", "ROWS", "OUT", "SCALE", "CLEAR", "OFFSET", "PART"),
    tunables=(),
    name=_name,
    space=_space,
    grid=_grid,
    work=_work,
    cases=_cases,
    check=_check,
    defaults={"OFFSET": 0.0, "PART": 0},
)
