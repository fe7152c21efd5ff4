"""What the serving benchmark must show, judged by medians over rounds."""

from __future__ import annotations

from typing import Any

Medians = dict[str, dict[str, dict[str, float]]]

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


def targets(medians: Medians) -> list[dict[str, Any]]:
    """Returns each bound with our value, as far as it was measured."""
    found = []
    for what, (scenario, number), peer, comparison, bound in BOUNDS:
        value = medians.get("paiton", {}).get(scenario, {}).get(number)
        if value is not None and peer is not None:
            theirs = medians.get(peer, {}).get(scenario, {}).get(number)
            value = value / theirs if theirs else None
        if value is not None:
            met = value >= bound if comparison == ">=" else value <= bound
            found.append({"what": what, "value": value, "bound": f"{comparison} {bound}", "met": met})
    return found
