"""Metrics of the engine for Prometheus, under vLLM's names, so that dashboards and autoscalers go on working.

The engine's thread only appends what it reports to a queue. Another one folds the queue into counters and histograms,
now and then and before a scrape; where it cannot keep up, the engine folds a little at each report, so that the queue
stays short. How they look on the wire is `scrape.py`'s business.
"""

from __future__ import annotations

import asyncio
import functools
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from threading import Lock

from paiton_artifacts.record import dataclass, field
from paiton_runtime.engine.observer import RequestRecord, StepRecord, TokenRecord
from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.http import Handler, HttpRequest, Response
from paiton_runtime.server.state import Ready, ServerState

MAX_PENDING = 1024
"""Reports that may wait before the engine's thread begins to fold them, oldest first."""

_SLICE = 64
"""Reports that are folded before other threads get a turn."""

_COUNTS = tuple(digit * 10**power for power in range(7) for digit in (1, 2, 5))[:-2]
"""1, 2, 5 ... 1,000,000 tokens: the same for all models, so that they compare."""
_STEP_TOKENS = tuple(2**power for power in range(15))
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_FIRST_TOKEN_SECONDS = (*_FIRST_TOKEN, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_GAP_SECONDS = (0.0, 0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 1.0)

HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "vllm:time_to_first_token_seconds": ("From arrival to the first token.", _FIRST_TOKEN_SECONDS),
    "vllm:inter_token_latency_seconds": ("Between two tokens of a request.", _TOKEN_SECONDS),
    "vllm:request_time_per_output_token_seconds": (
        "Mean of a request's inter-token latencies; requests with one token have none.",
        _TOKEN_SECONDS,
    ),
    "vllm:e2e_request_latency_seconds": ("From arrival to the end of a request.", _REQUEST_SECONDS),
    "vllm:request_queue_time_seconds": ("From arrival to a request's first step.", _REQUEST_SECONDS),
    "vllm:request_prefill_time_seconds": ("From a request's first step to its first token.", _REQUEST_SECONDS),
    "vllm:request_decode_time_seconds": ("From a request's first token to its end.", _REQUEST_SECONDS),
    "vllm:request_inference_time_seconds": ("From a request's first step to its end.", _REQUEST_SECONDS),
    "vllm:iteration_tokens_total": ("Tokens that a step computed.", _STEP_TOKENS),
    "vllm:request_prompt_tokens": ("Tokens of a request's prompt.", _COUNTS),
    "vllm:request_generation_tokens": ("Tokens that a request generated.", _COUNTS),
    "vllm:request_params_max_tokens": ("max_tokens of the requests that gave it.", _COUNTS),
    "paiton_step_seconds": ("A step on the device.", _TOKEN_SECONDS),
    "paiton_step_gap_seconds": ("The device waited for the host before a step, though there was work.", _GAP_SECONDS),
}
"""Histograms: what they measure, and the upper bounds of their buckets."""

COUNTERS = {
    "vllm:prompt_tokens": "Tokens of the prompts that were processed, those from the prefix cache included.",
    "vllm:generation_tokens": "Tokens generated.",
    "vllm:num_preemptions": "Requests that lost their KV blocks and were computed again.",
    "vllm:prefix_cache_queries": "Prompt tokens that were looked up in the prefix cache.",
    "vllm:prefix_cache_hits": "Prompt tokens that were found in the prefix cache.",
}
"""Counters without further labels; on the wire their names end in `_total`."""

GAUGES = {
    "vllm:num_requests_running": "Requests that are being computed.",
    "vllm:num_requests_waiting": "Requests that wait to be computed.",
    "vllm:kv_cache_usage_perc": "Share of the KV cache that requests hold; 1 is all of it.",
}

FINISH_REASONS = ("stop", "length", "abort", "error")


