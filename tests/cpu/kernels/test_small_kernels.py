"""rope_table, embed, all_reduce and history."""

from __future__ import annotations

import numpy as np
import pytest

from paiton_kernels.all_reduce import all_reduce
from paiton_kernels.embed import embed
from paiton_kernels.families import FAMILIES
from paiton_kernels.history import history
from paiton_kernels.numeric_formats import bf16_bits, bf16_values
from paiton_kernels.rope_table import rope_table
from tests.cpu.kernels.harness import Array, Level
from tests.numerics import assert_close, assert_same_bits

WORKERS = (1, 2, 3, 5)
ROPE = FAMILIES["rope_table"].variant(HEAD_DIM=64)
EMBED = FAMILIES["embed"].variant(HIDDEN=100, ROWS=7, ROW_STRIDE=208)
HISTORY = FAMILIES["history"].variant(VOCAB=1003)
REDUCE = {
    (ranks, mode): FAMILIES["all_reduce"].variant(RANKS=ranks, HIDDEN=100, MODE=mode)
    for ranks in (1, 3, 16)
    for mode in ("STORE", "ADD")
}


@pytest.fixture(scope="module", autouse=True)
def _compile(level: Level) -> None:
    level.load([ROPE, EMBED, HISTORY, *REDUCE.values()])


def counts(tokens: int) -> Array:
    return np.array([tokens, 1, 1, 0], np.int32)


@pytest.mark.parametrize("workers", WORKERS)
def test_rope_table_is_accurate_at_every_position(level: Level, workers: int) -> None:
    positions = np.unique(np.geomspace(1, 131072, 300).astype(np.int32)) - 1
    inv_freq = (1e5 ** -(np.arange(32) / 32)).astype(np.float32)
    out = np.zeros((len(positions), 64), np.float32)
    values = {"counts": counts(len(out)), "positions": positions, "inv_freq": inv_freq, "out": out}
    level.run(ROPE, values, workers=workers)
    expected = rope_table(positions, inv_freq)
    ulp = np.spacing(np.abs(expected).astype(np.float32))
    assert np.max(np.abs(out - expected) / ulp) <= 0.51


@pytest.mark.parametrize("workers", WORKERS)
def test_embed_copies_the_rows_of_tokens_and_of_slots_and_zeroes_the_others(level: Level, workers: int) -> None:
    rng = np.random.default_rng(0)
    table = bf16_bits(rng.standard_normal((7, 104)))
    ids = np.array([10, 16, 9, 17, 12, 0, 2**31 - 1, -1, -3], np.int32)
    last_token = np.array([15, 11, 9], np.int32)
    out = np.full((len(ids), 100), np.nan, np.float32)
    stored = table.ravel()[: 6 * 104 + 100]
    values: dict[str, Array | float] = {
        "counts": counts(len(ids)),
        "token_ids": ids,
        "last_token": last_token,
        "table": stored,
        "first_token": 10,
        "out": out,
    }
    level.run(EMBED, values, workers=workers)
    ids[-2:] = last_token[[0, 2]]
    assert_same_bits(out, embed(ids, bf16_values(table[:, :100]), 10).astype(np.float32))


@pytest.mark.parametrize(("ranks", "mode"), REDUCE)
def test_all_reduce_adds_in_rank_order(level: Level, ranks: int, mode: str) -> None:
    rng = np.random.default_rng(ranks)
    parts = [rng.standard_normal((5, 100)).astype(np.float32) for _ in range(ranks)]
    before = rng.standard_normal((5, 100)).astype(np.float32)
    results = []
    for workers in WORKERS:
        out = before.copy()
        values: dict[str, Array | float] = {f"part{rank}": part for rank, part in enumerate(parts)}
        level.run(REDUCE[ranks, mode], {**values, "counts": counts(5), "out": out}, workers=workers)
        results.append(out)
    in_order = parts[0]
    for part in parts[1:]:
        in_order = in_order + part
    for out in results:
        assert_same_bits(out, in_order if mode == "STORE" else before + in_order)
    assert_close(results[0], all_reduce(parts, before if mode == "ADD" else None), "f32")


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(("length", "prompt"), [(1500, 1100), (700, 0), (3, 3), (0, 0), (5, 9)])
def test_history_replaces_the_counts_of_one_slot(level: Level, workers: int, length: int, prompt: int) -> None:
    rng = np.random.default_rng(length)
    tokens = np.minimum(rng.geometric(0.01, 1600), 1002).astype(np.int32)  # some often, most never
    tokens[:2] = [0, 1002]
    token_counts = rng.integers(-5, 5, (3, 1003)).astype(np.int32)
    expected = token_counts.copy()
    expected[1] = history(tokens[:length], prompt, 1003)
    values: dict[str, Array | float] = {
        "history_slot": np.array([1], np.int32),
        "history_length": np.array([length], np.int32),
        "history_prompt_length": np.array([prompt], np.int32),
        "history_tokens": tokens,
        "token_counts": token_counts,
    }
    level.run(HISTORY, values, workers=workers)
    assert_same_bits(token_counts, expected)
