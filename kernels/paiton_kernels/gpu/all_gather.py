"""``all_gather``: the logits of all ranks' shares of the vocabulary, whole on every rank.

They travel through the comm region and are copied from there to ordinary memory: sampling reads them several times,
and the comm region is uncached on HIP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import triton
import triton.language as tl

from paiton_kernels.gpu.comm import (
    GATHER_COLUMNS,
    comm_arguments,
    distances_to,
    enter,
    exchange,
    leave,
    region_of,
    staging,
    why_no_group,
)
from paiton_kernels.gpu.devices import Profile, Target, target_named
from paiton_kernels.gpu.spec import Case, Config, Constant, GpuArg, GpuKernelSpec, Grid, Step, Work


def _kernel(
    counts,
    part,
    out,
    comm,
    comm_peers,
    comm_error,
    part_stride,
    out_stride,
    rank,
    max_polls,
    channel_bytes,
    TP: tl.constexpr,
    BLOCKS: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    PIECES: tl.constexpr = (SHARE + BLOCK - 1) // BLOCK
    lane = tl.arange(0, BLOCK)
    rank = rank.to(tl.int32)
    number, launch, failed = enter(comm)
    if failed:
        return
    distances = distances_to(comm_peers, TP)
    units = tl.load(counts + 2) * PIECES
    most = (channel_bytes // (TP * BLOCK * 4)).to(tl.int32)
    first = tl.program_id(0)
    going = True
    while (first < units) & going:
        count = tl.minimum(most, (units - first + BLOCKS - 1) // BLOCKS)
        number += 1
        place = staging(number, channel_bytes, BLOCKS)
        for k in range(count):
            unit = first + k * BLOCKS
            column = unit % PIECES * BLOCK + lane
            inside = column < SHARE
            value = tl.load(part + (unit // PIECES).to(tl.int64) * part_stride + column, mask=inside, other=0.0)
            for step in tl.static_range(TP):
                region = region_of(comm, distances, (rank + step) & (TP - 1), TP) + place
                to = region.to(tl.pointer_type(tl.float32)) + (k * TP + rank) * BLOCK + lane
                tl.store(to, value, mask=inside, cache_modifier=".wt")
        going = exchange(comm, distances, comm_error, number, launch, rank, max_polls, TP, BLOCKS)
        if going:
            for k in range(count):
                unit = first + k * BLOCKS
                column = unit % PIECES * BLOCK + lane
                inside = column < SHARE
                to = out + (unit // PIECES).to(tl.int64) * out_stride + column
                sent = (comm + place).to(tl.pointer_type(tl.float32)) + k * (TP * BLOCK) + lane
                for peer in tl.static_range(TP):
                    value = tl.load(sent + peer * BLOCK, mask=inside, other=0.0, cache_modifier=".cv")
                    tl.store(to + peer * SHARE, value, mask=inside)
        first += count * BLOCKS
    leave(comm, number)


def _grid(values: Mapping[str, Constant], _step: Step, _profile: Profile) -> Grid:
    return int(values["BLOCKS"]), 1, 1


def _space(constants: Mapping[str, Constant], _step: Step, profile: Profile) -> tuple[Config, ...]:
    """Pieces in which each thread has two vectors of 16 bytes: the largest that a message is made of, or a share."""
    block = min(GATHER_COLUMNS, triton.next_power_of_2(int(constants["SHARE"])))
    return (Config.of(max(1, block // 8 // target_named(profile.target).warp_size), 1, BLOCK=block),)


def _work(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Work:
    """A rank's share is read; those of all ranks are written by them, read, and written where they belong."""
    share = step.requests * int(values["SHARE"]) * 4
    return Work(bytes=share * (1 + 3 * int(values["TP"])), blocks=int(values["BLOCKS"]))


def _check(values: Mapping[str, Constant], _target: Target) -> str:
    return why_no_group(values)


def _name(values: Mapping[str, Constant]) -> str:
    return f"r{values['TP']}_b{values['BLOCKS']}_n{values['SHARE']}"


def _cases(_target: Target) -> Iterator[Case]:
    """A group of one rank; tests of groups are tests/emulated/test_all_reduce_group.py."""
    random = np.random.default_rng(5)
    for share, stride in ((1003, 1008), (2048, 2048)):
        part = random.standard_normal((3, stride)).astype(np.float32)
        expected = np.full((3, stride + 16), np.nan)
        expected[:2, :share] = part[:2, :share]
        channel_bytes = GATHER_COLUMNS * 4
        arrays: dict[str, Any] = {
            "counts": np.array([5, 3, 2, 0], np.int32),
            "part": part,
            "out": np.zeros((3, stride + 16), np.float32),
            "comm": np.zeros(4 * (64 + channel_bytes), np.int8),
            "comm_peers": np.zeros(1, np.int64),
            "comm_error": np.zeros(4, np.int32),
        }
        scalars = {"part_stride": stride, "out_stride": stride + 16, "rank": 0, "max_polls": 10}
        yield Case(
            f"n{share}",
            {"TP": 1, "BLOCKS": 2, "SHARE": share},
            Step(3, 3),
            arrays,
            {**scalars, "channel_bytes": channel_bytes},
            {"out": expected, "comm_error": np.zeros(4)},
            {"out": "exact", "comm_error": "exact"},
        )


ALL_GATHER = GpuKernelSpec(
    family="all_gather",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows of this step, 0; the same on all ranks"),
        GpuArg("part", "*fp32", "f32[R][part_stride]: logits of this rank's share of the vocabulary"),
        GpuArg("out", "*fp32", "f32[R][out_stride]: those of rank r from column r * SHARE on"),
        *comm_arguments("comm", "comm_peers", "comm_error"),
        GpuArg("part_stride", "i64", "elements from one row of part to the next", divisor=16),
        GpuArg("out_stride", "i64", "elements from one row of out to the next", divisor=16),
        *comm_arguments("rank", "max_polls", "channel_bytes"),
    ),
    constants=("TP", "BLOCKS", "SHARE"),
    tunables=("BLOCK",),
    name=_name,
    space=_space,
    grid=_grid,
    work=_work,
    cases=_cases,
    check=_check,
)
