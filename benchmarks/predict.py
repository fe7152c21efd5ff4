"""How well steps of the cpu target are predicted: rates fitted on a few, error on others.

Fitted on two models, SmolLM2-135M and a wide one of random weights: one request and eight decoding, prompts of 16 and
64 tokens (and of 512, with SmolLM2). Held out: other step sizes of SmolLM2, and a third model, between the two in
width. One thread; times are processor time, the least of several steps, so that other programs disturb little. `--fit`
measures and keeps the rates; without, the kept ones are used, which hold on the machine that they name.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import WORK, machine, parser, save, smollm2_gguf
from paiton_aot.build import BuildResult, build
from paiton_aot.options import BuildOptions
from paiton_aot.predict.cpu import AMOUNTS, Batch, amounts, fit, predict
from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.model import Chunk, Model

RATES = Path(__file__).with_suffix(".json")
MAX_TOKENS = 512
TARGET = 0.25
"""The largest relative error that a held-out step may have."""

FITTED = (
    Batch(1, 1, 16),
    Batch(1, 1, 1000),
    Batch(8, 1, 16),
    Batch(8, 1, 500),
    Batch(1, 16, 0),
    Batch(1, 64, 0),
    Batch(1, 64, 900),
    Batch(1, 512, 0),
)
FITTED_WIDE = (Batch(1, 1, 16), Batch(8, 1, 16), Batch(8, 1, 500), Batch(1, 16, 0), Batch(1, 64, 0))
HELD_OUT = (
    Batch(2, 1, 100),
    Batch(4, 1, 16),
    Batch(4, 1, 700),
    Batch(16, 1, 200),
    Batch(32, 1, 100),
    Batch(1, 32, 0),
    Batch(1, 128, 0),
    Batch(1, 256, 0),
    Batch(2, 128, 300),
)
OTHER = (Batch(1, 1, 16), Batch(4, 1, 300), Batch(8, 1, 100), Batch(16, 1, 64), Batch(1, 64, 0), Batch(1, 256, 0))
"""Steps of the third model, none of which is fitted."""


WIDE = {"layers": 2, "hidden": 2048, "intermediate": 5632, "heads": 32, "kv_heads": 8, "head_dim": 64, "vocab": 4096}
BETWEEN = {"layers": 6, "hidden": 1024, "intermediate": 2816, "heads": 16, "kv_heads": 4, "head_dim": 64, "vocab": 8192}
"""Llamas of 0.1 billion random parameters each."""


def random_model(name: str, sizes: Mapping[str, Any]) -> Path:
    """Writes a Llama of random weights; returns its folder."""
    from tests.make_checkpoints import tiny_llama  # noqa: PLC0415  (torch)

    return tiny_llama(WORK / f"predict-{name}", **sizes, max_position=2048)


def built(model: Path) -> BuildResult:
    """Builds a bundle for the cpu, with plans up to `MAX_TOKENS`."""
    return build(
        model, WORK / f"predict-{model.stem}.bundle", BuildOptions(max_num_batched_tokens=MAX_TOKENS), force=True
    )


def measure(model: Model, batch: Batch, repeats: int) -> float:
    """Returns the least processor seconds of a step's forward half."""
    width = -(-(batch.context + batch.tokens) // model.memory.kv_block_tokens)
    ids = [7 + index % 90 for index in range(batch.tokens)]
    chunks = [
        Chunk(ids, batch.context, list(range(request * width, (request + 1) * width)))
        for request in range(batch.requests)
    ]
    step = model.prepare(chunks)
    model.forward(step)
    found = []
    for _ in range(repeats):
        start = time.process_time()
        model.forward(step)
        found.append(time.process_time() - start)
    return min(found)


def steps_of(model: Path, batches: tuple[Batch, ...], repeats: int) -> list[dict[str, Any]]:
    """Builds and boots a model and returns, for each batch, its amounts and measured seconds."""
    result = built(model)
    cpu = result.lowered.cpu
    variants = {variant.symbol: variant for variant in cpu.variants}
    plans = sorted((p for p in cpu.plans if p.family == "forward"), key=lambda plan: (plan.tokens, plan.requests))
    found = []
    with boot(result.bundle, BootOptions(threads=1, golden_check=False)) as booted:
        for batch in batches:
            plan = next(p for p in plans if p.tokens >= batch.rows and p.requests >= batch.requests)
            seconds = measure(booted, batch, max(3, repeats if batch.rows <= 8 else repeats // 4))
            found.append({"batch": batch, "amounts": amounts(plan, variants, batch), "seconds": seconds})
    shutil.rmtree(result.bundle)
    return found


def judged(name: str, steps: list[dict[str, Any]], rates: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Returns measured and predicted milliseconds of each step, and the relative error."""
    rows = []
    for step in steps:
        batch, seconds = step["batch"], step["seconds"]
        guess = predict(step["amounts"], rates)
        rows.append(
            {
                "model": name,
                "requests": batch.requests,
                "tokens": batch.tokens,
                "context": batch.context,
                "measured_ms": round(seconds * 1e3, 3),
                "predicted_ms": round(guess * 1e3, 3),
                "error": round(guess / seconds - 1, 4),
            }
        )
    return rows


def main() -> None:
    """Measures, predicts and reports."""
    args = parser(__doc__ or "")
    args.add_argument("--fit", action="store_true", help="fit rates on this machine and keep them")
    args.add_argument("--repeats", type=int, default=40, help="steps of one token; longer steps run a quarter as often")
    options = args.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    smollm2 = steps_of(smollm2_gguf(), FITTED + HELD_OUT, options.repeats)
    fitted, held = smollm2[: len(FITTED)], smollm2[len(FITTED) :]
    wide: list[dict[str, Any]] = []
    if options.fit:
        wide = steps_of(random_model("wide", WIDE), FITTED_WIDE, options.repeats)
        known = fitted + wide
        found = fit([step["amounts"] for step in known], [step["seconds"] for step in known])
        kept = {"machine": machine(), "threads": 1, "rates": dict(zip(AMOUNTS, map(float, found), strict=True))}
        RATES.write_text(json.dumps(kept, indent=2) + "\n")
    kept = json.loads(RATES.read_text())
    rates = np.array([kept["rates"][name] for name in AMOUNTS])
    other = steps_of(random_model("between", BETWEEN), OTHER, options.repeats)
    rows = judged("SmolLM2-135M", held, rates) + judged("between", other, rates)
    worst = max(abs(row["error"]) for row in rows)
    report = {
        "rates": kept,
        "fitted": judged("SmolLM2-135M", fitted, rates) + judged("wide", wide, rates),
        "held_out": rows,
        "mean_error": round(sum(abs(row["error"]) for row in rows) / len(rows), 4),
        "worst_error": worst,
        "target": TARGET,
        "met": worst <= TARGET,
    }
    save("predict", report)


if __name__ == "__main__":
    main()
