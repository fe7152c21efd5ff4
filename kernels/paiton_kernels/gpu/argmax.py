"""``argmax``: the most probable token of every row, where each rank has the logits of a share of the vocabulary.

For rows that ask for nothing but that token: no penalty, bias, mask, temperature or log-probability. Each rank sends
one number for each row and piece of its share, instead of all logits: a logit and its token, as an integer that orders
like the logits and, of equal ones, prefers the lower token. Whatever the largest of them is, all ranks have the same,
and make of it what ``sample`` makes of a greedy row: NaN counts as -inf, and without a token above that it is token 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import triton
import triton.language as tl

from paiton_kernels.gpu.argmax_cases import RESULTS, argmax_case
from paiton_kernels.gpu.comm import (
    comm_arguments,
    distances_to,
    enter,
    exchange,
    leave,
    staging,
    why_no_group,
)
from paiton_kernels.gpu.devices import Profile, Target, target_named
from paiton_kernels.gpu.last_arriver import arrives_last
from paiton_kernels.gpu.sample_advance import advance
from paiton_kernels.gpu.sample_args import arguments
from paiton_kernels.gpu.sample_arithmetic import ordered
from paiton_kernels.gpu.spec import Case, Config, Constant, GpuArg, GpuKernelSpec, Grid, Step, Work

PIECE_COLUMNS = 1024
"""Columns of a row that a block takes, at least, where the share has as many."""

UNITS = 2
"""Pieces of cut rows that a block takes in a full step, at most: each costs an arrival at its row's semaphore."""

MAX_WARPS = 8
"""Of a block: with more, NVIDIA's threads have too few registers."""

