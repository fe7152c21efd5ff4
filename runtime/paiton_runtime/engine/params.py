"""What a request asks of the engine."""

from __future__ import annotations

import math
from typing import Protocol

from paiton_artifacts.errors import UsageError
from paiton_artifacts.record import dataclass

MAX_TOP_LOGPROBS = 20
"""Most probable tokens that can be reported with a token (the limit of OpenAI's interface)."""

MAX_BIASES = 300
"""Tokens that a request may bias (the limit of OpenAI's interface)."""


class Constraint(Protocol):
    """Restricts what may be sampled next, such as a grammar. The engine calls it from its own thread, in order."""

    def mask(self) -> bytes:
        """Returns which tokens may come next: bit b of little-endian 32-bit word w allows token 32 w + b."""

    def advance(self, token: int) -> None:
        """Takes the token that was sampled."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens of one request are drawn, and when it ends.

    Order of operations: logit_bias and the constraint's mask, penalties, temperature, min_p, top_k, top_p, draw.

    Attributes:
        max_tokens: tokens to generate at most; None: what the context leaves.
        min_tokens: no end of sequence and no stop token before this many.
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: nucleus within (0, 1]; 1 is off.
        min_p: least probability relative to the most probable token, within [0, 1]; 0 is off.
        repetition_penalty: above 0; of tokens in prompt or output; 1 is off.
        presence_penalty: within [-2, 2], of tokens in the output; 0 is off.
        frequency_penalty: within [-2, 2], for each time in the output; 0 is off.
        seed: of the draws, unsigned 64 bits; None takes a random one.
        logit_bias: (token, bias) pairs, biases within [-100, 100], or -inf, which bans a token.
        logprobs: None for none, else how many of the best tokens to report beside the sampled one (0 .. 20).
        prompt_logprobs: the same for the tokens of the prompt, all but the first. The whole prompt is then computed,
            as many positions in a step as a step has rows of logits, whatever of it the prefix cache holds.
        stop_token_ids: tokens that end the request, besides the model's end-of-sequence tokens.
        ignore_eos: the model's end-of-sequence tokens do not end it.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def check(self, vocab_size: int) -> None:
        """Refuses values without a meaning.

        Raises:
            UsageError: names the parameter, its value and what is allowed.
        """
        _within("temperature", self.temperature, 0.0, 1e4)
        _within("top_p", self.top_p, 0.0, 1.0, above=True)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 0.0, 1e4, above=True)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _within("top_k", self.top_k, 0, 2**31 - 1)
        _within("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, 1, 2**31 - 1)
            _within("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.seed is not None:
            _within("seed", self.seed, 0, 2**64 - 1)
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None:
                _within(name, count, 0, MAX_TOP_LOGPROBS)
        _within("the number of biased tokens", len(self.logit_bias), 0, MAX_BIASES)
        for token, bias in self.logit_bias:
            _within("a token of logit_bias", token, 0, vocab_size - 1)
            if bias != -math.inf:
                _within("a bias of logit_bias", bias, -100.0, 100.0)
        for token in self.stop_token_ids:
            _within("a token of stop_token_ids", token, 0, vocab_size - 1)

    @property
    def penalised(self) -> bool:
        """Whether the sampler has to count the request's tokens."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def _within(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """Raises unless low <= value <= high (low < value where `above`); NaN is never within."""
    if not low <= value <= high or (above and value == low):
        bound = "(" if above else "["
        raise UsageError(f"{name} {value} is not within {bound}{low}, {high}]")


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of one position, of the logits as the model gave them: before bias, mask and temperature.

    Attributes:
        logprob: of the sampled token, or of the one that follows in the prompt.
        rank: 1 + the tokens that are more probable.
        top: the best tokens and theirs, best first; as many as were asked for.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Update:
    """What became known of a request since its last update.

    Attributes:
        tokens: generated since; the token that ends the request included (`ended_by` tells).
        logprobs: one entry for each of them where the request asked for them, else empty.
        finish_reason: None while it goes on; "stop" (an end-of-sequence or stop token, or the constraint is
            complete), "length", "abort" (cancelled), or "error".
        ended_by: the end-of-sequence or stop token that ended it, which is the last of `tokens`; else None.
        error: why, for "error".
        cached_tokens: of the prompt, found in the prefix cache; known from the first token on.
        prompt_logprobs: with the first token, where they were asked for: of each token of the prompt but the first.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None
    ended_by: int | None = None
    error: Exception | None = None
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
