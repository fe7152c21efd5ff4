"""Spans and log lines of requests: a collector of our own receives what a real server sends."""

from __future__ import annotations

import http.server
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from paiton_artifacts.errors import UsageError
from paiton_runtime.engine.params import SamplingParams
from paiton_runtime.server.telemetry import MAX_DESCRIBED, MAX_QUEUED, Telemetry
from paiton_runtime.server.tracing import RequestFacts, Tracer, emit_span
from tests.conftest import python_environment
from tests.cpu.server.conftest import StartServer
from tests.cpu.server.test_metrics import request_record

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Collector:
    """Takes OTLP over HTTP; `spans` are protobuf messages of opentelemetry-proto."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.receive(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *words: object) -> None:
                del words

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    def receive(self, request: Any) -> None:
        """Keeps what was sent."""
        for resource in request.resource_spans:
            names = {item.key: item.value.string_value for item in resource.resource.attributes}
            self.services.add(names["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def close(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector for one test."""
    made = Collector()
    yield made
    made.close()


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


def test_spans_and_log_lines_tell_of_requests(
    start_server: StartServer, tiny_bundle: Path, collector: Collector
) -> None:
    server = start_server(tiny_bundle, "--otlp-traces-endpoint", collector.endpoint, "--log-format", "json")
    server.wait_until_ready()
    body = {"prompt": "one two", "max_tokens": 6, "ignore_eos": True, "temperature": 0.5, "top_p": 0.9, "n": 2}
    headers = {"traceparent": TRACEPARENT, "x-request-id": "mine"}
    began = time.time_ns()
    answer = server.post("/v1/completions", body, headers).json()
    ended = time.time_ns()
    server.post("/v1/completions", {"prompt": "alone", "max_tokens": 1})
    assert server.stop() == 0

    traced = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    assert len(traced) == 2
    assert collector.services == {"paiton-run"}
    for span in traced:
        assert span.name == "llm_request"
        assert span.parent_span_id.hex() == PARENT
        assert span.kind == SpanKind.SERVER.value + 1  # the protocol counts from 1, OpenTelemetry's API from 0
        assert began < span.start_time_unix_nano < span.end_time_unix_nano < ended + 50_000_000
        found = attributes(span)
        assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == answer["model"]
        assert found["gen_ai.usage.prompt_tokens"] == answer["usage"]["prompt_tokens"]
        assert found["gen_ai.usage.completion_tokens"] == found["gen_ai.request.max_tokens"] == 6
        assert (found["gen_ai.request.temperature"], found["gen_ai.request.top_p"]) == (0.5, 0.9)
        assert found["gen_ai.request.n"] == 2
        assert found["gen_ai.request.id"] in ("mine", "mine-1")
        seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert found["gen_ai.latency.e2e"] == pytest.approx(seconds, abs=1e-6)
        assert 0 < found["gen_ai.latency.time_to_first_token"] < found["gen_ai.latency.e2e"]
    (alone,) = [span for span in collector.spans if span.trace_id.hex() != TRACE]
    assert alone.parent_span_id == b""

    lines = [json.loads(line) for line in server.stderr.splitlines() if line.startswith("{")]
    generated = [line for line in lines if line["event"] == "generated"]
    assert [line["generated_tokens"] for line in generated] == [6, 6, 1]
    assert {line["id"] for line in generated[:2]} == {"mine", "mine-1"}
    assert {line["prompt_tokens"] for line in generated[:2]} == {answer["usage"]["prompt_tokens"]}
    assert {line["finish_reason"] for line in generated} == {"length"}
    assert all(0 < line["first_token_seconds"] <= line["seconds"] for line in generated)


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(
    start_server: StartServer, tiny_bundle: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        server = start_server(tiny_bundle, "--otlp-traces-endpoint", endpoint).wait_until_ready()
        assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200
        server.signal(signal.SIGTERM)
        assert server.wait(seconds=15) == 0


def test_without_the_extra_the_server_says_what_to_install(tiny_bundle: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None; from paiton_runtime.cli import main;"
        f"sys.exit(main(['serve', {str(tiny_bundle)!r}, '--port', '0', '--otlp-traces-endpoint', 'http://x/v1/traces']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=python_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "opentelemetry.sdk, which is not installed" in done.stderr
    assert "pip install 'paiton-aot[otel]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("endpoint", ["grpc://localhost:4317", "localhost:4318", "http://", ""])
def test_endpoints_that_are_no_http_addresses_are_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match="OTLP/HTTP endpoint"):
        Tracer(endpoint)


def test_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(UsageError, match="OTEL_EXPORTER_OTLP_PROTOCOL=grpc is not supported"):
        Tracer("http://localhost/v1/traces")


def test_a_span_of_a_failed_request_is_an_error_and_leaves_out_what_is_not_known() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    now = time.monotonic()
    record = request_record(
        finish_reason="error", arrived=now - 2.5, scheduled=None, first_token=None, finished=now, max_tokens=None
    )
    emit_span(provider, record, None)
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.start_time is not None
    assert span.end_time is not None
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(2.5, abs=1e-6)
    assert span.end_time / 1e9 == pytest.approx(time.time(), abs=5)
    assert span.attributes is not None
    assert set(span.attributes) == {
        "gen_ai.request.id",
        "gen_ai.usage.prompt_tokens",
        "gen_ai.usage.completion_tokens",
        "gen_ai.latency.e2e",
    }


def test_facts_are_found_by_all_choices_and_then_forgotten() -> None:
    telemetry = Telemetry(otlp_endpoint="http://localhost:9/v1/traces")
    try:
        headers = {"traceparent": TRACEPARENT, "authorization": "Bearer secret"}
        telemetry.describe("a-7", headers, "m", SamplingParams(temperature=0.25), choices=3)
        facts = RequestFacts("m", 0.25, 1.0, 3, {"traceparent": TRACEPARENT})
        assert telemetry._take("a-8") is None
        assert [telemetry._take(name) for name in ("a-7-1", "a-7", "a-7-2")] == [facts] * 3
        assert telemetry._take("a-7") is None
        for number in range(MAX_DESCRIBED + 5):
            telemetry.describe(f"r{number}", {}, "m", SamplingParams())
        assert len(telemetry._described) == MAX_DESCRIBED
        assert telemetry._take("r0") is None
    finally:
        telemetry.close()


def test_a_log_that_nobody_reads_costs_lines_not_the_engine() -> None:
    gate, lines = Event(), []

    def log(fields: dict[str, object]) -> None:
        gate.wait()
        lines.append(fields)
        if len(lines) == 1:
            raise BrokenPipeError

    telemetry = Telemetry(log=log)
    for _ in range(MAX_QUEUED + 10):
        telemetry.on_request(request_record())
    assert telemetry.dropped in (9, 10)  # one of them may be in the log's hands
    gate.set()
    telemetry.close()
    assert len(lines) + telemetry.dropped == MAX_QUEUED + 10
    assert telemetry.metrics.snapshot().ended["stop"] == MAX_QUEUED + 10
