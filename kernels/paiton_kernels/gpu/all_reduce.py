"""``all_reduce``: the sum of all ranks' partial results into the residual stream, and the norm that follows it.

Every rank adds the partial sums in the order of the ranks, so that all have the same bits. Two ways (SHOTS): in one
exchange every rank sends all of its part to every other, in two each rank adds a share of the columns and sends the
sum to the others. docs/tensor-parallelism.md has the protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import triton
import triton.language as tl

from paiton_kernels.gpu.all_reduce_cases import all_reduce_case
from paiton_kernels.gpu.comm import (
    comm_arguments,
    distances_to,
    enter,
    exchange,
    leave,
    region_of,
    staging,
    stores_done,
    why_no_group,
)
from paiton_kernels.gpu.devices import Profile, Target, target_named
from paiton_kernels.gpu.last_arriver import arrives_last
from paiton_kernels.gpu.norm import MAX_HIDDEN
from paiton_kernels.gpu.norm_row import store_normalised
from paiton_kernels.gpu.spec import Case, Config, Constant, GpuArg, GpuKernelSpec, Grid, Step, Work, spelled

ONE_SHOT_BYTES = {2: 4 << 20, 4: 512 << 10, 8: 128 << 10}
"""Bytes of a message, by ranks, up to which one exchange is preferred: what published systems use, measured on none.

