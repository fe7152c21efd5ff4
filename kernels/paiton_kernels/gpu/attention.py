"""``attention``: causal attention of a ragged batch over the paged KV cache, with grouped query heads.

One kernel for decoding requests and chunks of prompts in the same step. It is persistent: PROGRAMS programs take items
from the work list that ``schedule`` made (attention_items.py), so that neither the grid nor the work depends on how the
step's tokens and histories are spread. Histories are split where there are fewer tiles than programs; the last split to
arrive adds the others' partial results.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton.language as tl

from paiton_kernels.gpu.attention_cases import attention_cases
from paiton_kernels.gpu.attention_items import ENTRY, HEADER, check_group, max_slots, slots_of
from paiton_kernels.gpu.attention_join import join_splits, write_output
from paiton_kernels.gpu.attention_space import attention_space
from paiton_kernels.gpu.attention_tile import attend_range, padded
from paiton_kernels.gpu.devices import Profile, Target
from paiton_kernels.gpu.spec import Constant, GpuArg, GpuKernelSpec, Grid, Step, Work, spelled
from paiton_kernels.spec import KV_BLOCK_TOKENS

_BLOCK_TOKENS = tl.constexpr(KV_BLOCK_TOKENS)
HEAD_DIMS = (32, 64, 96, 128, 256)
"""Elements of a head that there are tiles for."""

_LOG2_E = tl.constexpr(1.4426950408889634)


def _kernel(
    items,
    q,
    kv,
    kv_block_stride,
    block_tables,
    block_table_stride,
    positions,
    k_scale,
    v_scale,
    softmax_scale,
    out,
    out_scale,
    out_amax,
    workspace,
    semaphores,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KV: tl.constexpr,
    OUT: tl.constexpr,
    AMAX: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    PREFETCH: tl.constexpr,
    PROGRAMS: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    GROUP: tl.constexpr = Q_HEADS // KV_HEADS
    SLOTS: tl.constexpr = slots_of(PROGRAMS, BLOCK_Q)
    COLUMNS: tl.constexpr = padded(HEAD_DIM)
    scale = softmax_scale * (_LOG2_E if SOFTCAP == 0.0 else 2.0 * _LOG2_E / SOFTCAP)
    v_factor = 1.0
    if KV == "FP8":
        scale *= tl.load(k_scale) * FP8_UNIT
        v_factor = tl.load(v_scale) * FP8_UNIT
    row = tl.arange(0, BLOCK_Q)
    column = tl.arange(0, COLUMNS)
    for item in range(tl.program_id(0), tl.load(items) * KV_HEADS, PROGRAMS):
        # Heads change fastest: with 8 of them, each of 8 dies sees one head's history only.
        entry = items + HEADER + item // KV_HEADS * ENTRY
        kv_head = item % KV_HEADS
        split = tl.load(entry + 6)
        splits = tl.load(entry + 7)
        if split < splits:
            begin = tl.load(entry + 4)
            end = tl.load(entry + 5)
            real = row < tl.load(entry + 1) * GROUP
            token = tl.load(entry) + row // GROUP
            head = kv_head * GROUP + row % GROUP
            q_at = q + (token.to(tl.int64) * (Q_HEADS * HEAD_DIM) + head * HEAD_DIM)[:, None] + column[None, :]
            inside = real[:, None]
            if COLUMNS != HEAD_DIM:
                inside &= (column < HEAD_DIM)[None, :]
            query = tl.load(q_at, mask=inside, other=0.0)
            visible = tl.load(positions + token, mask=real, other=-1)
            # Before the first token's end no row needs a mask.
            everyone = tl.minimum(end, tl.load(positions + tl.load(entry)) + 1)
            since = 0
            if WINDOW > 0:  # where the last token's window begins
                since = tl.load(positions + tl.load(entry) + tl.load(entry + 1) - 1) - WINDOW + 1
            table = block_tables + tl.load(entry + 2) * block_table_stride
            keys = kv + kv_head * (_BLOCK_TOKENS * HEAD_DIM)
            acc, largest, total = attend_range(
                *(query, visible, since, everyone, keys, kv_block_stride, table, begin, end, scale),
                *(KV_HEADS, HEAD_DIM, WINDOW, SOFTCAP, BLOCK_KV, PREFETCH),
            )
            finish = True
            if splits > 1:
                first = tl.load(entry + 3) * KV_HEADS + kv_head
                weights = workspace + SLOTS * (BLOCK_Q * COLUMNS)
                acc, total, finish = join_splits(
                    acc, largest, total, split, splits, first, KV_HEADS, workspace, weights, semaphores, row, COLUMNS
                )
            if finish:
                value = acc * (v_factor / tl.where(total == 0.0, 1.0, total))[:, None]
                write_output(value, out, out_scale, out_amax, token, head, real, Q_HEADS, HEAD_DIM, OUT, AMAX, FP8_UNIT)


def _check(values: Mapping[str, Constant], _target: Target) -> str:
    if int(values["HEAD_DIM"]) not in HEAD_DIMS:
        return f"HEAD_DIM is {values['HEAD_DIM']}, not one of {', '.join(map(str, HEAD_DIMS))}"
    return check_group(values)


def _name(values: Mapping[str, Constant]) -> str:
    kv, out = "_kvfp8" if values["KV"] == "FP8" else "", "_fp8" if values["OUT"] == "FP8" else ""
    amax = "_amax" if values["AMAX"] else ""
    window = f"_window{values['WINDOW']}" if values["WINDOW"] else ""
    cap = f"_cap{spelled(values['SOFTCAP'])}" if values["SOFTCAP"] else ""
    return f"q{values['Q_HEADS']}_kv{values['KV_HEADS']}_d{values['HEAD_DIM']}{kv}{out}{amax}{window}{cap}"


def _grid(values: Mapping[str, Constant], _step: Step, _profile: Profile) -> Grid:
    return int(values["PROGRAMS"]), 1, 1


def _work(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Work:
    q_heads, kv_heads, head_dim = (int(values[name]) for name in ("Q_HEADS", "KV_HEADS", "HEAD_DIM"))
    context = min(step.context, int(values["WINDOW"]) or step.context)
    history = step.requests * context * kv_heads * head_dim * 2 * (1 if values["KV"] == "FP8" else 2)
    queries = step.tokens * q_heads * head_dim * (3 if values["OUT"] == "FP8" else 4)
    return Work(
        bytes=history + queries,
        bf16_operations=4 * step.tokens * context * q_heads * head_dim,
        blocks=int(values["PROGRAMS"]),
    )


def _workspace(values: Mapping[str, Constant], step: Step, _profile: Profile) -> dict[str, int]:
    # The sums of all slots that there can be, then the weights of those that the bucket uses: the second part's place
    # does not depend on the bucket.
    slots, rows = max_slots(values, step), int(values["BLOCK_Q"])
    sums = slots_of(int(values["PROGRAMS"]), rows) * rows * padded(int(values["HEAD_DIM"]))
    return {"workspace": 4 * (sums + slots * 2 * rows), "semaphores": slots}


ATTENTION = GpuKernelSpec(
    family="attention",
    function=_kernel,
    args=(
        GpuArg("items", "*i32", "the work list that schedule made (attention_items.py)"),
        GpuArg("q", "*bf16", "bf16[T][Q_HEADS*HEAD_DIM], after RoPE"),
        GpuArg("kv", "@KV", "this layer's part of KV block 0: K [KV_HEADS][16][HEAD_DIM], then V"),
        GpuArg("kv_block_stride", "i64", "bytes from one KV block to the next", divisor=16),
        GpuArg("block_tables", "*i32", "i32[R][block_table_stride]: KV block of every 16 positions of a request"),
        GpuArg("block_table_stride", "i64", "elements from one request's row to the next"),
        GpuArg("positions", "*i32", "i32[T], ascending within a request"),
        GpuArg("k_scale", "*fp32", "f32[1]: what a stored K is multiplied by (KV=FP8)"),
        GpuArg("v_scale", "*fp32", "f32[1]: what a stored V is multiplied by (KV=FP8)"),
        GpuArg("softmax_scale", "fp32", "what scores are multiplied by"),
        GpuArg("out", "@OUT", "[T][Q_HEADS*HEAD_DIM]"),
        GpuArg("out_scale", "*fp32", "f32[1]: what a quantised output is multiplied by (OUT=FP8)"),
        GpuArg("out_amax", "*fp32", "f32[T]: raised to the largest magnitude of each token's output (AMAX=1)"),
        GpuArg("workspace", "*fp32", "partial results of splits"),
        GpuArg("semaphores", "*i32", "i32, one for each slot of the workspace; 0 before and after"),
    ),
    constants=("Q_HEADS", "KV_HEADS", "HEAD_DIM", "KV", "OUT", "AMAX", "WINDOW", "SOFTCAP"),
    tunables=("BLOCK_Q", "BLOCK_KV", "PREFETCH", "PROGRAMS"),
    name=_name,
    space=attention_space,
    grid=_grid,
    work=_work,
    cases=attention_cases,
    check=_check,
    workspace=_workspace,
    defaults={"WINDOW": 0, "SOFTCAP": 0.0},
)
