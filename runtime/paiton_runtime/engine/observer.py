"""What the engine tells those who measure it: a record of each step and of each request that ended."""

from __future__ import annotations

from typing import Protocol

from paiton_artifacts.record import dataclass


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step. Times in seconds.

    Attributes:
        tokens: computed by the forward plan, prefill and decode.
        decoding: requests that got a token which is not their first.
        seconds: of the step on the device.
        gap_seconds: the device waited for the host before it, though there was work; what must stay off the path.
        running: requests that are admitted.
        waiting: requests that are not.
        kv_usage: share of the KV blocks that requests hold, 0 .. 1.
        prefix_queries: prompt tokens that were looked up in the prefix cache since the last record.
        prefix_hits: of them, found.
        preemptions: requests that lost their blocks since the last record.
    """

    tokens: int
    decoding: int
    seconds: float
    gap_seconds: float
    running: int
    waiting: int
    kv_usage: float
    prefix_queries: int
    prefix_hits: int
    preemptions: int


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token reached its request: seconds since the request's last token, or since its arrival for the first."""

    first: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request that ended. Times are of `time.monotonic()`; None where it never got so far.

    Attributes:
        request_id: as submitted.
        prompt_tokens: length of the prompt.
        cached_tokens: of it, found in the prefix cache.
        generated_tokens: without those that were thrown away.
        max_tokens: that it asked for, None where it did not.
        finish_reason: see `Update`.
        arrived: it was submitted.
        scheduled: its first step began.
        first_token: its first token was known.
        finished: it ended.
        preemptions: how often it lost its blocks.
    """

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    max_tokens: int | None
    finish_reason: str
    arrived: float
    scheduled: float | None
    first_token: float | None
    finished: float
    preemptions: int


class EngineObserver(Protocol):
    """Called from the engine's thread, between steps: it must return at once and never raise."""

    def on_step(self, record: StepRecord) -> None:
        """A step ended."""

    def on_tokens(self, records: list[TokenRecord]) -> None:
        """Tokens of one step reached their requests."""

    def on_request(self, record: RequestRecord) -> None:
        """A request ended."""
