"""sample: against a sort, against Philox's published vectors, and as a distribution."""

from __future__ import annotations

import numpy as np
import pytest

from paiton_kernels.families import FAMILIES
from paiton_kernels.sample import kept_tokens, philox4x32, sample
from tests.cpu.kernels.harness import Array, Level

VOCAB = 5003
VARIANTS = {vocab: FAMILIES["sample"].variant(VOCAB=vocab) for vocab in (8, VOCAB)}


@pytest.fixture(scope="module", autouse=True)
def _compile(level: Level) -> None:
    level.load(list(VARIANTS.values()))


def run(
    level: Level,
    logits: Array,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    first_draw: int = 0,
    workers: int = 1,
) -> Array:
    """Samples every row of f32[R][VOCAB + 3]; row r uses draw `first_draw` + r."""
    rows = len(logits)
    sampled = np.full(rows, -1, np.int32)
    values: dict[str, Array | float] = {
        "counts": np.array([rows, rows, rows, 0], np.int32),
        "logits": logits,
        "logits_stride": logits.shape[1],
        "temperature": np.full(rows, temperature, np.float32),
        "top_k": np.full(rows, top_k, np.int32),
        "top_p": np.full(rows, top_p, np.float32),
        "seed": np.full(rows, seed, np.uint64),
        "draw": np.arange(first_draw, first_draw + rows).astype(np.uint64),
        "sampled": sampled,
    }
    level.run(VARIANTS[logits.shape[1] - 3], values, workers=workers)
    return sampled


def random_logits(rows: int, vocab: int = VOCAB) -> Array:
    logits = np.random.default_rng(vocab).normal(0, 3, (rows, vocab + 3)).astype(np.float32)
    logits[:, vocab:] = 1e9  # beyond the vocabulary: must never be chosen
    return logits


def test_philox_agrees_with_the_published_vectors() -> None:
    """Random123's kat_vectors, philox4x32 with 10 rounds."""
    ones = 0xFFFFFFFF
    assert philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox4x32((ones,) * 4, (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


def test_greedy_takes_the_first_of_equals(level: Level) -> None:
    logits = random_logits(4)
    logits[1, [700, 41, 4000]] = 50
    logits[2, :VOCAB] = -np.inf
    logits[3, :VOCAB] = -1
    logits[3, [9, 10]] = [0.0, -0.0]
    logits[0, 3] = np.nan
    assert run(level, logits).tolist() == [int(np.nanargmax(logits[0, :VOCAB])), 41, 0, 9]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1, 0, 1),
        (0.7, 50, 1),
        (1.3, 0, 0.9),
        (0.8, 40, 0.95),
        (2, 1, 1),
        (1, 0, 0),
        (1, 0, 1e-9),
        (5, 0, 0.5),
        (1, 9999, 1),
    ],
)
def test_agrees_with_a_sort(level: Level, temperature: float, top_k: int, top_p: float) -> None:
    logits = random_logits(64)
    sampled = run(level, logits, temperature, top_k, top_p, seed=2**63 + 5, first_draw=2**32 - 8, workers=3)
    for row, token in enumerate(sampled):
        p = float(np.float32(top_p))
        expected, margin = sample(
            logits[row, :VOCAB], float(np.float32(temperature)), top_k, p, 2**63 + 5, 2**32 - 8 + row
        )
        assert token == expected or margin < 1e-6, f"row {row}: {token}, not {expected} (margin {margin:.3g})"


@pytest.mark.parametrize(("top_k", "top_p", "kept"), [(3, 1.0, {2, 5, 0}), (0, 0.45, {2, 5, 0}), (5, 0.65, {2, 5, 0})])
def test_ties_at_the_limit_go_to_the_lower_token(level: Level, top_k: int, top_p: float, kept: set[int]) -> None:
    """Eight tokens, two probable ones and six equal ones: 0.2 + 0.2 + 6 * 0.1."""
    row = np.log(np.array([1, 1, 2, 1, 1, 2, 1, 1, 1e30, 1e30, 1e30], np.float32) / 10)
    assert set(kept_tokens(row[:8], 1.0, top_k, top_p).tolist()) == kept
    logits = np.tile(row, (400, 1)).astype(np.float32)
    assert set(run(level, logits, 1.0, top_k, top_p).tolist()) == kept


def test_frequencies_follow_the_probabilities(level: Level) -> None:
    draws = 4000
    probabilities = np.array([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.015, 0.005])
    row = np.concatenate([np.log(probabilities), [99, 99, 99]]).astype(np.float32)
    sampled = run(level, np.tile(row, (draws, 1)), 1.0, seed=12345)
    expected = probabilities * draws
    chi_squared = np.sum((np.bincount(sampled, minlength=8) - expected) ** 2 / expected)
    assert chi_squared < 24.3  # 99.9 % of the distribution with 7 degrees of freedom
