"""Times and counts of the engine, gathered where they arise and handed to the observer between steps."""

from __future__ import annotations

import time

from paiton_runtime.engine.blocks import BlockManager
from paiton_runtime.engine.observer import EngineObserver, RequestRecord, StepRecord, TokenRecord
from paiton_runtime.engine.request import Request
from paiton_runtime.engine.runner import Step
from paiton_runtime.engine.scheduler import Scheduler


class Recorder:
    """Makes the observer's records.

    Args:
        observer: None: nothing is recorded but the requests' own times.
        scheduler: whose queues and counts are reported.
    """

    def __init__(self, observer: EngineObserver | None, scheduler: Scheduler) -> None:
        self._observer = observer
        self._scheduler = scheduler
        self._tokens: list[TokenRecord] = []
        self._requests: list[RequestRecord] = []
        self._steps: list[StepRecord] = []
        self._last: Step | None = None
        self._seen = 0, 0, 0  # queries, hits and preemptions that were reported

    def step(self, step: Step, blocks: BlockManager) -> None:
        """A step's result is there; its tokens have not been looked at."""
        for request, _ in step.proposal.chunks:
            if request.started_at is None:
                request.started_at = step.started
        last, self._last = self._last, step
        scheduler = self._scheduler
        seen = scheduler.queries, scheduler.hits, scheduler.preemptions
        queries, hits, preemptions = (new - old for new, old in zip(seen, self._seen, strict=True))
        self._seen = seen
        if self._observer is None:
            return
        # Without a request that goes on, the pause was for want of work.
        before = {id(request) for request, _ in last.proposal.chunks} if last is not None else set()
        goes_on = any(id(request) in before for request, _ in step.proposal.chunks)
        record = StepRecord(
            tokens=step.packed.tokens,
            decoding=sum(request.generated > 0 for request in step.rows.values()),
            seconds=step.ended - step.started,
            gap_seconds=max(0.0, step.started - last.ended) if last is not None and goes_on else 0.0,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_usage=1 - blocks.free / blocks.blocks,
            prefix_queries=queries,
            prefix_hits=hits,
            preemptions=preemptions,
        )
        self._steps.append(record)

    def token(self, request: Request, now: float) -> None:
        """A token of a request is known since `now`."""
        if self._observer is not None:
            since = request.arrived if request.last_token_at is None else request.last_token_at
            self._tokens.append(TokenRecord(request.last_token_at is None, now - since))
        if request.first_token_at is None:
            request.first_token_at = now
        request.last_token_at = now

    def request(self, request: Request, reason: str) -> None:
        """A request has ended."""
        if self._observer is None:
            return
        record = RequestRecord(
            request_id=request.request_id,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.cached_tokens or 0,
            generated_tokens=request.generated,
            max_tokens=request.params.max_tokens,
            finish_reason=reason,
            arrived=request.arrived,
            scheduled=request.started_at,
            first_token=request.first_token_at,
            finished=time.monotonic(),
            preemptions=request.preemptions,
        )
        self._requests.append(record)

    def flush(self) -> None:
        """Hands the records over."""
        observer = self._observer
        if observer is None:
            return
        for step in self._steps:
            observer.on_step(step)
        if self._tokens:
            observer.on_tokens(self._tokens)
        for request in self._requests:
            observer.on_request(request)
        self._steps, self._tokens, self._requests = [], [], []
