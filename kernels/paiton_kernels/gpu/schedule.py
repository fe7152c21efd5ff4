"""``schedule``: the work list of ``attention``, made once a step from what the step holds.

Each request's tiles are cut into the same number of splits, ceil(history / length), with one `length` for the whole
step: the one that should take the least time on PROGRAMS programs, given that items are dealt out in turn. One program
a request: each finds the same length (it reads all requests, which are few), then writes its request's entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import triton
import triton.language as tl

from paiton_kernels.gpu import attention_cases
from paiton_kernels.gpu.attention_items import (
    CHOICES,
    ENTRY,
    FAN_IN,
    HEADER,
    ITEM_COST,
    MAX_SPLITS,
    PARTIAL_COST,
    check_group,
    list_words,
    max_tiles,
    slots_of,
)
from paiton_kernels.gpu.attention_space import attention_space
from paiton_kernels.gpu.devices import Profile, Target
from paiton_kernels.gpu.spec import Case, Config, Constant, GpuArg, GpuKernelSpec, Grid, Step, Work

_REQUESTS = tl.constexpr(32)
"""Requests that are looked at together."""

_WRITES = tl.constexpr(256)
"""Entries that are written together."""

_LARGEST = tl.constexpr(2**31 - 1)


@triton.jit
def _window_start(position, WINDOW: tl.constexpr, BLOCK_KV: tl.constexpr):
    """Returns the start of the KV tile in which the window of a position begins."""
    return tl.maximum(position + 1 - WINDOW, 0) // BLOCK_KV * BLOCK_KV


@triton.constexpr_function
def _window_tiles(tile: int, window: int, block_kv: int) -> int:
    """Returns the most KV tiles that the windows of a tile of queries touch, wherever they begin."""
    return -(-(window + tile - 2) // block_kv) + 1


@triton.jit
def _extents(
    query_start, positions, request, requests, TILE: tl.constexpr, WINDOW: tl.constexpr, BLOCK_KV: tl.constexpr
):
    """Returns the tiles of requests and the KV tiles of their histories, 0 and 0 for those that are not there.

    With windows the history is the most that a tile of queries can attend to.
    """
    there = request < requests
    begin = tl.load(query_start + request, mask=there, other=0)
    end = tl.load(query_start + request + 1, mask=there, other=0)
    there = there & (end > begin)
    last = tl.load(positions + end - 1, mask=there, other=-1)
    history = tl.cdiv(last + 1, BLOCK_KV)
    if WINDOW > 0:
        history = tl.minimum(history, _window_tiles(TILE, WINDOW, BLOCK_KV))
    return tl.cdiv(end - begin, TILE), history


@triton.jit
def _split_length(
    query_start,
    positions,
    requests,
    KV_HEADS: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    PROGRAMS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Returns the KV tiles of a split."""
    choice = CHOICES - 1 - tl.arange(0, CHOICES)
    length = ((8 + choice % 8) << (choice // 8)) >> 3
    entries = tl.zeros((CHOICES,), tl.int32)
    in_slots = tl.zeros((CHOICES,), tl.int32)
    longest = 1
    for start in range(0, requests, _REQUESTS):
        request = start + tl.arange(0, _REQUESTS)
        tiles, history = _extents(query_start, positions, request, requests, TILE, WINDOW, BLOCK_KV)
        pieces = tl.cdiv(history[None, :], length[:, None])
        several = tl.where(pieces > 1, pieces, 0)
        entries += tl.sum(tiles[None, :] * pieces, axis=1)
        in_slots += tl.sum(tiles[None, :] * several, axis=1)
        longest = tl.maximum(longest, tl.max(history))
    splits = tl.cdiv(longest, length)
    rounds = tl.cdiv(entries * KV_HEADS, PROGRAMS)
    added = tl.where(splits > 1, tl.minimum(splits, FAN_IN) + splits // FAN_IN, 0)
    cost = rounds * (tl.cdiv(longest, splits) * BLOCK_KV + ITEM_COST) + added * PARTIAL_COST
    fits = (splits <= MAX_SPLITS) & (in_slots * KV_HEADS <= SLOTS)
    best = tl.argmin(tl.where(fits, cost, _LARGEST), axis=0)
    return tl.sum(tl.where(choice == CHOICES - 1 - best, length, 0))


def _kernel(
    counts,
    query_start,
    positions,
    items,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    TILE: tl.constexpr = BLOCK_Q // (Q_HEADS // KV_HEADS)
    SLOTS: tl.constexpr = slots_of(PROGRAMS, BLOCK_Q)
    requests = tl.load(counts + 1)
    this = tl.program_id(0)
    if this >= requests:
        if this == 0:
            tl.store(items, 0)
        return
    length = _split_length(query_start, positions, requests, KV_HEADS, TILE, WINDOW, BLOCK_KV, PROGRAMS, SLOTS)
    entries = 0
    first_entry = 0
    first_slot = 0
    for start in range(0, requests, _REQUESTS):
        request = start + tl.arange(0, _REQUESTS)
        tiles, history = _extents(query_start, positions, request, requests, TILE, WINDOW, BLOCK_KV)
        pieces = tl.cdiv(history, length)
        entries += tl.sum(tiles * pieces)
        first_entry += tl.sum(tl.where(request < this, tiles * pieces, 0))
        first_slot += tl.sum(tl.where((request < this) & (pieces > 1), tiles * pieces, 0))
    if this == 0:
        tl.store(items, entries)
    begin = tl.load(query_start + this)
    end = tl.load(query_start + this + 1)
    if begin == end:
        return
    tiles = tl.cdiv(end - begin, TILE)
    longest = tl.cdiv(tl.load(positions + end - 1) + 1, BLOCK_KV)
    if WINDOW > 0:
        longest = tl.minimum(longest, _window_tiles(TILE, WINDOW, BLOCK_KV))
    pieces = tl.cdiv(longest, length)
    for start in range(0, tiles * pieces, _WRITES):
        number = start + tl.arange(0, _WRITES)
        inside = number < tiles * pieces
        # The last tiles first: in a prompt they have the longest histories, and short items should end the launch.
        token = begin + (tiles - 1 - number // pieces) * TILE
        tokens = tl.minimum(TILE, end - token)
        history = tl.load(positions + token + tokens - 1, mask=inside, other=0) + 1
        since = 0
        if WINDOW > 0:
            since = _window_start(tl.load(positions + token, mask=inside, other=0), WINDOW, BLOCK_KV)
        extent = tl.cdiv(tl.cdiv(history - since, BLOCK_KV), pieces) * BLOCK_KV
        split = number % pieces
        entry = items + HEADER + (first_entry + number) * ENTRY
        tl.store(entry, token, mask=inside)
        tl.store(entry + 1, tokens, mask=inside)
        tl.store(entry + 2, tl.full(number.shape, 0, tl.int32) + this, mask=inside)
        tl.store(entry + 3, tl.where(pieces > 1, first_slot + number - split, 0), mask=inside)
        tl.store(entry + 4, since + split * extent, mask=inside)
        tl.store(entry + 5, tl.minimum(since + (split + 1) * extent, history), mask=inside)
        tl.store(entry + 6, split, mask=inside)
        tl.store(entry + 7, tl.cdiv(history - since, extent), mask=inside)


def schedule_config(attention: Config) -> Config:
    """Returns the configuration whose work list an attention kernel of the configuration `attention` reads."""
    values = dict(attention.values)
    return Config.of(4, 1, None, **{name: values[name] for name in SCHEDULE.tunables})


def _space(constants: Mapping[str, Constant], step: Step, profile: Profile) -> tuple[Config, ...]:
    # Never chosen on its own: it follows from what attention runs with.
    configs = attention_space({**constants, "HEAD_DIM": 128, "KV": "FP8"}, step, profile)
    return tuple(dict.fromkeys(schedule_config(config) for config in configs))


def _grid(_values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    return min(step.requests, step.tokens), 1, 1


def _work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    requests, _, _ = _grid(values, step, profile)
    entries = max_tiles(values, step) + int(values["PROGRAMS"]) // int(values["KV_HEADS"])
    return Work(bytes=12 * requests * requests + 4 * ENTRY.value * entries, blocks=requests)


def _name(values: Mapping[str, Constant]) -> str:
    window = f"_window{values['WINDOW']}" if values["WINDOW"] else ""
    return f"q{values['Q_HEADS']}_kv{values['KV_HEADS']}{window}"


def _cases(_target: Target) -> Iterator[Case]:
    yield from attention_cases.schedule_cases()


SCHEDULE = GpuKernelSpec(
    family="schedule",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows of this step, 0"),
        GpuArg("query_start", "*i32", "i32[R + 1]: first token of each request, then the number of tokens"),
        GpuArg("positions", "*i32", "i32[T], ascending within a request"),
        GpuArg("items", "*i32", "the work list (attention_items.py)"),
    ),
    constants=("Q_HEADS", "KV_HEADS", "WINDOW"),
    tunables=("BLOCK_Q", "BLOCK_KV", "PROGRAMS"),
    name=_name,
    space=_space,
    grid=_grid,
    work=_work,
    cases=_cases,
    check=lambda values, _target: check_group(values),
    workspace=lambda values, step, _profile: {"items": 4 * list_words(values, step)},
    defaults={"WINDOW": 0},
)
