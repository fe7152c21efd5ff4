"""``sample``: the next token of every logits row, and what of its request moves on with it.

Order of operations: biases (logit_bias); repetition, then frequency and presence penalties; mask; temperature; drop
what is less probable than `min_p` times the best; keep the `top_k` most probable tokens; of those, keep the smallest
set of most probable tokens whose share of the remaining mass reaches `top_p`, at least one; draw. Equal logits rank by
lower token id. The draw walks the kept tokens by id and takes the first whose running mass exceeds u times the kept
mass, with u the 53-bit uniform of Philox4x32-10 (Salmon et al., SC'11), key = seed, counter = draw. Temperature 0
takes the most probable token after biases, penalties and mask. NaN counts as -inf. If nothing is allowed, or all is
-inf, the token is 0, whether the mask allows it or not. Log-probabilities and ranks are of the logits as they came.

The GPU's chain (:mod:`paiton_kernels.gpu.sample`) has the same arguments and meaning.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.spec import (
    COUNTS,
    MAX_BIASES,
    MAX_STOP_TOKENS,
    MAX_TOP_LOGPROBS,
    WORKER_SCRATCH,
    WORKER_SCRATCH_STRIDE,
    Arg,
    KernelSpec,
    Macro,
    Value,
)

HISTOGRAM_BINS = 2048
"""Bins of one pass of the selection: 11 bits of the ordered logit."""

TOKEN_COUNTS = Arg(
    "token_counts",
    "mut i32*",
    "i32[slots][VOCAB]: bits 0-30 how often the slot's request generated the token, bit 31 if its prompt has it",
)


def _name(macros: Mapping[str, Value]) -> str:
    return f"v{macros['VOCAB']}"


def _scratch(macros: Mapping[str, Value], _max_tokens: int) -> int:
    """The bins, and for each token its processed logit (later its id), its mass and its key."""
    return 8 * HISTOGRAM_BINS + 3 * 4 * -(-int(macros["VOCAB"]) // 16) * 16


SAMPLE = KernelSpec(
    family="sample",
    args=(
        COUNTS,
        Arg("logits", "f32*", "f32[R][logits_stride]"),
        Arg("logits_stride", "i64", "elements from one row of logits to the next"),
        Arg("slot_of", "i32*", "i32[R]: the slot of the row's request, another one for each row"),
        Arg("temperature", "f32*", "f32[R]: 0 takes the most probable token"),
        Arg("top_k", "i32*", "i32[R]: 0 is off"),
        Arg("top_p", "f32*", "f32[R]: 1 is off"),
        Arg("min_p", "f32*", "f32[R]: 0 is off; the best token is kept whatever it is"),
        Arg("repetition_penalty", "f32*", "f32[R]: above 0; 1 is off"),
        Arg("presence_penalty", "f32*", "f32[R]: 0 is off"),
        Arg("frequency_penalty", "f32*", "f32[R]: 0 is off"),
        Arg("seed", "u64*", "u64[R]: the request's key"),
        Arg("draw", "u64*", "u64[R]: number of the draw in its request"),
        Arg("mask_row", "i32*", "i32[R]: row of mask, or -1 for an unconstrained row"),
        Arg("mask", "i32*", "i32[rows][ceil(VOCAB / 32)]: bit b of word w allows token 32 w + b"),
        Arg("bias_count", "i32*", "i32[R]: how many of the row's biases apply; 0 for none"),
        Arg("bias_tokens", "i32*", f"i32[R][{MAX_BIASES}]: the tokens, each once"),
        Arg("bias_values", "f32*", f"f32[R][{MAX_BIASES}]: what is added to their logits; -inf bans a token"),
        Arg(
            "top_logprobs",
            "i32*",
            f"i32[R]: how many of the best tokens to report, at most {MAX_TOP_LOGPROBS}; 0: the sampled one only;"
            " -1: nothing, so that the row's sampled_logprob and sampled_rank stay as they are",
        ),
        Arg("stop_tokens", "i32*", f"i32[R][{MAX_STOP_TOKENS}]: tokens that end the request, then -1"),
        Arg("max_position", "i32*", "i32[R]: the request ends when its next position reaches this"),
        Arg("positions", "i32*", "i32[T]: of the tokens of this step"),
        Arg("logit_rows", "i32*", "i32[R]: the token that the row of logits is of"),
        Arg("sampled", "mut i32*", "i32[R]"),
        Arg("sampled_logprob", "mut f32*", "f32[R]"),
        Arg("sampled_rank", "mut i32*", "i32[R]: 1 + the tokens with a larger logit"),
        Arg(
            "top_tokens",
            "mut i32*",
            f"i32[R][{MAX_TOP_LOGPROBS}]: the best tokens, ties by lower id; only as many as asked for are written",
        ),
        Arg("top_values", "mut f32*", f"f32[R][{MAX_TOP_LOGPROBS}]: their log-probabilities"),
        Arg("last_token", "mut i32*", "i32[slots]: what each slot sampled last"),
        Arg("finished", "mut i32*", "i32[slots]: 1 if the request ended with this token, else 0"),
        TOKEN_COUNTS,
        WORKER_SCRATCH,
        WORKER_SCRATCH_STRIDE,
    ),
    macros=(Macro("VOCAB", "tokens to choose from"),),
    name=_name,
    scratch=_scratch,
)


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the four 32-bit words of Philox4x32-10."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = (
            (product1 >> 32) ^ x1 ^ k0,
            product1 & 0xFFFFFFFF,
            (product0 >> 32) ^ x3 ^ k1,
            product0 & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return x0, x1, x2, x3


def uniform(seed: int, draw: int) -> float:
    """Returns the uniform in [0, 1) that a draw uses."""
    mask = 0xFFFFFFFF
    high, low, _, _ = philox4x32((draw & mask, draw >> 32, 0, 0), (seed & mask, seed >> 32))
    return float(((high << 32 | low) >> 11) * 2.0**-53)


def kept_tokens(logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float) -> NDArray[np.int64]:
    """Returns the ids that survive top-k and top-p, ascending, by sorting (the kernel selects without a sort)."""
    order = np.argsort(-logits.astype(np.float64), kind="stable")
    if 0 < top_k < len(order):
        order = order[:top_k]
    if top_p < 1:
        ranked = np.exp((logits[order].astype(np.float64) - float(logits.max())) / temperature)
        mass = np.cumsum(ranked)
        order = order[: int(np.searchsorted(mass, top_p * mass[-1])) + 1]
    return np.sort(order)
