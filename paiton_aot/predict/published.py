"""Published figures that predictions are printed beside; none was reproduced by this project.

Llama-3.1-405B in FP8 on eight MI300X, one machine:

- *start-up*: eliovp.com, "Paiton: Dramatically Faster Startup and Performance for Llama-3.1-405B" (2025; vLLM 0.9.0,
  ROCm 6.3.1, ten runs): what vLLM's stages took, and those of the product that this project re-creates. Storage and
  page cache are not stated.
- *latency*: blogs.oracle.com, "Serving Llama 3.1 405B model with AMD MI300X GPUs" (2024; vLLM's `benchmark_latency.py`
  on BM.GPU.MI300X.8): batches of requests with 128 tokens in and 128 out, offline.
"""

from __future__ import annotations

from dataclasses import dataclass

STAGES = ("weights", "memory profiling", "graph compilation", "warm-up", "total")
"""Stages of a boot that all engines have."""


@dataclass(frozen=True, slots=True)
class StartUp:
    """Seconds of a published start-up, by stage."""

    name: str
    seconds: tuple[float, ...]


START_UPS = (
    StartUp("vLLM 0.9", (71.2, 70.0, 27.0, 98.4, 266.6)),
    StartUp("re-created product", (64.3, 38.6, 0.0, 40.6, 143.5)),
)

TOKENS_IN = TOKENS_OUT = 128
"""Of each request in `LATENCIES`."""

LATENCIES = {
    1: 3.530,
    2: 3.583,
    4: 3.734,
    8: 3.974,
    16: 4.375,
    32: 5.130,
    64: 6.919,
    128: 10.340,
    256: 17.750,
}
"""Seconds from a batch's start to its end, by its requests."""

MODEL = ("LlamaForCausalLM", 126, 16384, "mi300x", 8)
"""Architecture, layers, hidden size, device and ranks that the figures are of."""
