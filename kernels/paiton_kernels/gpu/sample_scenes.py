"""Batches for the tests of ``sample``: inputs by argument name, each row with parameters of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.gpu.sample_arithmetic import (
    BINS,
    GROUPS,
    TOP_SLOTS,
    chunk_count,
    chunk_slots,
    chunk_tokens,
)
from paiton_kernels.gpu.sample_stages import Batch
from paiton_kernels.gpu.spec import Step
from paiton_kernels.sample_reference import Row
from paiton_kernels.spec import MAX_BIASES, MAX_STOP_TOKENS, MAX_TOP_LOGPROBS

_SENTINEL = 0.5
"""What outputs and scratch hold before the chain: must be left wherever nothing is to be written."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A batch before the chain, and the parameters of its rows.

    Attributes:
        name: for the test's id.
        vocab: tokens.
        rows: parameters; a bucket has one row more.
        batch: arrays by argument name.
    """

    name: str
    vocab: int
    rows: tuple[Row, ...]
    batch: Batch

    @property
    def step(self) -> Step:
        """The bucket."""
        return Step(len(self.rows) + 1, len(self.rows) + 1)


def scratch_arrays(rows: int, vocab: int) -> Batch:
    """Returns scratch and outputs of a batch, holding what nobody may rely on."""
    chunks, slots = chunk_count(vocab), chunk_slots(vocab)
    padded = chunks * chunk_tokens(vocab)
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "processed": ((rows, padded), np.float32),
        "candidates": ((rows, padded), np.float32),
        "chunk_largest": ((rows, 2, slots), np.float32),
        "chunk_sum": ((rows, slots), np.float32),
        "chunk_best": ((rows, slots), np.int32),
        "group_largest": ((rows, slots, GROUPS), np.float32),
        "best_keys": ((rows, slots, TOP_SLOTS), np.int64),
        "row_histogram": ((rows, BINS), np.int32),
        "row_limit": ((rows,), np.int32),
        "chunk_mass": ((rows, 3, slots), np.int64),
        "chunk_candidates": ((rows, slots), np.int32),
        "sampled": ((rows,), np.int32),
        "sampled_logprob": ((rows,), np.float32),
        "sampled_rank": ((rows,), np.int32),
        "top_tokens": ((rows, MAX_TOP_LOGPROBS), np.int32),
        "top_values": ((rows, MAX_TOP_LOGPROBS), np.float32),
    }
    return {
        name: np.full(shape, _SENTINEL if kind is np.float32 else 77, kind) for name, (shape, kind) in shapes.items()
    }


def new_scene(name: str, logits: NDArray[np.float32], rows: Sequence[Row], seed: int = 0) -> Scene:
    """Returns a scene with a random history, slots in random order, and nothing masked.

    Args:
        name: of the scene.
        logits: f32[rows][VOCAB].
        rows: parameters of the rows.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    count, vocab = logits.shape
    bucket, slots = count + 1, count + 3
    padding = np.full((count, 64 - vocab % 64), 1e9, np.float32)  # beyond the vocabulary: must never be chosen
    history = random.integers(0, 3, (slots, vocab), np.int32) * (random.random((slots, vocab)) < 0.05)
    history |= np.where(random.random((slots, vocab)) < 0.05, np.int32(-(1 << 31)), np.int32(0))
    columns: dict[str, tuple[str, type]] = {
        "temperature": ("temperature", np.float32),
        "top_k": ("top_k", np.int32),
        "top_p": ("top_p", np.float32),
        "min_p": ("min_p", np.float32),
        "repetition_penalty": ("repetition", np.float32),
        "presence_penalty": ("presence", np.float32),
        "frequency_penalty": ("frequency", np.float32),
        "top_logprobs": ("top_logprobs", np.int32),
    }
    batch: dict[str, NDArray[Any]] = {
        arg: np.array([getattr(row, field) for row in (*rows, Row())], kind) for arg, (field, kind) in columns.items()
    }
    batch |= scratch_arrays(bucket, vocab)
    batch |= {
        "counts": np.array([2 * count, count, count, 0], np.int32),
        "logits": np.concatenate([logits, padding], axis=1),
        "slot_of": random.permutation(slots)[:bucket].astype(np.int32),
        "seed": np.array([row.seed for row in (*rows, Row())], np.uint64).view(np.int64),
        "draw": np.array([row.draw for row in (*rows, Row())], np.uint64).view(np.int64),
        "token_counts": history.astype(np.int32),
        "mask_row": np.full(bucket, -1, np.int32),
        "mask": np.zeros((bucket, -(-vocab // 32)), np.int32),
        "bias_count": np.zeros(bucket, np.int32),
        "bias_tokens": np.zeros((bucket, MAX_BIASES), np.int32),
        "bias_values": np.full((bucket, MAX_BIASES), 1e9, np.float32),  # beyond the count: must not apply
        "stop_tokens": np.full((bucket, MAX_STOP_TOKENS), -1, np.int32),
        "positions": random.integers(0, 100, 2 * bucket, np.int32),
        "logit_rows": random.permutation(2 * count).astype(np.int32)[:bucket],
        "max_position": np.full(bucket, 1000, np.int32),
        "last_token": np.full(slots, 77, np.int32),
        "finished": np.full(slots, 77, np.int32),
    }
    return Scene(name, vocab, tuple(rows), batch)


def constrain(scene: Scene, row: int, allowed: NDArray[np.int64]) -> None:
    """Lets a row have these tokens only."""
    bits = np.zeros(scene.batch["mask"].shape[1] * 32, np.uint8)
    bits[allowed] = 1
    mask_row = (row + 1) % len(scene.rows)  # not the row's own number
    scene.batch["mask"][mask_row] = np.packbits(bits, bitorder="little").view(np.int32)
    scene.batch["mask_row"][row] = mask_row


def add_biases(scene: Scene, row: int, tokens: Sequence[int] | NDArray[np.int64], values: Sequence[float]) -> None:
    """Gives a row biases, in this order."""
    scene.batch["bias_count"][row] = len(tokens)
    scene.batch["bias_tokens"][row, : len(tokens)] = tokens
    scene.batch["bias_values"][row, : len(tokens)] = values


def end_request(scene: Scene, row: int, *, stop_token: int = -1, at_last_position: bool = False) -> None:
    """Gives a row a stop token, or a last position that it reaches."""
    scene.batch["stop_tokens"][row, MAX_STOP_TOKENS // 2] = stop_token
    if at_last_position:
        position = scene.batch["positions"][scene.batch["logit_rows"][row]]
        scene.batch["max_position"][row] = position + 1
