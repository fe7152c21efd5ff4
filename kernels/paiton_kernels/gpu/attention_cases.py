"""Inputs of ``attention`` and ``schedule`` with what must come out, computed in float64 and in integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paiton_kernels.attention import attention
from paiton_kernels.gpu.attention_items import (
    CHOICES,
    ENTRY,
    FAN_IN,
    HEADER,
    ITEM_COST,
    MAX_SPLITS,
    PARTIAL_COST,
    group_of,
    list_words,
    max_slots,
    slots_of,
)
from paiton_kernels.gpu.attention_tile import padded
from paiton_kernels.gpu.devices import Target
from paiton_kernels.gpu.spec import Case, Config, Constant, Step
from paiton_kernels.numeric_formats import E4M3_MAX, e4m3_values, round_e4m3
from paiton_kernels.spec import KV_BLOCK_TOKENS

_CODES = e4m3_values()


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests of a step: tokens of each, and positions before the first of them."""

    tokens: tuple[int, ...]
    before: tuple[int, ...]

    @property
    def query_start(self) -> NDArray[np.int32]:
        """i32[R + 1]."""
        return np.concatenate([[0], np.cumsum(self.tokens)]).astype(np.int32)

    @property
    def positions(self) -> NDArray[np.int32]:
        """i32[tokens]."""
        spans = [np.arange(count) + before for count, before in zip(self.tokens, self.before, strict=True)]
        return np.concatenate([*spans, []]).astype(np.int32)

    @property
    def histories(self) -> list[int]:
        """Positions of each request, its new tokens included."""
        return [count + before for count, before in zip(self.tokens, self.before, strict=True)]


