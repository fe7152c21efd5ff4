"""Batches for the tests of ``sample``, and what the numpy reference makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paiton_kernels.sample_reference import (
    Row,
    best_tokens,
    log_probabilities,
    processed_logits,
    rank_of,
    sampled_token,
)
from paiton_kernels.spec import MASK_BITS, MAX_BIASES, MAX_STOP_TOKENS, MAX_TOP_LOGPROBS, Variant
from tests.cpu.kernels.harness import Array, Level

UNTOUCHED = 77
"""What outputs hold before the kernel runs."""

_FIELDS = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "repetition": np.float32,
    "presence": np.float32,
    "frequency": np.float32,
    "seed": np.uint64,
    "draw": np.uint64,
    "top_logprobs": np.int32,
}
_PENALTIES = ("repetition", "presence", "frequency")


@dataclass
class Batch:
    """Rows with parameters of their own, in a bucket with one row, and two slots, to spare.

    Args:
        rows: one for each row of logits.
        logits: f32[rows][vocab + some]: what lies behind the vocabulary must never be chosen.
        vocab: tokens.
    """

    rows: Sequence[Row]
    logits: Array
    vocab: int
    arrays: dict[str, Array] = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.vocab)
        count = len(self.rows)
        bucket, slots = count + 1, count + 2
        seen = random.random((slots, self.vocab))
        history = np.where(seen < 0.1, random.integers(1, 4, seen.shape), 0).astype(np.int32)
        history[random.random(seen.shape) < 0.1] |= -(1 << 31)
        columns = {
            f"{name}_penalty" if name in _PENALTIES else name: np.array([getattr(row, name) for row in self.rows], kind)
            for name, kind in _FIELDS.items()
        }
        self.arrays = {
            "counts": np.array([2 * count, count, count, 0], np.int32),
            "logits": self.logits,
            "slot_of": random.permutation(slots)[:count].astype(np.int32),
            "mask_row": np.full(count, -1, np.int32),
            "mask": np.zeros((count, -(-self.vocab // MASK_BITS)), np.int32),
            "bias_count": np.zeros(count, np.int32),
            "bias_tokens": np.zeros((count, MAX_BIASES), np.int32),
            "bias_values": np.full((count, MAX_BIASES), 1e9, np.float32),  # behind the count: must not apply
            "stop_tokens": np.full((count, MAX_STOP_TOKENS), -1, np.int32),
            "max_position": np.full(count, 1000, np.int32),
            "positions": random.integers(0, 100, 2 * count, np.int32),
            "logit_rows": random.permutation(2 * count)[:count].astype(np.int32),
            "sampled": np.full(bucket, UNTOUCHED, np.int32),
            "sampled_logprob": np.full(bucket, UNTOUCHED, np.float32),
            "sampled_rank": np.full(bucket, UNTOUCHED, np.int32),
            "top_tokens": np.full((bucket, MAX_TOP_LOGPROBS), UNTOUCHED, np.int32),
            "top_values": np.full((bucket, MAX_TOP_LOGPROBS), UNTOUCHED, np.float32),
            "last_token": np.full(slots, UNTOUCHED, np.int32),
            "finished": np.full(slots, UNTOUCHED, np.int32),
            "token_counts": history,
            **columns,
        }

    def allow(self, row: int, tokens: Sequence[int] | Array) -> None:
        """Lets a row have these tokens only, by a mask that is not at the row's own number."""
        bits = np.zeros(self.arrays["mask"].shape[1] * MASK_BITS, np.uint8)
        bits[np.asarray(tokens, np.int64)] = 1
        mask_row = (row + 1) % len(self.rows)
        self.arrays["mask"][mask_row] = np.packbits(bits, bitorder="little").view(np.int32)
        self.arrays["mask_row"][row] = mask_row

    def bias(self, row: int, tokens: Sequence[int] | Array, values: Sequence[float] | Array) -> None:
        """Gives a row biases."""
        self.arrays["bias_count"][row] = len(tokens)
        self.arrays["bias_tokens"][row, : len(tokens)] = tokens
        self.arrays["bias_values"][row, : len(tokens)] = values

    def run(self, level: Level, variant: Variant, workers: int = 1) -> dict[str, Array]:
        """Runs the kernel on a copy, and returns the arrays as it leaves them."""
        arrays = {name: array.copy() for name, array in self.arrays.items()}
        level.run(variant, {**arrays, "logits_stride": self.logits.shape[1]}, workers=workers)
        return arrays

    def processed(self, row: int) -> Array:
        """Returns f32[vocab]: the row's logits after biases, penalties and mask."""
        arrays, vocab = self.arrays, self.vocab
        allowed = np.ones(vocab, bool)
        if arrays["mask_row"][row] >= 0:
            words = arrays["mask"][arrays["mask_row"][row]].view(np.uint8)
            allowed = np.unpackbits(words, bitorder="little")[:vocab].astype(bool)
        bias = np.zeros(vocab, np.float32)
        count = arrays["bias_count"][row]
        bias[arrays["bias_tokens"][row, :count]] = arrays["bias_values"][row, :count]
        history = arrays["token_counts"][arrays["slot_of"][row]]
        return processed_logits(self.logits[row, :vocab], history, allowed, self.rows[row], bias)

    def token(self, row: int) -> tuple[int, bool]:
        """Returns the row's token, and whether rounding cannot make it another."""
        return sampled_token(self.processed(row), self.rows[row])

    def report(self, row: int, token: int) -> tuple[float, int, Array, Array]:
        """Returns what is reported of a row: the token's log-probability and rank, best tokens and theirs."""
        logits = self.logits[row, : self.vocab]
        logprobs = log_probabilities(logits)
        best = best_tokens(logits, max(self.rows[row].top_logprobs, 0))
        return float(logprobs[token]), rank_of(logits, token), best, logprobs[best]


def random_logits(rows: int, vocab: int) -> Array:
    """Returns f32[rows][vocab + 3], with large ones behind the vocabulary."""
    logits = np.random.default_rng(vocab).normal(0, 3, (rows, vocab + 3)).astype(np.float32)
    logits[:, vocab:] = 1e9
    return logits
