"""What the serving benchmark reports of its measurements: medians over rounds, ratios, and what it must show."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.comparison import print_table
from benchmarks.serve_scenarios import Numbers

Samples = dict[str, dict[str, list[Numbers]]]
"""What was measured: by server and scenario, one entry a round."""

Medians = dict[str, dict[str, Numbers]]

BOUNDS = (
    ("throughput at 32 streams over llama.cpp's", ("load", "output_tokens_per_second"), "llama.cpp", ">=", 1.5),
    ("throughput at 32 streams over vLLM's", ("load", "output_tokens_per_second"), "vllm", ">=", 2.0),
    ("p99 inter-token latency over llama.cpp's", ("load", "itl_p99"), "llama.cpp", "<=", 1.0),
    ("TTFT at one request a second over llama.cpp's", ("arrivals", "ttft_mean"), "llama.cpp", "<=", 0.8),
    ("TTFT at one request a second over vLLM's", ("arrivals", "ttft_mean"), "vllm", "<=", 0.8),
    ("TTFT of a repeated prompt over the cold one", ("prefix", "repeated_over_cold"), None, "<=", 0.15),
    ("start of the process to the first token, seconds", ("start", "first_token_seconds"), None, "<=", 0.6),
    ("greedy texts that differ under load", ("invariance", "texts_that_differ"), None, "<=", 0.0),
    ("greedy logprobs that differ under load", ("invariance", "logprobs_that_differ"), None, "<=", 0.0),
)
"""(what, (scenario, number), whose number divides it, comparison, bound)."""


def targets(middle: Medians) -> list[dict[str, Any]]:
    """Returns each bound with our value, as far as it was measured."""
    found = []
    for what, (scenario, number), peer, comparison, bound in BOUNDS:
        value = middle.get("paiton", {}).get(scenario, {}).get(number)
        if value is not None and peer is not None:
            theirs = middle.get(peer, {}).get(scenario, {}).get(number)
            value = value / theirs if theirs else None
        if value is not None:
            met = value >= bound if comparison == ">=" else value <= bound
            found.append({"what": what, "value": value, "bound": f"{comparison} {bound}", "met": met})
    return found


def medians(samples: Samples) -> Medians:
    """Returns the median over runs of every number."""
    return _over_runs(samples, statistics.median)


def means(samples: Samples) -> Medians:
    """Returns the mean over runs of every number."""
    return _over_runs(samples, statistics.fmean)


def _over_runs(samples: Samples, reduce: Callable[[Iterable[float]], float]) -> Medians:
    return {
        server: {
            scenario: {name: reduce(run[name] for run in runs if name in run) for name in runs[0]}
            for scenario, runs in scenarios.items()
        }
        for server, scenarios in samples.items()
    }


def ratios(middle: Medians) -> Medians:
    """Returns our medians over those of each peer."""
    ours = middle.get("paiton", {})
    return {
        peer: {
            scenario: {
                name: ours[scenario][name] / value
                for name, value in numbers.items()
                if value and name in ours[scenario]
            }
            for scenario, numbers in theirs.items()
            if scenario in ours
        }
        for peer, theirs in middle.items()
        if peer != "paiton"
    }


THROUGHPUTS = {
    "request/s": "requests_per_second",
    "output tok/s": "output_tokens_per_second",
    "total tok/s": "total_tokens_per_second",
}
LATENCIES = {
    "TTFT cold ms": "ttft_cold_mean",
    "TTFT ms": "ttft_steady_mean",
    "E2EL ms": "e2el_mean",
    "ITL ms": "itl_mean",
    "ITL p99 ms": "itl_p99",
}


def serving_table(average: Medians) -> tuple[list[str], list[list[str]]]:
    """Returns heading and rows of what is published of servers: throughputs, and means of latencies in milliseconds."""
    rows = []
    for server, scenarios in average.items():
        if load := scenarios.get("load"):
            cells = [f"{load[name]:.2f}" for name in THROUGHPUTS.values()]
            rows.append([server, *cells, *(f"{load[name] * 1e3:.0f}" for name in LATENCIES.values())])
    return ["server", *THROUGHPUTS, *LATENCIES], rows


def print_means(samples: Samples, absent: Mapping[str, str]) -> None:
    """Prints the table, of means over runs."""
    print_table(*serving_table(means(samples)))
    for server, reason in absent.items():
        print(f"{server}: absent, {reason}")
