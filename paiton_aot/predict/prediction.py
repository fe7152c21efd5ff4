"""What a plan predicts for one profile: steps, a batch served from start to end, a boot; as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paiton_aot.lower import Lowered
from paiton_aot.predict.boot import GOLDEN_TOKENS, STORAGE_RATE, Stage, boot_ledger
from paiton_aot.predict.limits import Limits, limits_of
from paiton_aot.predict.published import LATENCIES, MODEL, STAGES, START_UPS, TOKENS_IN, TOKENS_OUT
from paiton_aot.predict.step import StepTime, step_time
from paiton_aot.targets.gpu.plans import Configured

_MARK = "PREDICTION: nothing below was measured on this device"


@dataclass(frozen=True, slots=True)
class Served:
    """A batch of requests that start together, each with so many tokens in and out.

    Attributes:
        requests: in the batch.
        first: mean seconds to a first token (TTFT).
        between: mean seconds from a token to the next (ITL).
        last: seconds to the last token (E2EL).
    """

    requests: int
    first: float
    between: float
    last: float

    def as_json(self) -> dict[str, float]:
        """Returns latencies in milliseconds, and throughputs per second."""
        return {
            "requests": self.requests,
            "ttft_ms": round(self.first * 1e3, 2),
            "itl_ms": round(self.between * 1e3, 3),
            "e2el_ms": round(self.last * 1e3, 1),
            "requests_per_second": round(self.requests / self.last, 3),
            "output_tokens_per_second": round(self.requests * TOKENS_OUT / self.last, 1),
            "total_tokens_per_second": round(self.requests * (TOKENS_IN + TOKENS_OUT) / self.last, 1),
        }


@dataclass(frozen=True, slots=True)
class Prediction:
    """Everything that is predicted for a profile."""

    profile: str
    steps: Sequence[StepTime]
    served: Sequence[Served]
    ledger: Sequence[Stage]
    limits: Limits
    storage_rate: float
    published: bool  # the published figures are of this model, device and number of ranks

    def as_json(self) -> dict[str, Any]:
        """Returns the prediction as plain data; seconds unless a name says otherwise."""
        return {
            "note": _MARK,
            "profile": self.profile,
            "steps": [step.as_json() for step in self.steps],
            "served": [served.as_json() for served in self.served],
            "boot": [
                {"stage": s.name, "start": round(s.start, 3), "end": round(s.end, 3), "note": s.note}
                for s in self.ledger
            ],
            "published": self._published_json() if self.published else None,
            "assumptions": self.assumptions(),
        }

    def assumptions(self) -> list[str]:
        """Returns what the numbers rest on; sources are in docs/prediction.md."""
        limits = self.limits
        fp8, bf16 = limits.fp8_rate / 1e12, limits.bf16_rate / 1e12
        one, two = limits.one_shot * 1e6, limits.two_shot * 1e6
        return [
            (
                f"device memory {limits.memory_rate / 1e12:.2f} TB/s, matrix units {fp8:.0f} TFLOPS FP8"
                f" and {bf16:.0f} bf16: shares of the peaks that others measured"
            ),
            f"{limits.launch * 1e6:.1f} us for every launch, on top of its roofline; nothing overlaps",
            (
                f"{limits.link_rate / 1e9:.0f} GB/s to each peer; all-reduce from {one:.1f} us (one shot)"
                f" or {two:.1f} us (two)"
            ),
            (
                f"storage {self.storage_rate / 1e9:.1f} GB/s for all ranks together, {limits.copy_rate / 1e9:.0f} GB/s"
                " to a device; weights are read once"
            ),
            f"requests start together, with {TOKENS_IN} tokens in and {TOKENS_OUT} out; the host keeps up",
        ]

    def as_text(self) -> str:
        """Returns the prediction as tables for people."""
        lines = [f"{self.profile:16} {_MARK}"]
        lines.append(f"  {'step':>18} {'ms':>8} {'memory':>8} {'matrix':>8} {'comm':>8} {'launches':>9}")
        for step in self.steps:
            name = f"{step.tokens} tokens, {step.requests} req"
            parts = (step.seconds, step.memory, step.matrix, step.communication, step.overhead)
            cells = [f"{part * 1e3:8.2f}" for part in parts[:4]]
            lines.append(f"  {name:>18} {' '.join(cells)} {parts[4] * 1e3:9.2f}")
        lines += self._served_lines() + self._boot_lines()
        return "\n".join([*lines, "  assumptions", *(f"    {text}" for text in self.assumptions())])

    def _served_lines(self) -> list[str]:
        title = f"{TOKENS_IN} in, {TOKENS_OUT} out"
        columns = ("TTFT ms", "ITL ms", "E2EL ms", "req/s", "out tok/s", "tok/s")
        heads = [f"  {title:>18} " + " ".join(f"{name:>9}" for name in columns)]
        if self.published:
            heads[0] += f" {'published E2EL (vLLM, Oracle 2024)':>35}"
        lines = []
        for served in self.served:
            values = list(served.as_json().values())[1:]
            line = f"  {f'batch {served.requests}':>18} " + " ".join(f"{value:9.1f}" for value in values)
            if self.published and served.requests in LATENCIES:
                line += f" {LATENCIES[served.requests] * 1e3:32.0f} ms"
            lines.append(line)
        return heads + lines

    def _boot_lines(self) -> list[str]:
        others = START_UPS if self.published else ()
        head = f"  {'boot':>18} {'start s':>9} {'end s':>9} {'seconds':>9}"
        lines = [head + "".join(f" {other.name + ' (published)':>31}" for other in others)]
        for stage in self.ledger:
            line = f"  {stage.name:>18} {stage.start:9.2f} {stage.end:9.2f} {stage.seconds:9.2f}"
            if stage.name in STAGES:
                line += "".join(f" {other.seconds[STAGES.index(stage.name)]:31.1f}" for other in others)
            elif others:
                line += " " * 32 * len(others)
            lines.append(f"{line}  {stage.note}".rstrip())
        return lines

    def _published_json(self) -> dict[str, Any]:
        return {
            "start_up_seconds": {other.name: dict(zip(STAGES, other.seconds, strict=True)) for other in START_UPS},
            "vllm_batch_e2el_seconds": {str(requests): seconds for requests, seconds in LATENCIES.items()},
        }


def predict(lowered: Lowered, configured: Configured, storage_rate: float | None = None) -> Prediction:
    """Predicts what a profile's plans would take on their device.

    Args:
        lowered: the model.
        configured: the profile's plans before addresses are settled.
        storage_rate: bytes per second at which all ranks together read weights.
    """
    profile, chains = configured.profile, configured.chains
    memory = configured.memory

    def step(tokens: int, requests: int, context: int) -> StepTime:
        return step_time(chains, profile, min(tokens, memory.max_tokens), requests, min(context, longest))

    longest, tp = lowered.facts.max_model_len, lowered.shape.tp
    limits = limits_of(profile)
    batches = [size for size in LATENCIES if size <= min(memory.max_requests, memory.max_tokens)]
    middle = TOKENS_IN + TOKENS_OUT // 2
    decode = {size: step(size, size, middle) for size in batches}
    chunk = min(memory.max_tokens, 2048)
    prefill = step(chunk, min(memory.max_requests, max(1, chunk // TOKENS_IN)), TOKENS_IN)
    served = [_served(size, decode[size].seconds, memory.max_tokens, step) for size in batches]
    rate = storage_rate or STORAGE_RATE
    golden = step(GOLDEN_TOKENS, 1, GOLDEN_TOKENS).seconds
    ledger = boot_ledger(lowered.blob_bytes, tp, len(chains), rate, limits, golden, step(1, 1, GOLDEN_TOKENS).seconds)
    facts = lowered.facts
    published = (facts.architecture, facts.layers, facts.hidden_size, profile.name, tp) == MODEL
    return Prediction(profile.name, [*decode.values(), prefill], served, ledger, limits, rate, published)


def _served(requests: int, between: float, max_tokens: int, step: Any) -> Served:  # noqa: ANN401 (a local function)
    """Returns a batch's latencies: prompts in steps of as many tokens as fit, first come first, then decoding."""
    at_once = max(1, min(requests, max_tokens // TOKENS_IN))
    done, elapsed, waited = 0, 0.0, 0.0
    while done < requests:
        count = min(at_once, requests - done)
        elapsed += step(count * TOKENS_IN, count, TOKENS_IN).seconds
        waited += count * elapsed
        done += count
    return Served(requests, waited / requests, between, elapsed + (TOKENS_OUT - 1) * between)