Tuning tables say otherwise for a device by the tunable SHOTS of their entries.
"""

UNIT_COLUMNS = 2048
"""Columns of a row that a block adds up at a time: more than that would need registers that are not there."""

_UNIT_COLUMNS = tl.constexpr(UNIT_COLUMNS)


@triton.jit
def _logits_row(rows, count, row):
    """Returns where `row` stands in rows[:count], or -1."""
    found = -1
    for start in range(0, count, 256):
        i = start + tl.arange(0, 256)
        here = tl.load(rows + i, mask=i < count, other=-1) == row
        found = tl.maximum(found, tl.max(tl.where(here, i, -1), 0))
    return found


@triton.jit
def _push_rows(
    part, comm, distances, place, rank, first, count, TP: tl.constexpr, BLOCKS: tl.constexpr, HIDDEN: tl.constexpr,
    SPLIT: tl.constexpr, WIDTH: tl.constexpr, SHARED: tl.constexpr, WIRE: tl.constexpr,
):  # fmt: skip
    """Sends units of this rank's part: all of a unit to every rank, or (SHARED) to each rank its share of a row."""
    lane = tl.arange(0, triton.next_power_of_2(WIDTH))
    for k in range(count):
        unit = first + k * BLOCKS
        row = part + (unit // SPLIT).to(tl.int64) * HIDDEN
        for step in range(TP):
            peer = (rank + step) & (TP - 1)  # every rank in an order of its own
            column = (peer if SHARED else unit % SPLIT) * WIDTH + lane
            inside = (lane < WIDTH) & (column < HIDDEN)
            value = tl.load(row + column, mask=inside, other=0.0).to(WIRE)
            to = (region_of(comm, distances, peer, TP) + place).to(tl.pointer_type(WIRE)) + (k * TP + rank) * WIDTH
            tl.store(to + lane, value, mask=inside, cache_modifier=".wt")


@triton.jit
def _sum(comm, place, k, lane, inside, TP: tl.constexpr, WIDTH: tl.constexpr, WIRE: tl.constexpr):
    """Returns the sum of what all ranks sent of unit k, in the order of the ranks."""
    sent = (comm + place).to(tl.pointer_type(WIRE)) + k * (TP * WIDTH) + lane
    total = tl.zeros(lane.shape, tl.float32)
    for peer in tl.static_range(TP):
        total += tl.load(sent + peer * WIDTH, mask=inside, other=0.0, cache_modifier=".cv").to(tl.float32)
    return total


@triton.jit
def _into_stream(total, row, column, inside, x, HIDDEN: tl.constexpr, MODE: tl.constexpr):
    """Adds a sum to a row of x, or stores it there; returns what x then holds."""
    to = x + row.to(tl.int64) * HIDDEN + column
    if MODE == "ADD":
        total += tl.load(to, mask=inside, other=0.0)
    tl.store(to, total, mask=inside)
    return total


@triton.jit
def _normalise_stored(
    row, counts, x, rows, weight, eps, out, out_scale, row_scale, clear, HIDDEN: tl.constexpr, ROWS: tl.constexpr,
    OUT: tl.constexpr, SCALE: tl.constexpr, CLEAR: tl.constexpr, OFFSET: tl.constexpr, FP8_UNIT: tl.constexpr,
):  # fmt: skip
    """Normalises a row of x that other waves or blocks have stored."""
    column = tl.arange(0, triton.next_power_of_2(HIDDEN))
    inside = column < HIDDEN
    value = tl.load(x + row.to(tl.int64) * HIDDEN + column, mask=inside, other=0.0, cache_modifier=".cg")
    _normalise(
        value, row, column, inside, counts, rows, weight, eps, out, out_scale, row_scale, clear,
        HIDDEN, ROWS, OUT, SCALE, CLEAR, OFFSET, FP8_UNIT,
    )  # fmt: skip


@triton.jit
def _normalise(
    value, row, column, inside, counts, rows, weight, eps, out, out_scale, row_scale, clear, HIDDEN: tl.constexpr,
    ROWS: tl.constexpr, OUT: tl.constexpr, SCALE: tl.constexpr, CLEAR: tl.constexpr, OFFSET: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):  # fmt: skip
    """Normalises a row in registers, if it is wanted."""
    place = row
    if ROWS == "LOGITS":
        place = _logits_row(rows, tl.load(counts + 2), row)
    if place >= 0:
        store_normalised(
            value, place, column, inside, weight, eps, out, out_scale, row_scale, clear,
            HIDDEN, OUT, SCALE, CLEAR, OFFSET, FP8_UNIT,
        )  # fmt: skip


def _kernel(
    counts,
    part,
    x,
    rows,
    weight,
    eps,
    out,
    out_scale,
    row_scale,
    clear,
    comm,
    comm_peers,
    comm_error,
    semaphores,
    rank,
    max_polls,
    channel_bytes,
    TP: tl.constexpr,
    BLOCKS: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIRE: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    SCALE: tl.constexpr,
    CLEAR: tl.constexpr,
    OFFSET: tl.constexpr,
    SHOTS: tl.constexpr,
    SPLIT: tl.constexpr,
    FP8_UNIT: tl.constexpr,
):
    TYPE: tl.constexpr = tl.bfloat16 if WIRE == "BF16" else tl.float32
    PARTS: tl.constexpr = SPLIT if SHOTS == 1 else TP
    WIDTH: tl.constexpr = (HIDDEN + PARTS * 8 - 1) // (PARTS * 8) * 8
    UNIT_BYTES: tl.constexpr = TP * WIDTH * (TYPE.primitive_bitwidth // 8)
    PIECE: tl.constexpr = min(triton.next_power_of_2(HIDDEN), _UNIT_COLUMNS)
    lane = tl.arange(0, triton.next_power_of_2(WIDTH))
    rank = rank.to(tl.int32)
    number, launch, failed = enter(comm)
    if failed:
        return
    distances = distances_to(comm_peers, TP)
    units = tl.load(counts) * SPLIT
    most = (channel_bytes // UNIT_BYTES).to(tl.int32)  # units of an exchange
    first = tl.program_id(0)
    going = True
    while (first < units) & going:
        count = tl.minimum(most, (units - first + BLOCKS - 1) // BLOCKS)
        number += 1
        place = staging(number, channel_bytes, BLOCKS)
        _push_rows(part, comm, distances, place, rank, first, count, TP, BLOCKS, HIDDEN, SPLIT, WIDTH, SHOTS == 2, TYPE)
        going = exchange(comm, distances, comm_error, number, launch, rank, max_polls, TP, BLOCKS)
        if SHOTS == 2:
            if going:
                number += 1
                sums = staging(number, channel_bytes, BLOCKS)
                column = rank * WIDTH + lane
                inside = (lane < WIDTH) & (column < HIDDEN)
                for k in range(count):
                    total = _sum(comm, place, k, lane, inside, TP, WIDTH, TYPE).to(TYPE)
                    for step in range(TP):
                        region = region_of(comm, distances, (rank + step) & (TP - 1), TP)
                        to = (region + sums).to(tl.pointer_type(TYPE)) + (k * TP + rank) * WIDTH + lane
                        tl.store(to, total, mask=inside, cache_modifier=".wt")
                going = exchange(comm, distances, comm_error, number, launch, rank, max_polls, TP, BLOCKS)
                place = sums
        if going:
            for k in range(count):
                unit = first + k * BLOCKS
                row = unit // SPLIT
                if SHOTS == 1:
                    column = unit % SPLIT * WIDTH + lane
                    inside = (lane < WIDTH) & (column < HIDDEN)
                    total = _sum(comm, place, k, lane, inside, TP, WIDTH, TYPE)
                    value = _into_stream(total, row, column, inside, x, HIDDEN, MODE)
                else:
                    sent = (comm + place).to(tl.pointer_type(TYPE)) + k * (TP * WIDTH)
                    for piece in range((HIDDEN + PIECE - 1) // PIECE):
                        column = piece * PIECE + tl.arange(0, PIECE)
                        inside = column < HIDDEN
                        total = tl.load(sent + column, mask=inside, other=0.0, cache_modifier=".cv").to(tl.float32)
                        _into_stream(total, row, column, inside, x, HIDDEN, MODE)
                if NORM:
                    if SHOTS == 1 and SPLIT == 1:
                        _normalise(
                            value, row, column, inside, counts, rows, weight, eps, out, out_scale, row_scale, clear,
                            HIDDEN, ROWS, OUT, SCALE, CLEAR, OFFSET, FP8_UNIT,
                        )  # fmt: skip
                    else:
                        if SHOTS == 1:
                            last = arrives_last(semaphores + row, SPLIT)
                            if last:
                                tl.store(semaphores + row, 0)
                        else:
                            stores_done()
                            tl.debug_barrier()
                            last = True
                        if last:
                            _normalise_stored(
                                row, counts, x, rows, weight, eps, out, out_scale, row_scale, clear,
                                HIDDEN, ROWS, OUT, SCALE, CLEAR, OFFSET, FP8_UNIT,
                            )  # fmt: skip
        first += count * BLOCKS
    leave(comm, number)


def message_bytes(values: Mapping[str, Constant], step: Step) -> int:
    """Returns the bytes of one rank's partial sums as they travel."""
    return step.tokens * int(values["HIDDEN"]) * (2 if values["WIRE"] == "BF16" else 4)


def link_bytes(values: Mapping[str, Constant], step: Step) -> int:
    """Returns the bytes that a rank sends to each of the others."""
    whole = message_bytes(values, step)
    return whole if values["SHOTS"] == 1 else 2 * whole // int(values["TP"])


def _grid(values: Mapping[str, Constant], _step: Step, _profile: Profile) -> Grid:
    return int(values["BLOCKS"]), 1, 1


def _space(constants: Mapping[str, Constant], step: Step, profile: Profile) -> tuple[Config, ...]:
    """One exchange up to the threshold, else two; rows cut so that all blocks take part and registers suffice."""
    hidden, blocks, tp = int(constants["HIDDEN"]), int(constants["BLOCKS"]), int(constants["TP"])
    warp = target_named(profile.target).warp_size
    columns = triton.next_power_of_2(hidden)
    whole = max(1, min(1024, columns // 8) // warp)  # warps that normalise a row with 8 to 32 elements in each thread
    two = [Config.of(max(1, min(most, columns // 8) // warp), 1, SHOTS=2, SPLIT=1) for most in (512, 256)]
    one = []
    for split in (1, 2, 4, 8, 16, 32):
        width = columns // split
        if (width > UNIT_COLUMNS and split < 32) or (split > 1 and width < 4 * warp):
            continue
        warps = max(1, min(whole, max(width // 8, columns // 32) // warp))
        one.append(Config.of(warps, 1, SHOTS=1, SPLIT=split))
    # The busiest block's share of the work first, then few pieces: each costs an arrival at its row's semaphore.
    one.sort(key=lambda config: -(-step.tokens * dict(config.values)["SPLIT"] // blocks) / dict(config.values)["SPLIT"])
    small = message_bytes(constants, step) <= ONE_SHOT_BYTES.get(tp, 1 << 62)
    # Only what the threshold says: the static ranking knows nothing of links and of the time that an exchange takes.
    return tuple(one[:3]) if small else tuple(dict.fromkeys(two))


def _work(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Work:
    """Own memory only: links are no part of a launch's DRAM bytes (see `link_bytes`)."""
    elements = step.tokens * int(values["HIDDEN"])
    wire = 2 if values["WIRE"] == "BF16" else 4
    sent = int(values["TP"]) if values["SHOTS"] == 1 else 2
    stored = 8 if values["MODE"] == "ADD" else 4
    normed = (1 if values["OUT"] == "FP8" else 2) if values["NORM"] else 0
    return Work(bytes=elements * (4 + 2 * wire * sent + stored + normed), blocks=int(values["BLOCKS"]))


def _workspace(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Mapping[str, int]:
    return {"semaphores": step.tokens} if int(values["SPLIT"]) > 1 and values["NORM"] else {}


def _check(values: Mapping[str, Constant], _target: Target) -> str:
    if reason := why_no_group(values):
        return reason
    if not 0 < int(values["HIDDEN"]) <= MAX_HIDDEN:
        return f"HIDDEN is {values['HIDDEN']}, more than the {MAX_HIDDEN} that registers hold"
    if (values["OUT"] == "FP8") != (values["SCALE"] != "NONE"):
        return f"OUT={values['OUT']} with SCALE={values['SCALE']}"
    if not values["NORM"] and (values["OUT"], values["ROWS"], values["CLEAR"]) != ("BF16", "TOKENS", 0):
        return f"OUT={values['OUT']}, ROWS={values['ROWS']}, CLEAR={values['CLEAR']} without a norm"
    if int(values["SHOTS"]) == 2 and int(values["SPLIT"]) != 1:
        return f"SPLIT={values['SPLIT']} with SHOTS=2"
    return ""


def _name(values: Mapping[str, Constant]) -> str:
    parts = [f"r{values['TP']}", f"b{values['BLOCKS']}", f"h{values['HIDDEN']}", str(values["WIRE"]).lower()]
    parts.append(str(values["MODE"]).lower())
    if values["NORM"]:
        parts += ["gather"] * (values["ROWS"] == "LOGITS")
        parts.append(
            {"NONE": str(values["OUT"]).lower(), "TENSOR": "fp8static", "ROW": "fp8dynamic"}[str(values["SCALE"])]
        )
        parts += ["clear"] * bool(values["CLEAR"])
        parts += [f"off{spelled(values['OFFSET'])}"] * bool(values["OFFSET"])
    else:
        parts.append("plain")
    return "_".join(parts)


def _cases(target: Target) -> Iterator[Case]:
    """A group of one rank, which sends to itself; tests of groups are tests/emulated/test_all_reduce.py."""
    configs: Sequence[Config] = (Config.of(1, 1, SHOTS=1, SPLIT=1), Config.of(2, 1, SHOTS=2, SPLIT=1))
    yield all_reduce_case(_name, configs, hidden=100, wire="FP32", mode="STORE", norm=0)
    split = (*configs, Config.of(2, 1, SHOTS=1, SPLIT=4))
    yield all_reduce_case(_name, split, hidden=576, wire="FP32", mode="ADD", rows="LOGITS", offset=1.0)
    if target.fp8:
        yield all_reduce_case(_name, split, hidden=576, wire="BF16", mode="ADD", scale="ROW", clear=1)
        yield all_reduce_case(_name, configs, hidden=1032, wire="FP32", mode="ADD", scale="TENSOR")


ALL_REDUCE = GpuKernelSpec(
    family="all_reduce",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows of this step, 0; the same on all ranks"),
        GpuArg("part", "*fp32", "f32[T][HIDDEN]: partial sums of this rank"),
        GpuArg("x", "*fp32", "f32[T][HIDDEN]: what the sum is added to (MODE=ADD) or replaces (STORE)"),
        GpuArg("rows", "*i32", "i32[logits rows]: the row of x for each row of out, each once (ROWS=LOGITS)"),
        GpuArg("weight", "*bf16", "bf16[HIDDEN] (NORM=1)"),
        GpuArg("eps", "fp32", "added to the mean of squares"),
        GpuArg("out", "@OUT", "[T or logits rows][HIDDEN] (NORM=1)"),
        GpuArg("out_scale", "*fp32", "f32[1]: what codes are multiplied by (SCALE=TENSOR)"),
        GpuArg("row_scale", "*fp32", "f32[T]: what the codes of each row are multiplied by, written (SCALE=ROW)"),
        GpuArg("clear", "*fp32", "f32[T]: set to 0 (CLEAR=1): the largest magnitudes that a later launch collects"),
        *comm_arguments("comm", "comm_peers", "comm_error"),
        GpuArg("semaphores", "*i32", "i32[T], 0 before and after (SPLIT > 1)"),
        *comm_arguments("rank", "max_polls", "channel_bytes"),
    ),
    constants=("TP", "BLOCKS", "HIDDEN", "WIRE", "MODE", "NORM", "ROWS", "OUT", "SCALE", "CLEAR", "OFFSET"),
    tunables=("SHOTS", "SPLIT"),
    name=_name,
    space=_space,
    grid=_grid,
    work=_work,
    cases=_cases,
    check=_check,
    workspace=_workspace,
    defaults={"OFFSET": 0.0},
)