@dataclass(slots=True)
class _Histogram:
    bounds: tuple[float, ...]
    counts: list[int]  # one more than bounds: the last is what exceeds them all
    sum: float = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was counted up to one moment.

    Attributes:
        counters: by the names of `COUNTERS`.
        ended: requests by finish reason.
        histograms: by the names of `HISTOGRAMS`: how many values fell between a bound and the one before, those above
            all bounds last, and the sum of the values.
    """

    counters: dict[str, int]
    ended: dict[str, int]
    histograms: dict[str, tuple[tuple[int, ...], float]]


@dataclass
class Metrics:
    """Counts what the engine reports; see `EngineObserver`.

    Its `on_...` methods belong to the engine's thread and take about a microsecond as long as `fold` is called now and
    then. Everything else may be called from any thread.
    """

    waiting: int = 0  # requests, when the last step began
    _pending: deque[StepRecord | RequestRecord | list[TokenRecord]] = field(default_factory=deque)
    _folding: Lock = field(default_factory=Lock)  # guards what follows
    _counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    _ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FINISH_REASONS, 0))
    _histograms: dict[str, _Histogram] = field(
        default_factory=lambda: {
            name: _Histogram(bounds, [0] * (len(bounds) + 1)) for name, (_, bounds) in HISTOGRAMS.items()
        }
    )

    def on_step(self, record: StepRecord) -> None:
        """A step ended."""
        self.waiting = record.waiting
        self._pending.append(record)
        if len(self._pending) > MAX_PENDING:
            self._shorten()

    def on_tokens(self, records: list[TokenRecord]) -> None:
        """Tokens of one step reached their requests; the list must not change any more."""
        self._pending.append(records)
        if len(self._pending) > MAX_PENDING:
            self._shorten()

    def on_request(self, record: RequestRecord) -> None:
        """A request ended."""
        self._pending.append(record)
        if len(self._pending) > MAX_PENDING:
            self._shorten()

    @property
    def pending(self) -> int:
        """Reports that were not folded yet."""
        return len(self._pending)

    def _shorten(self) -> None:
        """Folds two reports for the one that was added, unless another thread is folding anyway."""
        if self._folding.acquire(blocking=False):
            try:
                self._fold(2)
            finally:
                self._folding.release()

    def fold(self) -> None:
        """Folds everything that was reported so far, with pauses in which the engine can run."""
        for _ in range(len(self._pending) // _SLICE + 1):
            with self._folding:
                self._fold(_SLICE)
            time.sleep(0)  # gives the interpreter's lock away

    def _fold(self, count: int) -> None:
        for _ in range(min(count, len(self._pending))):
            report = self._pending.popleft()
            if isinstance(report, StepRecord):
                self._fold_step(report)
            elif isinstance(report, RequestRecord):
                self._fold_request(report)
            else:
                self._fold_tokens(report)

    def _fold_step(self, step: StepRecord) -> None:
        self._histograms["vllm:iteration_tokens_total"].observe(step.tokens)
        self._histograms["paiton_step_seconds"].observe(step.seconds)
        self._histograms["paiton_step_gap_seconds"].observe(step.gap_seconds)
        self._counters["vllm:num_preemptions"] += step.preemptions
        self._counters["vllm:prefix_cache_queries"] += step.prefix_queries
        self._counters["vllm:prefix_cache_hits"] += step.prefix_hits

    def _fold_tokens(self, tokens: list[TokenRecord]) -> None:
        """The one that runs for every token, hence written out."""
        later = self._histograms["vllm:inter_token_latency_seconds"]
        bounds, counts, total = later.bounds, later.counts, 0.0
        for token in tokens:
            if token.first:
                self._histograms["vllm:time_to_first_token_seconds"].observe(token.seconds)
            else:
                counts[bisect_left(bounds, token.seconds)] += 1
                total += token.seconds
        later.sum += total
        self._counters["vllm:generation_tokens"] += len(tokens)

    def _fold_request(self, request: RequestRecord) -> None:
        self._ended[request.finish_reason] = self._ended.get(request.finish_reason, 0) + 1
        values: dict[str, float | None] = {
            "e2e_request_latency_seconds": request.finished - request.arrived,
            "request_prompt_tokens": request.prompt_tokens,
            "request_generation_tokens": request.generated_tokens,
            "request_params_max_tokens": request.max_tokens,
        }
        if request.scheduled is not None:
            values["request_queue_time_seconds"] = request.scheduled - request.arrived
            values["request_inference_time_seconds"] = request.finished - request.scheduled
        if request.scheduled is not None and request.first_token is not None:
            decode = request.finished - request.first_token
            self._counters["vllm:prompt_tokens"] += request.prompt_tokens
            values["request_prefill_time_seconds"] = request.first_token - request.scheduled
            values["request_decode_time_seconds"] = decode
            if request.generated_tokens > 1:
                values["request_time_per_output_token_seconds"] = decode / (request.generated_tokens - 1)
        for name, value in values.items():
            if value is not None:
                self._histograms[f"vllm:{name}"].observe(value)

    def snapshot(self) -> Snapshot:
        """Returns everything that was reported so far; for a thread other than the event loop's."""
        self.fold()
        with self._folding:
            histograms = {name: (tuple(h.counts), h.sum) for name, h in self._histograms.items()}
            return Snapshot(dict(self._counters), dict(self._ended), histograms)


def metrics_routes(state: ServerState) -> Mapping[tuple[str, str], Handler]:
    """Returns the handlers by method and path."""
    return {("GET", "/metrics"): functools.partial(_metrics, state)}


async def _metrics(state: ServerState, request: HttpRequest) -> Response:
    """Answers from the end of the boot on, which a scrape would only hold up, until the process ends."""
    ready = state.ready if state.ready is not None else state.require_ready()
    accept = request.headers.get("accept", "")
    body, content_type = await asyncio.to_thread(_scrape, state, ready, accept)
    return Response(200, (("content-type", content_type),), body)


def _scrape(state: ServerState, ready: Ready, accept: str) -> tuple[bytes, str]:
    from paiton_runtime.server.scrape import ServerFacts, render  # noqa: PLC0415  (imports prometheus_client)

    if state.metrics is None:
        raise ApiError(503, "nothing is measured yet")
    engine = ready.engine.engine
    snapshot = state.metrics.snapshot()
    unfinished = engine.open_requests
    waiting = min(unfinished, state.metrics.waiting)  # that of the last step, which may be long ago
    model = engine.model
    facts = ServerFacts(
        model=ready.model_names[0],
        boot=state.ledger.as_list(),
        cache={
            "block_size": str(model.memory.kv_block_tokens),
            "num_gpu_blocks": str(model.kv_blocks),  # vLLM's name, on every device
            "enable_prefix_caching": str(engine.options.enable_prefix_caching),
        },
        gauges={
            "vllm:num_requests_running": unfinished - waiting,
            "vllm:num_requests_waiting": waiting,
            "vllm:kv_cache_usage_perc": 1 - engine.blocks.free / engine.blocks.blocks,
        },
    )
    return render(snapshot, facts, accept)
