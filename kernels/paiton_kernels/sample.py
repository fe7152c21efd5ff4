"""``sample``: the next token of every logits row.

Order of operations: temperature; keep the `top_k` most probable tokens; of those, keep the smallest set of most
probable tokens whose share of the remaining mass reaches `top_p`, at least one; draw. Equal logits rank by lower
token id. The draw walks the kept tokens by id and takes the first whose running mass exceeds u times the kept mass,
with u the 53-bit uniform of Philox4x32-10 (Salmon et al., SC'11), key = seed, counter = draw.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.spec import COUNTS, WORKER_SCRATCH, WORKER_SCRATCH_STRIDE, Arg, KernelSpec, Macro, Value

HISTOGRAM_BINS = 2048
"""Bins of one pass of the selection: 11 bits of the ordered logit."""


def _name(macros: Mapping[str, Value]) -> str:
    return f"v{macros['VOCAB']}"


def _scratch(macros: Mapping[str, Value], _max_tokens: int) -> int:
    return 8 * -(-int(macros["VOCAB"]) // 16) * 16 + 8 * HISTOGRAM_BINS


SAMPLE = KernelSpec(
    family="sample",
    args=(
        COUNTS,
        Arg("logits", "f32*", "f32[R][logits_stride]"),
        Arg("logits_stride", "i64", "elements from one row of logits to the next"),
        Arg("temperature", "f32*", "f32[R]: 0 takes the most probable token"),
        Arg("top_k", "i32*", "i32[R]: 0 is off"),
        Arg("top_p", "f32*", "f32[R]: 1 is off"),
        Arg("seed", "u64*", "u64[R]"),
        Arg("draw", "u64*", "u64[R]: number of the draw in its request"),
        Arg("sampled", "mut i32*", "i32[R]"),
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


def sample(
    logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float, seed: int, draw: int
) -> tuple[int, float]:
    """The token of one row, and how far (as a share of the mass) the draw was from another token.

    Args:
        logits: f32[VOCAB].
        temperature: 0 for the most probable token.
        top_k: 0 for off.
        top_p: 1 for off.
        seed: the request's key.
        draw: the request's counter.
    """
    if temperature == 0:
        return int(np.argmax(logits)), 1.0
    kept = kept_tokens(logits, temperature, top_k, top_p)
    mass = np.cumsum(np.exp((logits[kept].astype(np.float64) - float(logits.max())) / temperature))
    target = uniform(seed, draw) * mass[-1]
    chosen = int(np.searchsorted(mass, target, side="right"))
    edges = np.concatenate([[0.0], mass])
    return int(kept[chosen]), float(np.abs(edges[1:-1] - target).min(initial=mass[-1]) / mass[-1])
