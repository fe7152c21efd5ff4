"""``sample`` in float64, row by row: what the chain of launches computes, from a sort instead of a selection.

Order of operations: biases and mask; repetition, frequency and presence penalties; temperature; min-p; then top-k,
top-p and the draw as :mod:`paiton_kernels.sample` has them. If nothing is allowed, the token is 0. Reported
log-probabilities and ranks are those of the logits as they came.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.sample import kept_tokens, uniform

_EDGE = 1e-6
"""How far f32 sums may move a limit or the draw, relative to what is summed."""


@dataclass(frozen=True, slots=True)
class Row:
    """Sampling parameters of a row, rounded to f32; those left out are off.

    Attributes:
        temperature: 0 takes the most probable token.
        top_k: tokens to keep; 0 for all.
        top_p: share of the mass to keep; 1 for all.
        min_p: least probability, as a share of the most probable token's.
        repetition: divides positive and multiplies negative logits of tokens that the prompt or the output has.
        presence: taken from the logits of generated tokens.
        frequency: taken from them for each time.
        seed: the request's key, u64.
        draw: the request's counter, u64.
        top_logprobs: how many of the best tokens to report.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    seed: int = 0
    draw: int = 0
    top_logprobs: int = -1

    def __post_init__(self) -> None:
        for field in ("temperature", "top_p", "min_p", "repetition", "presence", "frequency"):
            object.__setattr__(self, field, float(np.float32(getattr(self, field))))


def processed_logits(
    logits: NDArray[np.float32],
    history: NDArray[np.int32],
    allowed: NDArray[np.bool_],
    row: Row,
    bias: NDArray[np.float32] | float = 0.0,
) -> NDArray[np.float32]:
    """Returns f32[VOCAB] logits after biases, mask and penalties, computed in float64.

    Args:
        logits: as they came, f32[VOCAB].
        history: as a row of token_counts.
        allowed: by the mask, bool[VOCAB].
        row: its penalties apply.
        bias: f32[VOCAB], added to the logits; -inf bans a token.
    """
    values = np.where(np.isnan(logits) | ~allowed | (bias == -np.inf), -np.inf, logits.astype(np.float64))
    values = np.where(values > -np.inf, values + bias, -np.inf)
    generated = history & 0x7FFFFFFF
    repeated = np.where(values > 0, values / row.repetition, values * row.repetition)
    values = np.where(history != 0, repeated, values) - row.frequency * generated
    values = np.where(generated > 0, values - row.presence, values)
    return np.asarray(values, np.float32)


def _drawn(values: NDArray[np.float32], row: Row, shift: float) -> int:
    """Returns the token drawn, with every limit and the draw moved by `shift`."""
    shares = np.exp((values.astype(np.float64) - float(values.max())) / row.temperature)
    alive = np.flatnonzero(shares >= min(row.min_p * (1 + shift), 1.0))
    kept = alive[kept_tokens(values[alive], row.temperature, row.top_k, row.top_p * (1 + shift))]
    mass = np.cumsum(shares[kept])
    target = min(max(uniform(row.seed, row.draw) + shift, 0.0), 1 - 2.0**-53) * mass[-1]
    return int(kept[np.searchsorted(mass, target, side="right")])


def sampled_token(values: NDArray[np.float32], row: Row) -> tuple[int, bool]:
    """Returns the token of a row of processed logits, and whether rounding of f32 sums cannot make it another."""
    if row.temperature <= 0 or values.max() == -np.inf:
        return int(np.argmax(values)), True
    tokens = {_drawn(values, row, shift) for shift in (-_EDGE, 0.0, _EDGE)}
    return _drawn(values, row, 0.0), len(tokens) == 1


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns f64[VOCAB]: log-softmax of the logits as they came; NaN counts as -inf."""
    values = np.where(np.isnan(logits), -np.inf, logits.astype(np.float64))
    below = values - values.max()
    return np.asarray(below - np.log(np.exp(below).sum()))


def rank_of(logits: NDArray[np.float32], token: int) -> int:
    """Returns 1 + the number of tokens with a larger logit."""
    values = np.where(np.isnan(logits), -np.inf, logits)
    return 1 + int(np.count_nonzero(values > values[token]))


def best_tokens(logits: NDArray[np.float32], number: int) -> NDArray[np.int64]:
    """Returns the ids of the largest logits, best first, ties by lower id."""
    values = np.where(np.isnan(logits), -np.inf, logits.astype(np.float64))
    return np.argsort(-values, kind="stable")[:number]