_NO_TOKEN = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _best_key(
    logits, piece, first_token, VOCAB: tl.constexpr, SHARE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Returns an i64 that is larger for the larger logit of a piece and, of equal ones, for the lower token."""
    lane = tl.arange(0, BLOCK)
    first = piece * WIDTH
    tokens = tl.minimum(VOCAB - first_token, SHARE)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    chosen = first + lane
    for start in range(first, tl.minimum(first + WIDTH, tokens), BLOCK):
        column = start + lane
        values = tl.load(logits + column, mask=column < SHARE, other=float("-inf"))
        better = (values > best) & (column < tokens)  # never NaN
        best = tl.where(better, values, best)
        chosen = tl.where(better, column, chosen)
    # A lane without a token has the key of one of -inf, which token 0 of rank 0 beats or is.
    return tl.max((ordered(best).to(tl.int64) << 32) | (_NO_TOKEN - first_token - chosen).to(tl.int64))


def _kernel(
    counts,
    part,
    slot_of,
    stop_tokens,
    max_position,
    positions,
    logit_rows,
    sampled,
    last_token,
    token_counts,
    finished,
    comm,
    comm_peers,
    comm_error,
    workspace,
    semaphores,
    part_stride,
    rank,
    max_polls,
    channel_bytes,
    TP: tl.constexpr,
    BLOCKS: tl.constexpr,
    VOCAB: tl.constexpr,
    SHARE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    WIDTH: tl.constexpr = (SHARE + SPLIT * BLOCK - 1) // (SPLIT * BLOCK) * BLOCK
    peer = tl.arange(0, TP)
    rank = rank.to(tl.int32)
    number, launch, failed = enter(comm)
    if failed:
        return
    distances = distances_to(comm_peers, TP)
    units = tl.load(counts + 2) * SPLIT
    most = (channel_bytes // (TP * 8)).to(tl.int32)
    first = tl.program_id(0)
    going = True
    while (first < units) & going:
        count = tl.minimum(most, (units - first + BLOCKS - 1) // BLOCKS)
        number += 1
        place = staging(number, channel_bytes, BLOCKS)
        for k in range(count):
            unit = first + k * BLOCKS
            logits = part + (unit // SPLIT).to(tl.int64) * part_stride
            key = _best_key(logits, unit % SPLIT, rank * SHARE, VOCAB, SHARE, WIDTH, BLOCK)
            to = (comm + distances + place).to(tl.pointer_type(tl.int64)) + (k * TP + rank)
            tl.store(to, tl.full((TP,), 0, tl.int64) + key, cache_modifier=".wt")
        going = exchange(comm, distances, comm_error, number, launch, rank, max_polls, TP, BLOCKS)
        if going:
            for k in range(count):
                unit = first + k * BLOCKS
                row = unit // SPLIT
                sent = (comm + place).to(tl.pointer_type(tl.int64)) + k * TP
                best = tl.max(tl.load(sent + peer, cache_modifier=".cv"))
                last = True
                if SPLIT > 1:
                    tl.store(workspace + unit, best)
                    last = arrives_last(semaphores + row, SPLIT)
                    if last:
                        best = tl.max(tl.load(workspace + row * SPLIT + tl.arange(0, SPLIT), cache_modifier=".cg"))
                        tl.store(semaphores + row, 0)
                if last:
                    token = _NO_TOKEN - (best & _NO_TOKEN).to(tl.int32)
                    tl.store(sampled + row, token)
                    ends = stop_tokens, max_position, positions, logit_rows
                    advance(row, token, slot_of, *ends, last_token, token_counts, finished, VOCAB)
        first += count * BLOCKS
    leave(comm, number)


def _grid(values: Mapping[str, Constant], _step: Step, _profile: Profile) -> Grid:
    return int(values["BLOCKS"]), 1, 1


def _space(constants: Mapping[str, Constant], step: Step, profile: Profile) -> tuple[Config, ...]:
    """Rows cut so that all blocks take part, and few pieces for each; threads with a vector of 16 bytes or two."""
    share, blocks = int(constants["SHARE"]), int(constants["BLOCKS"])
    split = 1
    while 2 * split * step.requests <= UNITS * blocks and 2 * split * PIECE_COLUMNS <= share:
        split *= 2
    block = min(2 * PIECE_COLUMNS, triton.next_power_of_2(triton.cdiv(share, split)))
    warps = max(1, min(MAX_WARPS, block // 4 // target_named(profile.target).warp_size))
    return (Config.of(warps, 1, SPLIT=split, BLOCK=block),)


def _work(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Work:
    return Work(bytes=4 * step.requests * int(values["SHARE"]), blocks=int(values["BLOCKS"]))


def _workspace(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Mapping[str, int]:
    split = int(values["SPLIT"])
    return {"workspace": 8 * step.requests * split, "semaphores": step.requests} if split > 1 else {}


def _check(values: Mapping[str, Constant], _target: Target) -> str:
    return why_no_group(values)


def _name(values: Mapping[str, Constant]) -> str:
    return f"r{values['TP']}_b{values['BLOCKS']}_v{values['VOCAB']}_n{values['SHARE']}"


def _cases(_target: Target) -> Iterator[Case]:
    """A group of one rank; tests of groups are tests/emulated/test_all_reduce_group.py."""
    yield argmax_case(_name, (Config.of(1, 1, SPLIT=1, BLOCK=1024), Config.of(2, 1, SPLIT=4, BLOCK=128)))


STATE = ("slot_of", "stop_tokens", "max_position", "positions", "logit_rows")
"""What a launch reads of the rows' requests."""

ARGMAX = GpuKernelSpec(
    family="argmax",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows (R) of this step, 0; the same on all ranks"),
        GpuArg("part", "*fp32", "f32[R][part_stride]: logits of this rank's share of the vocabulary"),
        *arguments(*STATE, *RESULTS),
        *comm_arguments("comm", "comm_peers", "comm_error"),
        GpuArg("workspace", "*i64", "i64[R][SPLIT]: the best of each piece (SPLIT > 1)"),
        GpuArg("semaphores", "*i32", "i32[R], 0 before and after (SPLIT > 1)"),
        GpuArg("part_stride", "i64", "elements from one row of part to the next", divisor=16),
        *comm_arguments("rank", "max_polls", "channel_bytes"),
    ),
    constants=("TP", "BLOCKS", "VOCAB", "SHARE"),
    tunables=("SPLIT", "BLOCK"),
    name=_name,
    space=_space,
    grid=_grid,
    work=_work,
    cases=_cases,
    check=_check,
    workspace=_workspace,
)
