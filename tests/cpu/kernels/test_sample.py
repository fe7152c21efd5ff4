"""sample: against a sort, against Philox's published vectors, and as a distribution."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import inf, log, nan

import numpy as np
import pytest

from paiton_kernels.families import FAMILIES
from paiton_kernels.sample import kept_tokens, philox4x32
from paiton_kernels.sample_reference import Row
from paiton_kernels.spec import MAX_BIASES, MAX_STOP_TOKENS
from tests.cpu.kernels.harness import Array, Level
from tests.cpu.kernels.sampling import UNTOUCHED, Batch, random_logits
from tests.numerics import assert_close, assert_same_bits

VOCAB = 5003
VARIANTS = {vocab: FAMILIES["sample"].variant(VOCAB=vocab) for vocab in (8, VOCAB)}
DRAWN = Row(temperature=1.0, seed=2**63 + 5, draw=2**32 - 8)


@pytest.fixture(scope="module", autouse=True)
def _compile(level: Level) -> None:
    level.load(list(VARIANTS.values()))


def batch_of(rows: list[Row], logits: Array | None = None, vocab: int = VOCAB) -> Batch:
    """Returns a batch in which every row has a draw of its own."""
    drawn = [replace(row, draw=row.draw + place) for place, row in enumerate(rows)]
    return Batch(drawn, random_logits(len(rows), vocab) if logits is None else logits, vocab)


def run(level: Level, batch: Batch, workers: int = 1) -> dict[str, Array]:
    return batch.run(level, VARIANTS[batch.vocab], workers)


def sampled(level: Level, batch: Batch, workers: int = 1) -> list[int]:
    return [int(token) for token in run(level, batch, workers)["sampled"][: len(batch.rows)]]


def assert_agrees(level: Level, batch: Batch, workers: int = 3) -> None:
    """Compares with the reference; rows where rounding decides are left out, and must be few."""
    expected = [batch.token(row) for row in range(len(batch.rows))]
    found = sampled(level, batch, workers)
    assert sum(stable for _, stable in expected) >= len(expected) - 2
    assert [a for a, (_, stable) in zip(found, expected, strict=True) if stable] == [
        b for b, stable in expected if stable
    ]


def test_philox_agrees_with_the_published_vectors() -> None:
    """Random123's kat_vectors, philox4x32 with 10 rounds."""
    ones = 0xFFFFFFFF
    assert philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox4x32((ones,) * 4, (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


def test_greedy_takes_the_first_of_equals(level: Level) -> None:
    logits = random_logits(6, VOCAB)
    logits[0, 3] = nan
    logits[1, [700, 41, 4000]] = 50
    logits[2, :VOCAB] = -1
    logits[2, [9, 10]] = [0.0, -0.0]
    logits[3, :VOCAB] = -1
    logits[3, [9, 10]] = [-0.0, 0.0]
    logits[4, 4999:5003] = [60, inf, inf, 60]
    logits[5, 5002] = 70
    batch = batch_of([Row()] * 6, logits)
    assert sampled(level, batch) == [int(np.nanargmax(logits[0, :VOCAB])), 41, 9, 9, 5000, 5002]


@pytest.mark.parametrize("row", [Row(), DRAWN, replace(DRAWN, top_k=5, top_p=0.5, min_p=0.1)])
def test_token_0_where_nothing_can_be_chosen(level: Level, row: Row) -> None:
    logits = random_logits(5, VOCAB)
    logits[1, :VOCAB] = -inf
    logits[2, :VOCAB] = nan
    logits[3, :VOCAB] = -inf
    logits[3, :5] = nan
    logits[4, [3, 8]] = [-inf, nan]
    batch = batch_of([row] * 5, logits)
    batch.allow(0, [])
    batch.allow(4, [3, 8])
    assert sampled(level, batch) == [0] * 5


@pytest.mark.parametrize(
    "row",
    [
        Row(temperature=1),
        Row(temperature=0.7, top_k=50),
        Row(temperature=1.3, top_p=0.9),
        Row(temperature=0.8, top_k=40, top_p=0.95),
        Row(temperature=2, top_k=1),
        Row(temperature=1, top_p=0),
        Row(temperature=1, top_p=1e-9),
        Row(temperature=5, top_p=0.5),
        Row(temperature=3, top_p=0.9999),
        Row(temperature=1, top_k=9999),
        Row(temperature=4, top_k=312),  # as many as the selection has groups
        Row(temperature=4, top_k=313),
        Row(temperature=1e-6),
        Row(temperature=1.5, min_p=0.02),
        Row(temperature=1.5, min_p=1),
        Row(temperature=1.5, min_p=2),
        Row(temperature=3, min_p=0.001, top_k=100, top_p=0.8),
        Row(temperature=2, repetition=1.3, presence=0.5, frequency=0.25),
        Row(temperature=1, repetition=0.8, presence=-1, frequency=-0.5, top_k=30),
        Row(presence=2),
        Row(frequency=2),
        Row(repetition=2),
    ],
    ids=lambda row: "-".join(f"{name}{value}" for name, value in asdict(row).items() if value != getattr(Row(), name)),
)
def test_agrees_with_a_sort(level: Level, row: Row) -> None:
    assert_agrees(level, batch_of([replace(row, seed=DRAWN.seed, draw=DRAWN.draw)] * 24))


def test_penalties_are_of_the_slots_history(level: Level) -> None:
    """Each kind changes the token of every row whose best token has what it penalises."""
    logits = np.zeros((6, VOCAB + 3), np.float32)
    logits[:, [10, 20, 30]] = [4, 3.5, 1]
    rows = [
        Row(repetition=2),
        Row(repetition=2),
        Row(presence=1),
        Row(presence=1),
        Row(frequency=0.25),
        Row(repetition=2),
    ]
    batch = batch_of(rows, logits)
    in_prompt, once, thrice = -(1 << 31), 1, 3
    history = np.zeros_like(batch.arrays["token_counts"])
    for row, seen in enumerate((in_prompt, once, in_prompt, once, thrice)):
        history[batch.arrays["slot_of"][row], 10] = seen
    logits[5, [10, 20]] = [-1, -3]
    logits[5, 30:] = logits[5, :10] = logits[5, 11:20] = logits[5, 21:30] = -9
    logits[5, VOCAB:] = 9
    history[batch.arrays["slot_of"][5], 10] = in_prompt | once  # a negative logit is multiplied: -2, still the best
    batch.arrays["token_counts"] = history
    assert sampled(level, batch) == [20, 20, 10, 20, 20, 10]


def test_masks_and_biases_agree_with_a_sort(level: Level) -> None:
    random = np.random.default_rng(3)
    rows = [replace(DRAWN, temperature=t, top_k=k, presence=0.5) for t in (0.0, 1.0, 3.0) for k in (0, 20)] * 5
    batch = batch_of(rows)
    for row in range(len(rows)):
        if row % 4:
            batch.allow(row, random.choice(VOCAB, 1 + 40 * (row % 9), replace=False))
        if row % 3:
            tokens = random.choice(VOCAB, [0, MAX_BIASES, 7][row % 3], replace=False)
            values = random.normal(0, 8, len(tokens))
            values[::5] = -inf
            batch.bias(row, tokens, values)
    assert_agrees(level, batch)


def test_biases_come_before_penalties_and_the_mask_after_them(level: Level) -> None:
    logits = np.zeros((4, 8 + 3), np.float32)
    logits[:, :8] = [1, 0, -inf, inf, nan, -1, -1, -1]
    batch = batch_of([Row(), Row(), Row(repetition=4), Row(presence=-100)], logits, 8)
    batch.arrays["token_counts"][:] = [0, 2, 0, 0, 0, 0, 0, 2]
    batch.bias(0, [3, 1, 4, 2], [-inf, 2, 50, 50])  # inf - inf, and what nothing can be added to
    batch.bias(1, [3, -1, 8, 5], [-100, 1e9, 1e9, 3])  # tokens that do not exist; inf stays
    batch.bias(2, [3, 1, 0], [-inf, 3.9, 0])  # 3.9 / 4 is less than 1
    batch.allow(3, [0, 5])
    assert sampled(level, batch) == [1, 3, 0, 0]


@pytest.mark.parametrize(("top_k", "top_p", "kept"), [(3, 1.0, {2, 5, 0}), (0, 0.45, {2, 5, 0}), (5, 0.65, {2, 5, 0})])
def test_ties_at_the_limit_go_to_the_lower_token(level: Level, top_k: int, top_p: float, kept: set[int]) -> None:
    """Eight tokens, two probable ones and six equal ones: 0.2 + 0.2 + 6 * 0.1."""
    row = np.log(np.array([1, 1, 2, 1, 1, 2, 1, 1, 1e30, 1e30, 1e30], np.float32) / 10)
    assert set(kept_tokens(row[:8], 1.0, top_k, top_p).tolist()) == kept
    logits = np.tile(row, (400, 1)).astype(np.float32)
    batch = batch_of([Row(temperature=1, top_k=top_k, top_p=top_p)] * 400, logits, 8)
    assert set(sampled(level, batch)) == kept


@pytest.mark.parametrize("top_k", [1, 2, 50])
def test_ties_over_many_groups_go_to_the_lower_token(level: Level, top_k: int) -> None:
    logits = np.zeros((40, VOCAB + 3), np.float32)
    logits[:, 4000] = 5
    batch = batch_of([replace(DRAWN, temperature=9, top_k=top_k)] * 40, logits)
    assert set(sampled(level, batch)) <= {4000, *range(top_k - 1)}
    assert_agrees(level, batch)


def test_frequencies_follow_the_probabilities(level: Level) -> None:
    draws = 4000
    probabilities = np.array([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.015, 0.005])
    row = np.concatenate([np.log(probabilities), [99, 99, 99]]).astype(np.float32)
    batch = batch_of([Row(temperature=1, seed=12345)] * draws, np.tile(row, (draws, 1)), 8)
    expected = probabilities * draws
    chi_squared = np.sum((np.bincount(sampled(level, batch), minlength=8) - expected) ** 2 / expected)
    assert chi_squared < 24.3  # 99.9 % of the distribution with 7 degrees of freedom


@pytest.mark.parametrize("vocab", [8, VOCAB])
def test_log_probabilities_and_ranks_are_of_the_logits_as_they_came(level: Level, vocab: int) -> None:
    logits = random_logits(22, vocab)
    logits[3, [1, 5]] = [nan, -inf]
    logits[4, [2, 3, 7]] = 20
    logits[5, :vocab] = 1.5
    logits[6, :vocab] = np.sort(logits[6, :vocab])
    logits[7, :vocab] = np.sort(logits[7, :vocab])[::-1]
    rows = [replace(DRAWN, temperature=2, presence=1, top_logprobs=wanted) for wanted in range(-1, 21)]
    batch = batch_of(rows, logits, vocab)
    batch.allow(9, [6, 7])
    batch.bias(10, [1], [50])
    after = run(level, batch, workers=2)
    for row, parameters in enumerate(rows):
        logprob, rank, best, values = batch.report(row, after["sampled"][row])
        if parameters.top_logprobs < 0:
            assert after["sampled_logprob"][row] == after["sampled_rank"][row] == UNTOUCHED
            continue
        assert_close(after["sampled_logprob"][row], logprob, "f32")
        assert after["sampled_rank"][row] == rank
        assert after["top_tokens"][row, : len(best)].tolist() == best.tolist()
        finite = np.isfinite(values)
        assert_close(after["top_values"][row, : len(best)][finite], values[finite], "f32")
        assert (after["top_values"][row, : len(best)][~finite] == -inf).all()
        assert (after["top_tokens"][row, len(best) :] == UNTOUCHED).all()
        assert (after["top_values"][row, len(best) :] == UNTOUCHED).all()


def test_log_probabilities_where_no_logit_is_finite(level: Level) -> None:
    logits = np.full((2, 8 + 3), -inf, np.float32)
    logits[1, [4, 6]] = inf
    after = run(level, batch_of([Row(top_logprobs=3)] * 2, logits, 8))
    assert after["sampled"].tolist() == [0, 4, UNTOUCHED]
    assert after["sampled_rank"].tolist() == [1, 1, UNTOUCHED]
    assert after["top_tokens"][:2, :3].tolist() == [[0, 1, 2], [4, 6, 0]]
    assert_close(after["top_values"][0, :3], [-log(8)] * 3, "f32")
    assert_close(after["sampled_logprob"][1], -log(2), "f32")


def test_the_state_of_the_slot_moves_on(level: Level) -> None:
    batch = batch_of([Row()] * 5)
    tokens = [batch.token(row)[0] for row in range(5)]
    slots = batch.arrays["slot_of"]
    batch.arrays["token_counts"][slots, tokens] = [0, 1, 7, -(1 << 31), -(1 << 31) | 3]
    before = {name: batch.arrays[name].copy() for name in ("last_token", "finished", "token_counts")}
    position = batch.arrays["positions"][batch.arrays["logit_rows"]]
    batch.arrays["stop_tokens"][1] = [*tokens[:1], *range(6), tokens[1]]
    batch.arrays["stop_tokens"][2] = [tokens[2], *[-1] * (MAX_STOP_TOKENS - 1)]
    batch.arrays["max_position"][3] = position[3] + 1
    batch.arrays["max_position"][4] = position[4] + 2
    after = run(level, batch, workers=2)
    before["last_token"][slots] = tokens
    before["finished"][slots] = [0, 1, 1, 1, 0]
    before["token_counts"][slots, tokens] += 1
    for name, expected in before.items():
        assert_same_bits(after[name], expected)


def test_rows_do_not_depend_on_their_neighbours_nor_on_workers(level: Level) -> None:
    """Ragged: every row with parameters of its own, and a bucket that is not full."""
    plain = [Row(), DRAWN, replace(DRAWN, top_k=9), replace(DRAWN, top_p=0.7), replace(DRAWN, min_p=0.1)]
    rows = [
        replace(row, top_logprobs=wanted, presence=presence) for row in plain for wanted, presence in ((-1, 0), (4, 1))
    ]
    batch = batch_of(rows)
    batch.allow(4, range(100, 200))
    batch.bias(5, [7], [15])
    together = run(level, batch)
    assert_same_bits(together["sampled"][-1:], np.array([UNTOUCHED], np.int32))
    for workers in (2, 3, 16):
        for name, array in run(level, batch, workers).items():
            assert_same_bits(array, together[name])
    for row, parameters in enumerate(rows):
        alone = Batch([batch.rows[row]], batch.logits[row : row + 1], VOCAB)
        for name in ("slot_of", "mask_row", "bias_count", "bias_tokens", "bias_values", "logit_rows"):
            alone.arrays[name] = batch.arrays[name][row : row + 1]
        for name in ("mask", "token_counts", "positions", "last_token", "finished"):
            alone.arrays[name] = batch.arrays[name]
        after = run(level, alone)
        for name in ("sampled", "sampled_logprob", "sampled_rank", "top_tokens", "top_values"):
            assert_same_bits(after[name][:1], together[name][row : row + 1])
        assert after["sampled_rank"][0] != UNTOUCHED or parameters.top_logprobs < 0
