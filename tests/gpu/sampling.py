"""Inputs of the `sample` chain: rows of logits with what their requests ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.gpu.sample import SAMPLE_CHAIN
from paiton_kernels.gpu.spec import GpuKernelSpec, Step
from paiton_kernels.spec import MAX_STOP_TOKENS, MAX_TOP_LOGPROBS
from tests.gpu.harness import Call, best
from tests.gpu.launcher import Gpu


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for; the defaults ask for nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    draw: int = 0
    top_logprobs: int = 0


def sampling_arrays(logits: NDArray[np.float32], wishes: Sequence[Wish]) -> dict[str, NDArray[Any]]:
    """Returns the arguments of the chain by name, outputs included; slot s belongs to row s.

    Args:
        logits: f32[R][VOCAB].
        wishes: one for each row.
    """
    rows, vocab = logits.shape
    whole = {name: np.array([getattr(wish, name) for wish in wishes], np.int32) for name in ("top_k", "top_logprobs")}
    long = {name: np.array([getattr(wish, name) for wish in wishes], np.int64) for name in ("seed", "draw")}
    real = {
        name: np.array([getattr(wish, name) for wish in wishes], np.float32)
        for name in ("temperature", "top_p", "min_p")
    }
    return {
        **whole,
        **long,
        **real,
        "counts": np.array([rows, rows, rows, 0], np.int32),
        "logits": logits,
        "slot_of": np.arange(rows, dtype=np.int32),
        "repetition_penalty": np.ones(rows, np.float32),
        "presence_penalty": np.zeros(rows, np.float32),
        "frequency_penalty": np.zeros(rows, np.float32),
        "token_counts": np.zeros((rows, vocab), np.int32),
        "mask_row": np.full(rows, -1, np.int32),
        "bias_count": np.zeros(rows, np.int32),
        "stop_tokens": np.full((rows, MAX_STOP_TOKENS), -1, np.int32),
        "max_position": np.full(rows, 1 << 20, np.int32),
        "positions": np.zeros(rows, np.int32),
        "logit_rows": np.arange(rows, dtype=np.int32),
        "sampled": np.full(rows, -1, np.int32),
        "sampled_logprob": np.full(rows, np.nan, np.float32),
        "sampled_rank": np.full(rows, -1, np.int32),
        "top_tokens": np.full((rows, MAX_TOP_LOGPROBS), -1, np.int32),
        "top_values": np.full((rows, MAX_TOP_LOGPROBS), np.nan, np.float32),
        "last_token": np.zeros(rows, np.int32),
        "finished": np.zeros(rows, np.int32),
    }


def sampling_chain(gpu: Gpu, vocab: int, rows: int, chain: Sequence[GpuKernelSpec] = SAMPLE_CHAIN) -> list[Call]:
    """Returns the chain's calls for a bucket of `rows` requests."""
    return [best(spec, gpu.target, Step(rows, rows), VOCAB=vocab) for spec in chain]