def _ceil(x: int, y: int) -> int:
    return -(-x // y)


def _reach(positions: int, values: Mapping[str, Constant]) -> int:
    """Returns the most KV tiles that a tile of queries of a request with so many positions attends to."""
    tile, block_kv = int(values["BLOCK_Q"]) // group_of(values), int(values["BLOCK_KV"])
    every, window = _ceil(positions, block_kv), int(values["WINDOW"])
    # The first of `window + tile - 1` positions may be the last of a KV tile.
    return min(every, _ceil(window + tile - 2, block_kv) + 1) if window else every


def chosen_length(batch: Batch, values: Mapping[str, Constant]) -> int:
    """Returns the KV tiles of a split that ``schedule`` chooses: the first of the least cost."""
    tile, kv_heads = int(values["BLOCK_Q"]) // group_of(values), int(values["KV_HEADS"])
    programs, block_kv = int(values["PROGRAMS"]), int(values["BLOCK_KV"])
    tiles = [_ceil(count, tile) for count in batch.tokens]
    history = [_reach(positions, values) for positions in batch.histories]
    best, least = 0, None
    for choice in reversed(range(CHOICES.value)):
        length = ((8 + choice % 8) << (choice // 8)) >> 3
        pieces = [_ceil(extent, length) for extent in history]
        splits = max(pieces, default=1)
        in_slots = sum(count * piece for count, piece in zip(tiles, pieces, strict=True) if piece > 1)
        if splits > MAX_SPLITS.value or in_slots * kv_heads > slots_of(programs, int(values["BLOCK_Q"])):
            continue
        entries = sum(count * piece for count, piece in zip(tiles, pieces, strict=True))
        added = min(splits, FAN_IN.value) + splits // FAN_IN.value if splits > 1 else 0
        longest = _ceil(max(history, default=1), splits) * block_kv + ITEM_COST.value
        cost = _ceil(entries * kv_heads, programs) * longest + added * PARTIAL_COST.value
        if least is None or cost < least:
            best, least = length, cost
    return best


def work_list(batch: Batch, values: Mapping[str, Constant], length: int) -> NDArray[np.int32]:
    """Returns the entries i32[entries][ENTRY] for splits of `length` KV tiles."""
    tile, block_kv = int(values["BLOCK_Q"]) // group_of(values), int(values["BLOCK_KV"])
    entries: list[tuple[int, ...]] = []
    slot = 0
    for request, (begin, end) in enumerate(zip(batch.query_start[:-1], batch.query_start[1:], strict=True)):
        pieces = _ceil(_reach(batch.histories[request], values), length)
        for token in range(begin, end, tile)[::-1]:
            tokens = min(tile, end - token)
            history = int(batch.positions[token + tokens - 1]) + 1
            window = int(values["WINDOW"]) or history
            since = max(0, int(batch.positions[token]) + 1 - window) // block_kv * block_kv
            extent = _ceil(_ceil(history - since, block_kv), pieces) * block_kv
            splits = _ceil(history - since, extent)
            for split in range(pieces):
                last = min(since + (split + 1) * extent, history)
                first = slot if pieces > 1 else 0
                entries.append((token, tokens, request, first, since + split * extent, last, split, splits))
            slot += pieces if pieces > 1 else 0
    return np.array(entries, np.int32).reshape(-1, ENTRY.value)


def _stored(random: np.random.Generator, shape: Sequence[int], kv: str, spread: float) -> NDArray[Any]:
    """Returns random values as the cache holds them: codes of e4m3fn, or bf16."""
    values = random.standard_normal(shape) * spread
    if kv == "BF16":
        return values.astype(ml_dtypes.bfloat16)
    codes = np.searchsorted(_CODES[:127], np.abs(round_e4m3(values))).astype(np.uint8)
    return np.where((values < 0) & (codes > 0), codes | 0x80, codes).astype(np.uint8)


def _decoded(stored: NDArray[Any], scale: float) -> NDArray[np.float64]:
    return (_CODES[stored] if stored.dtype == np.uint8 else stored.astype(np.float64)) * scale


@dataclass(frozen=True, slots=True)
class Shape:
    """Constants and configuration of an attention case."""

    q_heads: int
    kv_heads: int
    head_dim: int
    kv: str
    out: str = "BF16"
    amax: int = 0
    block_q: int = 16
    block_kv: int = 32
    prefetch: int = 1
    programs: int = 6
    warps: int = 4
    window: int = 0
    softcap: float = 0.0

    @property
    def constants(self) -> dict[str, Constant]:
        """Of the variant."""
        heads = {"Q_HEADS": self.q_heads, "KV_HEADS": self.kv_heads, "HEAD_DIM": self.head_dim}
        special = {"WINDOW": self.window, "SOFTCAP": self.softcap}
        return {**heads, "KV": self.kv, "OUT": self.out, "AMAX": self.amax, **special}

    @property
    def config(self) -> Config:
        """How it is computed."""
        tiles = {"BLOCK_Q": self.block_q, "BLOCK_KV": self.block_kv}
        return Config.of(self.warps, 1, None, PREFETCH=self.prefetch, PROGRAMS=self.programs, **tiles)

    @property
    def values(self) -> dict[str, Constant]:
        """All compile-time parameters."""
        return {**self.constants, **dict(self.config.values)}


def _history(shape: Shape, batch: Batch, random: np.random.Generator, padding: int) -> dict[str, Any]:
    """Returns the cache, with the blocks in random order and NaN wherever nothing was written, and the block tables."""
    counts = [_ceil(positions, KV_BLOCK_TOKENS) for positions in batch.histories]
    blocks = sum(counts) + 2
    order = random.permutation(blocks)
    tables = np.full((len(counts), max(counts) + 3), 2**31 - 1, np.int32)  # must not be followed
    element = shape.kv_heads * KV_BLOCK_TOKENS * shape.head_dim
    nan: Any = 0x7F if shape.kv == "FP8" else np.nan
    kv = np.full((blocks, 2 * element + padding), nan, np.uint8 if shape.kv == "FP8" else ml_dtypes.bfloat16)
    keys: list[NDArray[Any]] = []
    values: list[NDArray[Any]] = []
    for request, positions in enumerate(batch.histories):
        mine, order = order[: counts[request]], order[counts[request] :]
        tables[request, : counts[request]] = mine
        for part, history in enumerate((keys, values)):
            stored = _stored(random, (positions, shape.kv_heads, shape.head_dim), shape.kv, 1.0)
            history.append(stored)
            for position in range(positions):
                cell = kv[mine[position // KV_BLOCK_TOKENS], part * element : (part + 1) * element]
                tile = cell.reshape(shape.kv_heads, KV_BLOCK_TOKENS, shape.head_dim)
                tile[:, position % KV_BLOCK_TOKENS] = stored[position]
    return {"kv": kv, "block_tables": tables, "keys": keys, "values": values}


def attention_case(name: str, shape: Shape, batch: Batch, length: int, *, bucket: int = 0, seed: int = 1) -> Case:
    """Returns a case.

    Args:
        name: for the test's id.
        shape: constants and configuration.
        batch: the step.
        length: KV tiles of a split.
        bucket: T; that of the step by default.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    tokens, width = len(batch.positions), shape.q_heads * shape.head_dim
    step = Step(max(bucket, tokens), len(batch.tokens))
    entries = work_list(batch, shape.values, length)
    items = np.zeros(list_words(shape.values, step), np.int32)
    items[0] = len(entries)
    items[HEADER.value : HEADER.value + entries.size] = entries.ravel()
    slots = max_slots(shape.values, step)
    used = (entries[:, 3] + entries[:, 7])[entries[:, 7] > 1].max(initial=0) * shape.kv_heads
    if used > slots:
        raise ValueError(f"case {name} needs {used} slots and has {slots}")
    history = _history(shape, batch, random, 256)
    k_scale, v_scale = (0.37, 1.9) if shape.kv == "FP8" else (1.0, 1.0)
    softmax_scale = float(np.float32(2.0 * shape.head_dim**-0.5 / k_scale))
    q = random.standard_normal((step.tokens, width)).astype(ml_dtypes.bfloat16)
    expected = np.full((step.tokens, width), np.nan)
    for request, (begin, end) in enumerate(zip(batch.query_start[:-1], batch.query_start[1:], strict=True)):
        keys = _decoded(history["keys"][request], float(np.float32(k_scale)))
        values = _decoded(history["values"][request], float(np.float32(v_scale)))
        rows = q[begin:end].astype(np.float64).reshape(-1, shape.q_heads, shape.head_dim)
        positions = batch.positions[begin:end]
        result = attention(rows, keys, values, positions, softmax_scale, shape.window, shape.softcap)
        expected[begin:end] = result.reshape(-1, width)
    arrays: dict[str, Any] = {
        "items": items,
        "q": q,
        "kv": history["kv"],
        "block_tables": history["block_tables"],
        "positions": np.concatenate([batch.positions, np.zeros(step.tokens - tokens, np.int32)]),
        "out": np.zeros((step.tokens, width), ml_dtypes.bfloat16),
        # Poison: partial results that were not written must not be read.
        "workspace": np.full(
            slots_of(shape.programs, shape.block_q) * shape.block_q * (padded(shape.head_dim) + 2), np.nan, np.float32
        ),
        "semaphores": np.zeros(slots, np.int32),
    }
    outcome: dict[str, Any] = {"out": expected, "semaphores": np.zeros(slots)}
    tolerance = {"out": "bf16", "semaphores": "exact"}
    if shape.kv == "FP8":
        arrays |= {"k_scale": np.array([k_scale], np.float32), "v_scale": np.array([v_scale], np.float32)}
    if shape.amax:
        arrays["out_amax"] = np.zeros(step.tokens, np.float32)
        outcome["out_amax"] = np.abs(expected).max(axis=1)
        tolerance["out_amax"] = "bf16"
    if shape.out == "FP8":
        out_scale = np.float32(0.006)  # the largest outputs saturate
        arrays |= {"out": np.zeros((step.tokens, width), np.uint8), "out_scale": np.array([out_scale])}
        outcome["out"] = np.clip(expected / float(out_scale), -E4M3_MAX, E4M3_MAX)
        tolerance["out"] = "fp8"
    scalars = {
        "kv_block_stride": history["kv"].strides[0],
        "block_table_stride": history["block_tables"].shape[1],
        "softmax_scale": softmax_scale,
    }
    return Case(name, shape.constants, step, arrays, scalars, outcome, tolerance, (shape.config,))


MIXED = Batch((1, 7, 1, 18, 1), (15, 0, 16, 30, 100))
"""Decoding and prefilling requests, histories that end inside, at and after a block's end."""

DECODE = Batch((1, 1, 1, 1, 1), (0, 14, 15, 16, 130))

_WHOLE = 1 << 20
"""Splits of this many KV tiles: one a tile."""


def attention_cases(_target: Target) -> Iterator[Case]:
    """Yields cases: every shape of heads, storage and output; one split and many."""
    small = Shape(9, 3, 64, "BF16")
    yield attention_case("decode", small, DECODE, _WHOLE, bucket=8)
    yield attention_case("mixed", small, MIXED, _WHOLE, bucket=32)
    yield attention_case("mixed split", replace(small, programs=9), MIXED, 1, bucket=32)
    grouped = Shape(8, 1, 64, "FP8", out="FP8", block_kv=64, programs=3)
    yield attention_case("grouped", grouped, MIXED, _WHOLE)
    yield attention_case("grouped split", grouped, DECODE, 1)
    wide = Shape(4, 4, 128, "FP8", amax=1, block_q=32, warps=2)
    yield attention_case("ungrouped", wide, MIXED, 2)
    yield attention_case("two levels", Shape(16, 1, 128, "FP8", programs=8), Batch((1, 2), (580, 3)), 1)
    yield attention_case("two levels bf16", Shape(2, 1, 64, "BF16", warps=1), Batch((3,), (1100,)), 2)
    yield attention_case("tall", Shape(8, 2, 128, "BF16", block_q=64, block_kv=32), Batch((33, 1), (3, 40)), 2)
    yield attention_case("no prefetch", Shape(8, 2, 64, "FP8", prefetch=0, programs=8), MIXED, 1)
    local = Shape(8, 2, 64, "BF16", window=20)
    yield attention_case("window", local, MIXED, _WHOLE, bucket=32)
    yield attention_case("window split", replace(local, block_kv=16, programs=12), MIXED, 1, bucket=32)
    narrow = Shape(4, 1, 128, "FP8", window=5, block_q=32, softcap=5.0, programs=8)
    yield attention_case("narrow window", narrow, Batch((20, 1), (30, 77)), 1)
    yield attention_case("softcap", Shape(4, 2, 64, "BF16", softcap=3.0), MIXED, 2, bucket=32)
    yield attention_case("heads of 96", Shape(4, 4, 96, "BF16", programs=9), MIXED, 1, bucket=32)
    yield attention_case("heads of 96 in bytes", Shape(4, 2, 96, "FP8", prefetch=0), DECODE, 2)
    yield attention_case("heads of 96 in words", Shape(4, 2, 96, "FP8", out="FP8"), DECODE, _WHOLE)
    yield attention_case("heads of 256", Shape(4, 2, 256, "BF16", window=40, warps=8), MIXED, _WHOLE)
    yield attention_case("heads of 256 in words", Shape(4, 1, 256, "FP8", amax=1, softcap=50.0), DECODE, 1)


def schedule_case(name: str, shape: Shape, batch: Batch, bucket: Step) -> Case:
    """Returns a case of ``schedule`` for the attention of `shape`."""
    tokens = len(batch.positions)
    entries = work_list(batch, shape.values, chosen_length(batch, shape.values))
    words = list_words(shape.values, bucket)
    expected = np.full(words, np.nan)
    expected[0] = len(entries)
    expected[HEADER.value : HEADER.value + entries.size] = entries.ravel()
    starts = np.full(bucket.requests + 1, tokens, np.int32)
    starts[: len(batch.query_start)] = batch.query_start
    arrays = {
        "counts": np.array([tokens, len(batch.tokens), 1, 0], np.int32),
        "query_start": starts,
        "positions": np.concatenate([batch.positions, np.full(bucket.tokens - tokens, 7, np.int32)]),
        "items": np.full(words, -1, np.int32),
    }
    constants = {"Q_HEADS": shape.q_heads, "KV_HEADS": shape.kv_heads, "WINDOW": shape.window}
    tiles = {"BLOCK_Q": shape.block_q, "BLOCK_KV": shape.block_kv}
    config = Config.of(4, 1, None, PROGRAMS=shape.programs, **tiles)
    return Case(name, constants, bucket, arrays, {}, {"items": expected}, {"items": "exact"}, (config,))


def schedule_cases() -> Iterator[Case]:
    """Yields cases: few requests with long histories, many with short ones, prompts, and mixtures."""
    one = Shape(16, 1, 128, "FP8", block_kv=64, programs=304)
    yield schedule_case("one", one, Batch((1,), (0,)), Step(1, 1))
    yield schedule_case("long", one, Batch((1,), (131071,)), Step(1, 1))
    yield schedule_case("few", one, Batch((1, 1, 1), (5000, 17, 900)), Step(4, 4))
    random = np.random.default_rng(3)
    many = tuple(int(x) for x in random.integers(0, 4000, 40))
    eight = Shape(32, 8, 128, "FP8", block_kv=64, programs=304)
    yield schedule_case("many", eight, Batch((1,) * 40, many), Step(64, 64))
    yield schedule_case("mixed", Shape(9, 3, 64, "BF16", programs=64), MIXED, Step(32, 8))
    tall = Shape(32, 8, 128, "FP8", block_q=128, block_kv=64, programs=304)
    yield schedule_case("prompts", tall, Batch((1, 700, 1, 900), (4000, 0, 12, 3000)), Step(2048, 32))
    local = replace(one, window=1024)
    yield schedule_case("window", local, Batch((1, 1), (131071, 300)), Step(2, 2))
    local = replace(tall, window=100, programs=64)
    yield schedule_case("windows of prompts", local, Batch((1, 300, 70), (4000, 50, 0)), Step(512, 8))
    yield schedule_case("empty", one, Batch((), ()), Step(2, 2))
    yield schedule_case("nothing new", one, Batch((1, 0, 2), (40, 30, 3000)), Step(4, 4))
