"""``attention``: causal attention of a ragged batch over the paged KV cache, with grouped query heads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.spec import (
    COUNTS,
    KV_CACHE,
    PAGING,
    WORKER_SCRATCH,
    WORKER_SCRATCH_STRIDE,
    Arg,
    KernelSpec,
    Macro,
    Value,
)

ITEM_ROWS = 192
"""Query rows (tokens x heads) that share one pass over K and V, unless the group itself is larger."""

GROUP_TOKENS = 64
"""Positions that a softmax takes at a time."""

LANES = 16
"""Sums of weights of a row, at most: as many as a vector has lanes."""


def _name(macros: Mapping[str, Value]) -> str:
    kv = "_kvfp8" if macros["KV"] == "FP8" else ""
    options = "".join(f"_{name.lower()}" for name in ("WINDOW", "SOFTCAP") if macros[name])
    return f"q{macros['Q_HEADS']}_kv{macros['KV_HEADS']}_d{macros['HEAD_DIM']}{kv}{options}"


def _check(macros: Mapping[str, Value]) -> str:
    if int(macros["HEAD_DIM"]) % 32:
        return f"HEAD_DIM is {macros['HEAD_DIM']}, not a multiple of 32"
    if int(macros["Q_HEADS"]) % int(macros["KV_HEADS"]):
        return f"Q_HEADS {macros['Q_HEADS']} is not a multiple of KV_HEADS {macros['KV_HEADS']}"
    return ""


def _scratch(macros: Mapping[str, Value], _max_tokens: int) -> int:
    group = int(macros["Q_HEADS"]) // int(macros["KV_HEADS"])
    rows, head_dim = -(-max(ITEM_ROWS, group) // 4) * 4, int(macros["HEAD_DIM"])
    return 4 * (2 * rows * head_dim + 2 * GROUP_TOKENS * head_dim + (LANES + 2) * rows)


ATTENTION = KernelSpec(
    family="attention",
    shared=True,
    args=(
        COUNTS,
        Arg("q", "bf16*", "bf16[T][Q_HEADS*HEAD_DIM], after RoPE"),
        *PAGING,
        *KV_CACHE,
        Arg("softmax_scale", "f64", "what scores are multiplied by"),
        Arg("out", "mut bf16*", "bf16[T][Q_HEADS*HEAD_DIM]"),
        WORKER_SCRATCH,
        WORKER_SCRATCH_STRIDE,
        Arg("window", "i64", "positions that a token sees, its own included (WINDOW=1)"),
        Arg("softcap", "f64", "scores become softcap * tanh(score / softcap) (SOFTCAP=1)"),
    ),
    macros=(
        Macro("Q_HEADS", "query heads of this rank"),
        Macro("KV_HEADS", "KV heads of this rank"),
        Macro("HEAD_DIM", "elements of a head"),
        Macro("KV", "how K and V are stored", choices=("BF16", "FP8"), default="BF16"),
        Macro("WINDOW", "1: a token sees the last `window` positions only", default=0, minimum=0),
        Macro("SOFTCAP", "1: scores are capped", default=0, minimum=0),
    ),
    name=_name,
    check=_check,
    scratch=_scratch,
)


def attention(
    q: NDArray[np.float64],
    k: NDArray[np.float64],
    v: NDArray[np.float64],
    positions: NDArray[np.int32],
    softmax_scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> NDArray[np.float64]:
    """Attention of one request's tokens.

    Args:
        q: f64[T][Q_HEADS][D].
        k: f64[P][KV_HEADS][D], the request's whole history in order.
        v: like k.
        positions: i32[T], each below P; token t attends positions 0..positions[t].
        softmax_scale: what scores are multiplied by.
        window: positions that a token sees, its own included; 0 is all.
        softcap: scores become softcap * tanh(score / softcap); 0 leaves them.

    Returns:
        f64[T][Q_HEADS][D].
    """
    group = q.shape[1] // k.shape[1]
    keys, values = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("thd,phd->thp", q, keys) * softmax_scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    distance = positions[:, None] - np.arange(len(k))[None, :]
    hidden = (distance < 0) | (distance >= (window or len(k)))
    scores = np.where(hidden[:, None, :], -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("thp,phd->thd", weights, values))
