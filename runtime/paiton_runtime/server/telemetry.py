"""Where the engine's reports go: to the metrics, the log and the tracer, in a thread of their own.

The engine's thread only puts them into queues.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Mapping
from enum import Enum
from threading import Lock, Thread
from typing import TYPE_CHECKING

from paiton_runtime.engine.observer import RequestRecord, StepRecord, TokenRecord
from paiton_runtime.server.metrics import MAX_PENDING, Metrics
from paiton_runtime.server.tracing import RequestFacts, Tracer

if TYPE_CHECKING:
    from paiton_runtime.engine.params import SamplingParams

MAX_QUEUED = 10_000
"""Requests that wait to be logged and traced. More are not: whoever reads the log is too slow."""

MAX_DESCRIBED = 10_000
"""Requests whose headers are remembered for their spans, the latest ones."""

_CLOSE_SECONDS = 3.0

_FOLD_AT = MAX_PENDING // 4
"""Reports that the metrics may hold before the thread counts them."""

Log = Callable[[dict[str, object]], None]


class _Order(Enum):
    FOLD = "count the metrics' reports"
    END = "end the thread"


class Telemetry:
    """The engine's observer in the server.

    Args:
        otlp_endpoint: URL of an OpenTelemetry collector that gets a span of each request.
        log: writes one structured line; it is called from the thread of this object only.
        first_token: called when the first token of all reaches its request, from the engine's thread.

    Attributes:
        metrics: what `/metrics` shows.
        dropped: requests that were neither logged nor traced, see `MAX_QUEUED`.

    Raises:
        UsageError: OpenTelemetry is not installed, or the endpoint is none.
    """

    def __init__(
        self,
        *,
        otlp_endpoint: str | None = None,
        log: Log | None = None,
        first_token: Callable[[], None] | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.dropped = 0
        self._tracer = Tracer(otlp_endpoint) if otlp_endpoint is not None else None
        self._log = log
        self._first_token = first_token
        self._described: dict[str, _Described] = {}
        self._guard = Lock()  # of _described
        self._work: queue.SimpleQueue[RequestRecord | _Order] = queue.SimpleQueue()
        self._asked = False  # for a fold, which has not begun
        self._wanted = log is not None or self._tracer is not None
        self._thread = Thread(target=self._run, name="paiton-telemetry", daemon=True)
        self._thread.start()

    def on_step(self, record: StepRecord) -> None:
        """A step ended."""
        self.metrics.on_step(record)
        if self.metrics.pending > _FOLD_AT and not self._asked:
            self._asked = True
            self._work.put(_Order.FOLD)

    def on_tokens(self, records: list[TokenRecord]) -> None:
        """Tokens of one step reached their requests."""
        if self._first_token is not None:
            self._first_token()
            self._first_token = None
        self.metrics.on_tokens(records)

    def on_request(self, record: RequestRecord) -> None:
        """A request ended."""
        self.metrics.on_request(record)
        if self._wanted:
            if self._work.qsize() < MAX_QUEUED:
                self._work.put(record)
            else:
                self.dropped += 1

    def describe(
        self,
        request_id: str,
        headers: Mapping[str, str],
        model: str,
        params: SamplingParams,
        choices: int = 1,
    ) -> None:
        """Remembers what a span shows besides the engine's record; to be called before the request is submitted.

        Args:
            request_id: of the HTTP request; the engine's are the same, or that with "-1", "-2" ... behind it.
            headers: of the HTTP request, with lower-case names.
            model: that it asked for.
            params: how its tokens are drawn.
            choices: requests that the engine gets for it.
        """
        if self._tracer is None:
            return
        trace = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        facts = RequestFacts(model, params.temperature, params.top_p, choices, trace)
        with self._guard:
            self._described[request_id] = _Described(facts, choices)
            if len(self._described) > MAX_DESCRIBED:
                del self._described[next(iter(self._described))]

    def close(self) -> None:
        """Logs and traces what is left, for a few seconds at most; the engine must have stopped."""
        self._work.put(_Order.END)
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while (work := self._work.get()) is not _Order.END:
            if work is _Order.FOLD:
                self._asked = False
                self.metrics.fold()
            else:
                self._tell(work)
        if self._tracer is not None:
            self._tracer.close()

    def _tell(self, record: RequestRecord) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):  # nobody reads the log any more: no reason to stop tracing
                self._log(log_fields(record))
        if self._tracer is not None:
            self._tracer.trace(record, self._take(record.request_id))

    def _take(self, engine_id: str) -> RequestFacts | None:
        head, _, tail = engine_id.rpartition("-")
        with self._guard:
            request_id = engine_id if engine_id in self._described or not tail.isdecimal() else head
            described = self._described.get(request_id)
            if described is None:
                return None
            described.left -= 1
            if described.left == 0:
                del self._described[request_id]
            return described.facts


class _Described:
    """Facts about a request, and how many of its choices have not ended."""

    __slots__ = ("facts", "left")

    def __init__(self, facts: RequestFacts, left: int) -> None:
        self.facts = facts
        self.left = left


def log_fields(record: RequestRecord) -> dict[str, object]:
    """Returns what a log line tells of a request that the engine ended; times in seconds, absent where unknown."""
    times = {
        "queue_seconds": record.scheduled,
        "first_token_seconds": record.first_token,
        "seconds": record.finished,
    }
    return {
        "event": "generated",
        "id": record.request_id,
        "finish_reason": record.finish_reason,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "generated_tokens": record.generated_tokens,
        "preemptions": record.preemptions,
        **{name: round(moment - record.arrived, 6) for name, moment in times.items() if moment is not None},
    }
