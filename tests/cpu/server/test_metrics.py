"""`/metrics`: what it says after real requests, its formats, and what reporting costs the engine."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from paiton_runtime.engine.observer import RequestRecord, StepRecord, TokenRecord
from paiton_runtime.server.metrics import HISTOGRAMS, MAX_PENDING, Metrics
from paiton_runtime.server.scrape import ServerFacts, render
from paiton_runtime.server.telemetry import Telemetry
from tests.conftest import python_environment
from tests.cpu.server.conftest import StartServer
from tests.cpu.server.server_process import SECONDS, Server

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
FACTS = ServerFacts("m", (), {}, {})

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str, parse: Callable[[str], Any] = parse_text) -> Samples:
    """All samples by name and labels, `model_name` aside."""
    return {
        (sample.name, frozenset((name, value) for name, value in sample.labels.items() if name != "model_name")): (
            sample.value
        )
        for family in parse(text)
        for sample in family.samples
    }


def scrape(server: Server) -> Samples:
    return samples(server.get("/metrics").body.decode())


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def step_record(**changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "tokens": 1,
        "decoding": 0,
        "seconds": 0.01,
        "gap_seconds": 0.0,
        "running": 1,
        "waiting": 0,
        "kv_usage": 0.5,
        "prefix_queries": 0,
        "prefix_hits": 0,
        "preemptions": 0,
    }
    return StepRecord(**(values | changes))


def request_record(**changes: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "request_id": "r",
        "prompt_tokens": 5,
        "cached_tokens": 0,
        "generated_tokens": 3,
        "max_tokens": 8,
        "finish_reason": "stop",
        "arrived": 1.0,
        "scheduled": 1.5,
        "first_token": 2.0,
        "finished": 4.0,
        "preemptions": 0,
    }
    return RequestRecord(**(values | changes))


def counted(server: Server, name: str, count: float, **labels: str) -> Samples:
    """Scrapes until a counter has a value: a request is answered a moment before it is counted."""
    deadline = time.monotonic() + SECONDS
    while value(found := scrape(server), name, **labels) < count:
        assert time.monotonic() < deadline, (name, value(found, name, **labels), count)
        time.sleep(0.01)
    return found


def test_requests_are_counted_as_the_answers_say(server: Server) -> None:
    before = scrape(server)
    bodies = [
        {"prompt": "one two three", "max_tokens": 5, "ignore_eos": True},
        {"prompt": "four", "max_tokens": 9, "ignore_eos": True, "n": 2},
        {"prompt": "five six", "max_tokens": 1, "ignore_eos": True},
    ]
    usages = [server.post("/v1/completions", {"temperature": 0, **body}).json()["usage"] for body in bodies]
    assert [usage["completion_tokens"] for usage in usages] == [5, 18, 1]
    requests, generated = 4, 24
    prompts = sum(usage["prompt_tokens"] * (2 if i == 1 else 1) for i, usage in enumerate(usages))
    reason = {"finished_reason": "length"}
    ended = value(before, "vllm:request_success_total", **reason) + requests
    after = counted(server, "vllm:request_success_total", ended, **reason)

    def grown(name: str) -> float:
        return value(after, name) - value(before, name)

    assert value(after, "vllm:request_success_total", **reason) == ended
    assert grown("vllm:generation_tokens_total") == generated
    assert grown("vllm:prompt_tokens_total") == prompts
    assert grown("vllm:time_to_first_token_seconds_count") == requests
    assert grown("vllm:inter_token_latency_seconds_count") == generated - requests
    assert grown("vllm:request_time_per_output_token_seconds_count") == requests - 1  # one of them had one token
    assert grown("vllm:request_generation_tokens_sum") == generated
    assert grown("vllm:request_prompt_tokens_sum") == prompts
    assert grown("vllm:request_params_max_tokens_sum") == 5 + 9 + 9 + 1
    for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"):
        assert grown(f"vllm:{name}_seconds_count") == requests
    parts = ("queue", "prefill", "decode")
    whole = sum(grown(f"vllm:request_{part}_time_seconds_sum") for part in parts)
    assert whole == pytest.approx(grown("vllm:e2e_request_latency_seconds_sum"))
    assert grown("vllm:iteration_tokens_total_sum") >= generated - requests
    assert grown("paiton_step_seconds_count") == grown("vllm:iteration_tokens_total_count") > 0


def test_gauges_follow_a_request_and_return(smollm2_server: Server) -> None:
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    assert [value(scrape(smollm2_server), name) for name in names] == [0, 0, 0]
    aborted = {"finished_reason": "abort"}
    before = value(scrape(smollm2_server), "vllm:request_success_total", **aborted)
    body = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": True}  # for many seconds
    with smollm2_server.stream("/v1/completions", body) as events:
        next(iter(events))
        found = scrape(smollm2_server)
        assert value(found, names[0]) == 1
        assert value(found, names[2]) > 0
    found = counted(smollm2_server, "vllm:request_success_total", before + 1, **aborted)
    assert [value(found, name) for name in names] == [0, 0, 0]


def test_prefix_cache_hits_are_the_cached_tokens_of_the_answers(server: Server) -> None:
    before = scrape(server)
    body = {"prompt": "the same beginning of a prompt, " * 8, "max_tokens": 2, "ignore_eos": True}
    usages = [server.post("/v1/completions", body).json()["usage"] for _ in range(2)]
    cached = sum((usage["prompt_tokens_details"] or {}).get("cached_tokens", 0) for usage in usages)
    assert cached > 0
    after = counted(server, "vllm:prompt_tokens_total", value(before, "vllm:prompt_tokens_total") + 1)
    assert value(after, "vllm:prefix_cache_hits_total") - value(before, "vllm:prefix_cache_hits_total") == cached
    asked = value(after, "vllm:prefix_cache_queries_total") - value(before, "vllm:prefix_cache_queries_total")
    assert asked == sum(usage["prompt_tokens"] for usage in usages)


def test_boot_stages_are_the_ledgers(server: Server) -> None:
    found = scrape(server)
    stages = {row["stage"]: row["end"] - row["start"] for row in server.get("/boot").json()["stages"]}
    assert {"open", "weights", "graph compilation", "total"} <= set(stages)
    for stage, seconds in stages.items():
        assert value(found, "paiton_boot_seconds", stage=stage) == pytest.approx(seconds)


def test_process_and_cache_are_described(server: Server) -> None:
    families = {family.name: family for family in parse_text(server.get("/metrics").body.decode())}
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text(encoding="ascii").split()[1])
    assert families["process_resident_memory_bytes"].samples[0].value == pytest.approx(pages * 4096, rel=0.2)
    (info,) = families["vllm:cache_config_info"].samples
    assert info.labels["block_size"] == "16"
    assert int(info.labels["num_gpu_blocks"]) > 0
    names = {model["id"] for model in server.get("/v1/models").json()["data"]}
    labelled = [sample for name, family in families.items() for sample in family.samples if "process" not in name]
    assert {sample.labels["model_name"] for sample in labelled} == names


def test_both_formats_say_the_same(server: Server) -> None:
    """Prometheus asks for OpenMetrics first; names keep their colon in it."""
    text = server.get("/metrics")
    assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    openmetrics = server.get("/metrics", {"accept": OPENMETRICS})
    assert openmetrics.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert openmetrics.body.endswith(b"# EOF\n")
    found = samples(openmetrics.body.decode(), parse_openmetrics)
    known = samples(text.body.decode())
    assert found.keys() == known.keys()
    mine = {key for key in known if not key[0].startswith("process_")}
    assert {key: found[key] for key in mine} == {key: known[key] for key in mine}


def test_a_scrape_does_not_hold_up_the_boot(start_server: StartServer, tiny_bundle: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    server = start_server(tiny_bundle, hold=(gate, "tokenizer"))
    answer = server.get("/metrics")
    assert answer.status == 503
    assert answer.error["code"] == "booting"
    gate.touch()
    assert server.wait_until_ready().get("/metrics").status == 200


def test_histograms_are_those_of_prometheus_client() -> None:
    """The same values given to the library's own histograms, bounds met exactly included."""
    random.seed(5)
    metrics = Metrics()
    registry = CollectorRegistry()
    name = "vllm:inter_token_latency_seconds"
    text, bounds = HISTOGRAMS[name]
    reference = Histogram(name, text, ("model_name",), buckets=bounds, registry=registry)
    seconds = [random.expovariate(20) for _ in range(500)] + [*bounds, 1000.0]
    metrics.on_tokens([TokenRecord(False, second) for second in seconds])
    for second in seconds:
        reference.labels("m").observe(second)
    body, _ = render(metrics.snapshot(), FACTS, "")
    mine = {key: number for key, number in samples(body.decode()).items() if key[0].startswith(f"{name}_")}
    theirs = {
        (sample.name, frozenset(label for label in sample.labels.items() if label[0] != "model_name")): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert mine.keys() == theirs.keys()
    assert mine == pytest.approx(theirs)


def test_unread_reports_stay_few_and_are_not_lost() -> None:
    metrics = Metrics()
    for _ in range(3 * MAX_PENDING):
        metrics.on_step(step_record(tokens=2))
        metrics.on_tokens([TokenRecord(True, 0.1), TokenRecord(False, 0.1)])
        metrics.on_request(request_record())
    assert metrics.pending <= MAX_PENDING
    found = metrics.snapshot()
    assert metrics.pending == 0
    assert found.counters["vllm:generation_tokens"] == 6 * MAX_PENDING
    assert found.counters["vllm:prompt_tokens"] == 15 * MAX_PENDING
    assert found.ended["stop"] == 3 * MAX_PENDING
    assert found.histograms["vllm:iteration_tokens_total"][1] == 6 * MAX_PENDING


def test_unread_reports_are_counted_off_the_engines_thread() -> None:
    telemetry = Telemetry()
    try:
        for _ in range(2 * MAX_PENDING):
            telemetry.on_step(step_record())
            deadline = time.monotonic() + SECONDS
            while telemetry.metrics.pending > MAX_PENDING // 2:
                assert time.monotonic() < deadline
        assert sum(telemetry.metrics.snapshot().histograms["paiton_step_seconds"][0]) == 2 * MAX_PENDING
    finally:
        telemetry.close()


def test_nothing_is_lost_while_others_read() -> None:
    metrics = Metrics()
    steps = 20_000
    done = False

    def read() -> None:
        while not done:
            metrics.snapshot()

    readers = [Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(steps):
        metrics.on_tokens([TokenRecord(False, 0.01)] * 3)
    done = True
    for reader in readers:
        reader.join()
    found = metrics.snapshot()
    assert found.counters["vllm:generation_tokens"] == 3 * steps
    assert sum(found.histograms["vllm:inter_token_latency_seconds"][0]) == 3 * steps


def test_a_request_that_was_never_scheduled_has_only_an_end() -> None:
    metrics = Metrics()
    record = request_record(
        finish_reason="abort", scheduled=None, first_token=None, generated_tokens=0, max_tokens=None
    )
    metrics.on_request(record)
    found = metrics.snapshot()
    assert found.ended == {"stop": 0, "length": 0, "abort": 1, "error": 0}
    assert found.counters["vllm:prompt_tokens"] == 0
    counts = {name: sum(counts) for name, (counts, _) in found.histograms.items()}
    expected = {"vllm:e2e_request_latency_seconds", "vllm:request_prompt_tokens", "vllm:request_generation_tokens"}
    assert {name for name, count in counts.items() if count} == expected


def test_reporting_needs_no_prometheus_client() -> None:
    """A boot must not pay for its import."""
    code = (
        "import sys; from paiton_runtime.server.telemetry import Telemetry; Telemetry().on_tokens([]);"
        "sys.exit(any(name.startswith(('prometheus', 'opentelemetry')) for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=python_environment(), check=False)
    assert done.returncode == 0
