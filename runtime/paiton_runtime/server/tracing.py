"""Spans of requests for OpenTelemetry, with the attributes that vLLM gives them. Needs the extra `otel`."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from paiton_artifacts.errors import UsageError
from paiton_artifacts.record import dataclass
from paiton_runtime.engine.observer import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_MODULES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a span shows of the HTTP request: `trace` holds its traceparent and tracestate, where it has them."""

    model: str
    temperature: float
    top_p: float
    choices: int
    trace: Mapping[str, str]


class Tracer:
    """Sends one span for each request that the engine ended.

    OpenTelemetry is imported with the first of them (0.2 s), not during the boot. Its own environment variables
    (OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, ...) hold. Not thread-safe.

    Args:
        endpoint: URL that takes OTLP over HTTP, such as http://host:4318/v1/traces.

    Raises:
        UsageError: OpenTelemetry is not installed, or the endpoint is no such URL.
    """

    def __init__(self, endpoint: str) -> None:
        _require_installed()
        if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
            raise UsageError(
                f"--otlp-traces-endpoint {endpoint} is not an HTTP address",
                hint="give the collector's OTLP/HTTP endpoint, such as http://localhost:4318/v1/traces",
            )
        for name in _PROTOCOLS:
            if os.environ.get(name, "http/protobuf") != "http/protobuf":
                raise UsageError(f"{name}={os.environ[name]} is not supported", hint="set it to http/protobuf")
        self._endpoint = endpoint
        self._provider: TracerProvider | None = None

    def trace(self, record: RequestRecord, facts: RequestFacts | None) -> None:
        """Queues the span of a request; it is sent with others, by a thread of OpenTelemetry's."""
        if self._provider is None:
            self._provider = _connect(self._endpoint)
        emit_span(self._provider, record, facts)

    def close(self) -> None:
        """Sends what is queued, or gives up when the exporter's time is over."""
        if self._provider is not None:
            self._provider.shutdown()


def emit_span(provider: TracerProvider, record: RequestRecord, facts: RequestFacts | None) -> None:
    """Makes the span of a request that has just ended."""
    from opentelemetry.trace import SpanKind, StatusCode  # noqa: PLC0415  (an extra)
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    now, now_ns = time.monotonic(), time.time_ns()

    def wall(moment: float) -> int:
        return now_ns - int((now - moment) * 1e9)

    parent = TraceContextTextMapPropagator().extract(facts.trace) if facts is not None else None
    span = provider.get_tracer("paiton_runtime").start_span(
        "llm_request",
        context=parent,
        kind=SpanKind.SERVER,
        attributes=attributes(record, facts),
        start_time=wall(record.arrived),
    )
    if record.finish_reason == "error":
        span.set_status(StatusCode.ERROR)
    span.end(end_time=wall(record.finished))


def attributes(record: RequestRecord, facts: RequestFacts | None) -> dict[str, str | int | float]:
    """Returns a span's attributes; latencies in seconds, absent where the request did not get so far."""
    known: dict[str, str | int | float | None] = {
        "gen_ai.request.id": record.request_id,
        "gen_ai.request.max_tokens": record.max_tokens,
        "gen_ai.usage.prompt_tokens": record.prompt_tokens,
        "gen_ai.usage.completion_tokens": record.generated_tokens,
        "gen_ai.latency.e2e": record.finished - record.arrived,
        "gen_ai.latency.time_in_queue": _between(record.arrived, record.scheduled),
        "gen_ai.latency.time_to_first_token": _between(record.arrived, record.first_token),
        "gen_ai.latency.time_in_model_prefill": _between(record.scheduled, record.first_token),
        "gen_ai.latency.time_in_model_decode": _between(record.first_token, record.finished),
        "gen_ai.latency.time_in_model_inference": _between(record.scheduled, record.finished),
    }
    if facts is not None:
        known |= {
            "gen_ai.request.model": facts.model,
            "gen_ai.response.model": facts.model,
            "gen_ai.request.temperature": facts.temperature,
            "gen_ai.request.top_p": facts.top_p,
            "gen_ai.request.n": facts.choices,
        }
    return {name: value for name, value in known.items() if value is not None}


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


def _require_installed() -> None:
    for module in _MODULES:
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # not even the package around it
            found = False
        if not found:
            raise UsageError(
                f"--otlp-traces-endpoint needs {module}, which is not installed", hint="pip install 'paiton-aot[otel]'"
            )


def _connect(endpoint: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  (an extra)
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    resource = Resource.create({} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "paiton-run"})
    # Not at exit: `Tracer.close` does it, and a collector that does not answer must not hold up the end.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider
