"""How well steps of the cpu target are predicted: rates fitted on some steps and models, error on others.

Fitted: steps of SmolLM2-135M and of three Llamas of random weights, chosen so that what steps are summed up in does not
grow together: `wide` has few large matrices of 8 bits, `narrow` many small ones, `plain` bf16. Held out: other steps of
SmolLM2, and every step of two further models: one between the fitted ones in width, and one whose weights nearly fit
into the caches.

Processor time of one thread. The speed of a shared machine swings by half within minutes and by a fifth within tens of
milliseconds, so all steps, and plain reading of several sizes, are visited in turn, several times over; a visit runs a
step a few times back to back, as decoding does. What counts is the least of all.

With `--fit`, rates are fitted to the fitted steps and kept in `predict.json`; without, the kept ones are used, which
hold on the machine that they name. Held-out steps are never fitted. A machine that is slower or faster than when the
rates were fitted is told from the fitted steps: predictions are multiplied by the median of their measured by their
predicted times (`speed`, next to 1 with `--fit`).
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import WORK, machine, parser, save, smollm2_gguf
from benchmarks.cpu_kernels import compile_driver
from paiton_aot.build import build
from paiton_aot.options import BuildOptions
from paiton_aot.predict.cpu import AMOUNTS, Batch, Reading, amounts, fit, predict
from paiton_artifacts.plan import Plan
from paiton_kernels.spec import Variant
from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.model import Chunk, Model

RATES = Path(__file__).with_suffix(".json")
MAX_TOKENS = 512
TARGET = 0.25
"""The largest relative error that a held-out step may have."""

READ_BYTES = tuple(size << 20 for size in (8, 16, 32, 48, 64, 80, 96, 128, 192))
"""What is plainly read, again and again: from what the second cache nearly holds to more than a step's weights."""
RUNS = {8: 7, 64: 2}
"""Runs of a visit: of steps of up to so many rows, so many; of others one."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model whose steps are measured.

    Attributes:
        name: in the report.
        sizes: of a Llama of random weights; empty for SmolLM2-135M.
        weights: storage of its linear layers; None for the build's default.
        fitted: steps that rates are fitted on.
        held_out: steps that they are judged by.
    """

    name: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    weights: str | None = None
    fitted: tuple[Batch, ...] = ()
    held_out: tuple[Batch, ...] = ()


WIDE = {"hidden": 2048, "intermediate": 5632, "heads": 32, "kv_heads": 8, "head_dim": 64, "vocab": 4096}
NARROW = {"hidden": 512, "intermediate": 1536, "heads": 8, "kv_heads": 4, "head_dim": 64, "vocab": 2048}
SMALL = {"hidden": 768, "intermediate": 2048, "heads": 12, "kv_heads": 4, "head_dim": 64, "vocab": 4096}
BETWEEN = {"hidden": 1024, "intermediate": 2816, "heads": 16, "kv_heads": 4, "head_dim": 64, "vocab": 8192}
COMMON = (Batch(1, 1, 16), Batch(8, 1, 16), Batch(8, 1, 500), Batch(1, 16, 0), Batch(1, 64, 0))
RANDOM = (*COMMON, Batch(4, 1, 100))
"""Fitted steps: of SmolLM2 too, and of the random models."""

SUBJECTS = (
    Subject(
        "SmolLM2-135M",
        fitted=(*COMMON, Batch(1, 1, 1000), Batch(1, 64, 900), Batch(1, 512, 0)),
        held_out=(
            Batch(2, 1, 100),
            Batch(3, 1, 300),
            Batch(4, 1, 16),
            Batch(4, 1, 700),
            Batch(6, 1, 50),
            Batch(16, 1, 200),
            Batch(32, 1, 100),
            Batch(1, 32, 0),
            Batch(1, 128, 0),
            Batch(1, 256, 0),
            Batch(2, 128, 300),
        ),
    ),
    Subject("wide", {"layers": 2, **WIDE}, fitted=RANDOM),
    Subject("narrow", {"layers": 10, **NARROW}, fitted=RANDOM),
    Subject("plain", {"layers": 1, **WIDE}, weights="bf16", fitted=RANDOM),
    Subject(
        "between",
        {"layers": 6, **BETWEEN},
        held_out=(
            Batch(1, 1, 16),
            Batch(4, 1, 300),
            Batch(8, 1, 100),
            Batch(16, 1, 64),
            Batch(1, 64, 0),
            Batch(1, 256, 0),
        ),
    ),
    Subject(
        "small", {"layers": 7, **SMALL}, held_out=(Batch(1, 1, 100), Batch(2, 1, 16), Batch(8, 1, 200), Batch(1, 32, 0))
    ),
)


class Step:
    """A step of a booted model, and how long it takes.

    Attributes:
        name: of the model.
        batch: what the step holds.
        fitted: rates are fitted on it.
        visits: processor seconds of each, the least of its runs.
    """

    def __init__(self, booted: Booted, batch: Batch, *, fitted: bool) -> None:
        self.name, self.batch, self.fitted = booted.name, batch, fitted
        self.visits: list[float] = []
        self._model, self._variants = booted.model, booted.variants
        self._plan = next(p for p in booted.plans if p.tokens >= batch.rows and p.requests >= batch.requests)
        self._runs = next((runs for rows, runs in RUNS.items() if batch.rows <= rows), 1)
        width = -(-(batch.context + batch.tokens) // self._model.memory.kv_block_tokens)
        ids = [7 + index % 90 for index in range(batch.tokens)]
        own = [list(range(request * width, (request + 1) * width)) for request in range(batch.requests)]
        self._input = self._model.prepare([Chunk(ids, batch.context, blocks) for blocks in own])

    def visit(self) -> None:
        """Runs the step's forward half."""
        self.visits.append(least(self._runs, lambda: self._model.forward(self._input)))

    @property
    def seconds(self) -> float:
        """The least of the visits."""
        return min(self.visits)

    def amounts(self, reading: Reading) -> NDArray[np.float64]:
        """Returns what the step does, in the order of `AMOUNTS`."""
        return amounts(self._plan, self._variants, self.batch, reading)

    def judged(self, guess: float) -> dict[str, Any]:
        """Returns the step beside its predicted seconds; errors are relative.

        `measured_again` is by how much the second half of the visits differs from the first.
        """
        half = len(self.visits) // 2
        again = min(self.visits[half:]) / min(self.visits[:half] or self.visits)
        return {
            "model": self.name,
            "requests": self.batch.requests,
            "tokens": self.batch.tokens,
            "context": self.batch.context,
            "measured_ms": round(self.seconds * 1e3, 3),
            "predicted_ms": round(guess * 1e3, 3),
            "error": round(guess / self.seconds - 1, 4),
            "measured_again": round(again - 1, 4),
        }


@dataclass(frozen=True, slots=True)
class Booted:
    """A subject's model with one thread, its plans of family "forward" by size, and its kernels by symbol."""

    name: str
    model: Model
    plans: Sequence[Plan]
    variants: Mapping[str, Variant]


def booted(stack: ExitStack, subject: Subject) -> Booted:
    """Builds and boots a subject; the bundle is removed when the stack is left."""
    source = random_llama(subject) if subject.sizes else smollm2_gguf()
    options = BuildOptions(max_num_batched_tokens=MAX_TOKENS, weights=subject.weights)
    result = build(source, WORK / f"predict-{subject.name}.bundle", options, force=True)
    stack.callback(shutil.rmtree, result.bundle)
    cpu = result.lowered.cpu
    plans = sorted((p for p in cpu.plans if p.family == "forward"), key=lambda plan: (plan.tokens, plan.requests))
    model = stack.enter_context(boot(result.bundle, BootOptions(threads=1, golden_check=False)))
    return Booted(subject.name, model, plans, {variant.symbol: variant for variant in cpu.variants})


def random_llama(subject: Subject) -> Path:
    """Writes a subject's checkpoint; returns its folder."""
    from tests.make_checkpoints import tiny_llama  # noqa: PLC0415  (torch)

    sizes: dict[str, Any] = {**subject.sizes, "max_position": 2048}
    return tiny_llama(WORK / f"predict-{subject.name}", **sizes)


def least(runs: int, work: Callable[[], object]) -> float:
    """Returns the least processor seconds of several runs."""
    found = []
    for _ in range(runs):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


class Reader:
    """Plain reading of `READ_BYTES`."""

    def __init__(self) -> None:
        self._driver = compile_driver(WORK)
        self._data = np.ones(max(READ_BYTES), np.uint8)
        self._seconds = [math.inf for _ in READ_BYTES]

    def visit(self) -> None:
        """Reads every size a few times."""
        start, once = ctypes.c_void_p(self._data.ctypes.data), ctypes.c_uint64(1)
        for index, size in enumerate(READ_BYTES):
            read = functools.partial(self._driver.read_all, start, ctypes.c_uint64(size), once)
            self._seconds[index] = min(self._seconds[index], least(max(RUNS.values()), read))

    def reading(self) -> Reading:
        """Returns the least seconds of each size."""
        return Reading(READ_BYTES, self._seconds)


def measure(steps: Sequence[Step], rounds: int) -> Reading:
    """Visits all steps in turn, and plain reading; returns how fast the machine reads."""
    reader = Reader()
    for _ in range(rounds):
        reader.visit()
        for step in steps:
            step.visit()
    return reader.reading()


def kept_rates(steps: Sequence[Step], reading: Reading, *, refit: bool) -> dict[str, Any]:
    """Returns the kept rates, which are fitted to these steps first if asked for."""
    if refit:
        found = fit([step.amounts(reading) for step in steps], [step.seconds for step in steps])
        kept = {"machine": machine(), "threads": 1, "rates": dict(zip(AMOUNTS, map(float, found), strict=True))}
        RATES.write_text(json.dumps(kept, indent=2) + "\n")
    result: dict[str, Any] = json.loads(RATES.read_text())
    return result


def main() -> None:
    """Measures, predicts and reports."""
    args = parser(__doc__ or "")
    args.add_argument("--fit", action="store_true", help="fit rates on this machine and keep them")
    args.add_argument("--rounds", type=int, default=8, help="visits of every step")
    options = args.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        steps: list[Step] = []
        for subject in SUBJECTS:
            model = booted(stack, subject)
            steps += [Step(model, batch, fitted=True) for batch in subject.fitted]
            steps += [Step(model, batch, fitted=False) for batch in subject.held_out]
        reading = measure(steps, options.rounds)
    fitted = [step for step in steps if step.fitted]
    kept = kept_rates(fitted, reading, refit=options.fit)
    rates = np.array([kept["rates"][name] for name in AMOUNTS])
    speed = statistics.median(step.seconds / predict(step.amounts(reading), rates) for step in fitted)
    judged = {step: step.judged(speed * predict(step.amounts(reading), rates)) for step in steps}
    held = [judged[step] for step in steps if not step.fitted]
    worst = max(abs(row["error"]) for row in held)
    report = {
        "rates": kept,
        "speed": round(speed, 4),
        "reading_gb_per_second": {
            f"{size >> 20} MiB": round(size / seconds / 1e9, 2)
            for size, seconds in zip(READ_BYTES, reading.seconds, strict=True)
        },
        "fitted": [judged[step] for step in fitted],
        "held_out": held,
        "mean_error": round(sum(abs(row["error"]) for row in held) / len(held), 4),
        "worst_error": worst,
        "target": TARGET,
        "met": worst <= TARGET,
    }
    save("predict", report)


if __name__ == "__main__":
    main()
