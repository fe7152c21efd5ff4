"""How good a bundle is on a text: perplexity through the runtime, and how far it is from its source checkpoint.

The text is cut into windows that are computed on their own, teacher-forced: every token is rated given the tokens of
its window before it. Of each window, the first token is not rated; where the model expects a token before a text, that
is the one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paiton_runtime.batch import Sampling
from paiton_runtime.model import Chunk, Model

Logits = NDArray[np.float32]

_RATED = Sampling(top_logprobs=0)


class Source(Protocol):
    """Computes the logits of a checkpoint."""

    def logits(self, ids: Sequence[int]) -> Logits:
        """Returns the logits [len(ids), vocabulary], f32, after each prefix of the tokens."""


@dataclass(slots=True)
class Comparison:
    """A bundle beside its source, position by position; log-probabilities in nats.

    Attributes:
        source_nll: negative log-likelihoods that the source gives the text's tokens.
        divergences: of the bundle's distribution from the source's: KL(source || bundle).
        same_top: positions at which both hold the same token most likely.
    """

    source_nll: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    same_top: int = 0


@dataclass(slots=True)
class Measured:
    """What a text gave.

    Attributes:
        nll: negative log-likelihood of each rated token, in nats.
        comparison: with the source; None without one.
    """

    nll: list[float] = field(default_factory=list)
    comparison: Comparison | None = None

    def as_json(self) -> dict[str, object]:
        """Returns perplexities, and the statistics of the divergence."""
        result: dict[str, object] = {"rated_tokens": len(self.nll), "perplexity": perplexity(self.nll)}
        if self.comparison is not None:
            other = self.comparison
            divergences = np.array(other.divergences)
            result["source"] = {"perplexity": perplexity(other.source_nll)}
            result["perplexity_ratio"] = perplexity(self.nll) / perplexity(other.source_nll)
            result["kl_divergence"] = {
                "mean": float(divergences.mean()),
                "median": float(np.median(divergences)),
                "p99": float(np.quantile(divergences, 0.99)),
                "max": float(divergences.max()),
            }
            result["same_top_token"] = other.same_top / len(self.nll)
        return result


def perplexity(nll: Sequence[float]) -> float:
    """Returns e to the mean of negative log-likelihoods in nats."""
    return math.exp(math.fsum(nll) / len(nll))


def windows(ids: Sequence[int], prefix: Sequence[int], length: int) -> Iterator[list[int]]:
    """Cuts a text into windows of at most `length` tokens, each with the prefix in front; one token is no window."""
    body = length - len(prefix)
    for start in range(0, len(ids), body):
        window = [*prefix, *ids[start : start + body]]
        if len(window) > 1:
            yield window


def measure(model: Model, texts: Iterator[list[int]], source: Source | None) -> Measured:
    """Rates windows of tokens.

    Args:
        model: booted, with nobody else running steps on it.
        texts: see `windows`; none longer than the model's context.
        source: to compare with.
    """
    measured = Measured(comparison=None if source is None else Comparison())
    for ids in texts:
        if source is None or measured.comparison is None:
            measured.nll += rated(model, ids)
        else:
            _compare(model, ids, source.logits(ids), measured.nll, measured.comparison)
    return measured


def rated(model: Model, ids: Sequence[int]) -> list[float]:
    """Returns the negative log-likelihood of each token but the first; the device does the arithmetic."""
    nll: list[float] = []
    for first, chunk in _chunks(model, ids):
        result = model.step([chunk])
        nll += [-result.report(row, 0).logprob for row in range(min(len(chunk.tokens), len(ids) - 1 - first))]
    return nll


def _compare(model: Model, ids: Sequence[int], reference: Logits, nll: list[float], comparison: Comparison) -> None:
    vocabulary = model.manifest.model.vocab_size
    for first, chunk in _chunks(model, ids):
        result = model.step([chunk])
        for row in range(min(len(chunk.tokens), len(ids) - 1 - first)):
            ours = _log_softmax(np.frombuffer(result.logits(row), np.float32))
            theirs = _log_softmax(reference[first + row, :vocabulary])
            token = ids[first + row + 1]
            nll.append(-float(ours[token]))
            comparison.source_nll.append(-float(theirs[token]))
            # What the source holds impossible adds nothing, whatever the bundle thinks of it.
            share = np.exp(theirs)
            comparison.divergences.append(float(np.sum(np.where(share > 0, share * (theirs - ours), 0.0))))
            comparison.same_top += int(ours.argmax() == theirs.argmax())


def _chunks(model: Model, ids: Sequence[int]) -> Iterator[tuple[int, Chunk]]:
    """Yields the first position of each chunk, and the chunk, which has as many tokens as a step has rows of logits."""
    memory = model.memory
    blocks = list(range(-(-len(ids) // memory.kv_block_tokens)))
    size = min(memory.max_requests, memory.max_tokens)
    for first in range(0, len(ids) - 1, size):
        tokens = list(ids[first : min(first + size, len(ids) - 1)])
        targets = list(ids[first + 1 : first + 1 + len(tokens)])
        yield first, Chunk(tokens, first, blocks, "all", _RATED, targets=targets)


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
