"""A request on its way through the engine."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from enum import Enum

from paiton_artifacts.record import dataclass, field
from paiton_runtime.batch import Chunk, Sampling
from paiton_runtime.engine.blocks import ROOT, block_key
from paiton_runtime.engine.params import Constraint, SamplingParams, TokenLogprobs, Update

PRIORITY_SECONDS = 30.0
"""How much later a request may come and still be served before one of the next lower priority. Were priorities strict,
requests of a lower one would wait for as long as others keep coming."""


class Status(Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Request:
    """One sequence. The engine's thread owns everything but what was submitted, which does not change before the end.

    Attributes:
        request_id: as submitted.
        params: as submitted.
        prompt_tokens: length of the prompt.
        limit: tokens to generate at most.
        eos: the model's end-of-sequence tokens.
        deliver: takes updates.
        priority: lower ones are served first; see `sort_key`.
        constraint: what may be sampled, if not everything.
        leader: a request with the same prompt that computes it first.
        order: number of its arrival.
        arrived: when, in seconds of `time.monotonic()`.
        tokens: prompt and output, as far as known.
        scheduled: positions whose keys and values are computed, by finished steps or those that are under way.
        computed: of them, by finished steps.
        pending: tokens that steps under way will sample.
        blocks: KV blocks of the positions, i32.
        keys: of the full blocks whose tokens are known, as far as somebody asked.
        remembered: blocks that the prefix cache was told of.
        slot: of the device's state; None while it waits.
        reused: positions that came from the prefix cache when it last got its blocks.
        cached_tokens: of the prompt, found in the prefix cache; None before it was looked up.
        preemptions: how often it lost its blocks.
        prompt_logprobs: by the position that they were computed at, as far as they are known.
        started_at: its first step began, in seconds of `time.monotonic()`; None before, as the two that follow.
        first_token_at: its first token was known.
        last_token_at: its last one was.
    """

    request_id: str
    params: SamplingParams
    prompt_tokens: int
    limit: int
    eos: frozenset[int]
    deliver: Callable[[Update], None]
    priority: int
    constraint: Constraint | None
    leader: Request | None
    order: int
    arrived: float
    tokens: list[int]
    sampling: Sampling
    status: Status = Status.WAITING
    scheduled: int = 0
    computed: int = 0
    pending: int = 0
    blocks: array[int] = field(default_factory=lambda: array("i"))
    keys: list[bytes] = field(default_factory=list)
    remembered: int = 0
    slot: int | None = None
    reused: int = 0
    cached_tokens: int | None = None
    preemptions: int = 0
    prompt_logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    started_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None

    @property
    def generated(self) -> int:
        """Tokens of the output that are known."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def remaining(self) -> int:
        """Positions to compute before the next token can be sampled; 0 when the last token is under way."""
        if self.generated + self.pending >= self.limit:
            return 0
        return len(self.tokens) + self.pending - self.scheduled

    @property
    def unscored(self) -> int:
        """Positions to compute next whose logits rate the prompt's following token, which is one row for each of them.

        The prompt's last position is not among them: its logits are sampled, in a step without rated rows, as those
        would take its slot's state.
        """
        if self.params.prompt_logprobs is None or self.generated or self.pending:
            return 0
        return max(0, self.prompt_tokens - 1 - self.scheduled)

    def rows(self, count: int) -> int:
        """Returns the rows of logits that the next `count` positions take, at most `unscored` where that is not 0."""
        return count if self.unscored else int(count == self.remaining)

    @property
    def sort_key(self) -> tuple[float, int]:
        """First come, first served, a level of priority counting as seconds; a preempted request keeps its place."""
        return self.arrived + PRIORITY_SECONDS * self.priority, self.order

    def chunk(self, count: int) -> Chunk:
        """Returns the next `count` positions; the last one's logits are sampled if nothing remains behind it.

        Of a prompt to be rated, they are at most `unscored`.
        """
        start, end = self.scheduled, self.scheduled + count
        tokens: Sequence[int] = self.tokens[start:end]
        slot = self.slot if self.slot is not None else 0
        if len(tokens) < count:  # the token that the step before is about to sample
            tokens = [*tokens, -1 - slot]
        if self.unscored:
            sampling = Sampling(top_logprobs=self.params.prompt_logprobs or 0)
            targets = self.tokens[start + 1 : end + 1]
            return Chunk(tokens, start, self.blocks, "all", sampling, slot=slot, targets=targets)
        last = count == self.remaining
        return Chunk(
            tokens,
            start,
            self.blocks,
            "last" if last else "none",
            self._banned_ends() if last and self._too_early() else self.sampling,
            self.generated + self.pending,
            slot,
            masked=last and self.constraint is not None,
        )

    def _too_early(self) -> bool:
        return self.generated + self.pending < self.params.min_tokens

    def _banned_ends(self) -> Sampling:
        """Returns the sampling with all tokens banned that would end the request before `min_tokens`."""
        ends = {*self.eos, *self.params.stop_token_ids}
        kept = tuple(pair for pair in self.params.logit_bias if pair[0] not in ends)
        return make_sampling(self.params, self.sampling.seed, (*kept, *((token, -float("inf")) for token in ends)))

    def ends_with(self, token: int) -> bool:
        """Returns whether the token, which is the last of the output, ends the request."""
        if self.generated < self.params.min_tokens:
            return False
        return token in self.params.stop_token_ids or (token in self.eos and not self.params.ignore_eos)

    def block_keys(self, count: int, block_tokens: int) -> list[bytes]:
        """Returns the keys of the first `count` blocks, all tokens of which are known."""
        while len(self.keys) < count:
            at = len(self.keys) * block_tokens
            parent = self.keys[-1] if self.keys else ROOT
            self.keys.append(block_key(parent, self.tokens[at : at + block_tokens]))
        return self.keys[:count]


def make_sampling(params: SamplingParams, seed: int, bias: tuple[tuple[int, float], ...]) -> Sampling:
    """Returns what the sampler needs to know of a request.

    Args:
        params: checked ones.
        seed: the request's own or a random one.
        bias: (token, bias) pairs.
    """
    return Sampling(
        params.temperature,
        params.top_k,
        params.top_p,
        seed,
        params.min_p,
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
        -1 if params.logprobs is None else params.logprobs,
        bias,
    )


def random_seed() -> int:
    """Returns a seed for a request that has none."""
    return int.from_bytes(os.urandom(8), "little")
