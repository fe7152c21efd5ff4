"""Generates tokens for one request: prefill in chunks, then a step a token. The KV cache stays for the next prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from paiton_artifacts.errors import PromptTooLongError, UsageError
from paiton_artifacts.record import dataclass, field
from paiton_runtime.kv import BlockPool, CachedSequence
from paiton_runtime.model import GREEDY, Chunk, Model, Sampling

DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """When to stop, and how to draw tokens.

    Attributes:
        max_tokens: tokens to generate; None takes `DEFAULT_MAX_TOKENS`, or fewer where the context ends.
        sampling: greedy by default.
        ignore_eos: go on after an end-of-sequence token.
    """

    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    ignore_eos: bool = False


@dataclass(slots=True)
class Generation:
    """What was generated, and how long it took.

    Attributes:
        token_ids: the generated tokens, an end-of-sequence token included.
        prompt_tokens: length of the prompt, of which `reused_tokens` were in the KV cache already.
        prefill_seconds: from the start to the first token.
        decode_seconds: from the first token to the last.
        finish_reason: "stop" (end of sequence) or "length".
    """

    prompt_tokens: int
    reused_tokens: int
    token_ids: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    finish_reason: str = "length"

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens computed per second."""
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first."""
        return (len(self.token_ids) - 1) / self.decode_seconds if self.decode_seconds else 0.0


def check_sampling(sampling: Sampling) -> None:
    """Refuses parameters without a meaning.

    Raises:
        UsageError: names the parameter and its value.
    """
    if not 0.0 <= sampling.temperature < float("inf"):
        raise UsageError(f"temperature {sampling.temperature} is not a number from 0 on", hint="0 is greedy")
    if not 0.0 < sampling.top_p <= 1.0:
        raise UsageError(f"top-p {sampling.top_p} is not within (0, 1]", hint="1 switches it off")
    if not 0 <= sampling.top_k < 2**31:
        raise UsageError(f"top-k {sampling.top_k} is not a count", hint="0 switches it off")
    if not 0 <= sampling.seed < 2**64:
        raise UsageError(f"seed {sampling.seed} is not an unsigned 64-bit integer")


class Generator:
    """Serves one request after the other from one KV cache; a prompt that continues the last one reuses its prefix."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._cache = CachedSequence(BlockPool(model.kv_blocks), model.memory.kv_block_tokens)

    def generate(
        self,
        prompt: Sequence[int],
        options: GenerateOptions | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> Generation:
        """Generates until the end of sequence, `max_tokens`, or the end of the context.

        Args:
            prompt: token ids, at least one.
            options: see `GenerateOptions`.
            on_token: called with each token as soon as it is known.

        Raises:
            PromptTooLongError: prompt and explicit `max_tokens` exceed the context or the KV cache.
            UsageError: an empty prompt, or parameters without a meaning.
        """
        options = GenerateOptions() if options is None else options
        limit = self._token_limit(prompt, options)
        check_sampling(options.sampling)
        started = time.perf_counter()
        done = Generation(len(prompt), self._cache.keep_prefix(prompt))
        token = self._prefill(prompt[done.reused_tokens :], options.sampling)
        first = time.perf_counter()
        done.prefill_seconds = first - started
        stop = () if options.ignore_eos else self.model.manifest.model.eos_token_ids
        while True:
            done.token_ids.append(token)
            done.decode_seconds = time.perf_counter() - first
            if on_token is not None:
                on_token(token)
            if token in stop:
                done.finish_reason = "stop"
                return done
            if len(done.token_ids) == limit:
                return done
            token = self._advance([token], "last", options.sampling, len(done.token_ids))

    def _token_limit(self, prompt: Sequence[int], options: GenerateOptions) -> int:
        if not prompt:
            raise UsageError("the prompt is empty", hint="give at least one token")
        wanted = 1 if options.max_tokens is None else options.max_tokens
        if wanted < 1:
            raise UsageError(f"--max-tokens {wanted} generates nothing", hint="give a positive number")
        # The last token that is generated never enters the KV cache.
        context = self.model.context_tokens
        room = context + 1 - len(prompt)
        if wanted > room:
            small = context < self.model.manifest.model.max_model_len
            raise PromptTooLongError(
                f"a prompt of {len(prompt)} tokens and {wanted} to generate exceed the "
                f"{'KV cache' if small else 'context'} of {context} tokens",
                hint="raise --kv-tokens" if small else "shorten the prompt or lower --max-tokens",
            )
        return min(DEFAULT_MAX_TOKENS, room) if options.max_tokens is None else wanted

    def _prefill(self, tokens: Sequence[int], sampling: Sampling) -> int:
        """Runs the prompt in the largest steps that there are; returns the first generated token."""
        size = self.model.memory.max_tokens
        while len(tokens) > size:
            self._advance(tokens[:size], "none", sampling, 0)
            tokens = tokens[size:]
        return self._advance(tokens, "last", sampling, 0)

    def _advance(self, tokens: Sequence[int], logits: str, sampling: Sampling, draw: int) -> int:
        """Runs tokens through the model behind those in the cache; returns the sampled token, or -1 without logits."""
        cache = self._cache
        start = len(cache.tokens)
        cache.reserve(start + len(tokens))
        chunk = Chunk(tokens, start, cache.blocks, "last" if logits == "last" else "none", sampling, draw)
        result = self.model.run(self.model.prepare([chunk]))
        cache.tokens += tokens
        return result.sampled[0] if result.sampled else -1
