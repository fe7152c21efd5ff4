"""Where the time of a step goes on the cpu target, launch by launch, beside what the machine can do.

For each kind of launch of a step: how long all launches of the kind take, run without the others in the order of the
plan, so that every layer's weights come from where they lie in a step; the bytes and floating-point operations that
they need; and the limits of this machine, measured in the same minute: bytes at the bandwidth of plain reading,
operations at the arithmetic peak of the level. No launch can be faster than the larger of the two times. Weights of the
linear layers have 8 bits, those of the output head too.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import WORK, parser, save, smollm2_gguf
from benchmarks.cpu_kernels import PEAKS, compile_driver, peak_gflops, read_bandwidth
from paiton_aot.build import build
from paiton_aot.options import BuildOptions
from paiton_aot.predict.cpu import Batch
from paiton_artifacts.plan import Plan, Segment
from paiton_kernels.linear import WEIGHT_BYTES
from paiton_kernels.spec import Variant
from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.model import Chunk, Model

STEPS = {
    "decode x1": Batch(1, 1, 128),
    "decode x8": Batch(8, 1, 128),
    "decode x32": Batch(32, 1, 128),
    "prefill 512": Batch(1, 512, 0),
    "prefill 2,048, last 512": Batch(1, 512, 1536),
}
"""What is taken apart: requests, tokens of each, and positions before them."""

READ_BYTES = 128 << 20
"""What plain reading reads: about the weights of a step."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a launch needs: bytes of weights or of the KV cache, and floating-point operations."""

    bytes: float = 0.0
    flops: float = 0.0


def cost_of(variant: Variant, batch: Batch) -> Cost:
    """Returns what one launch reads from memory, once, and calculates in its products."""
    macros = variant.macros
    if variant.spec.family == "linear":
        rows = batch.requests if macros["GATHER"] else batch.rows
        n, k = int(macros["N"]), int(macros["K"])
        return Cost(float(n * k * WEIGHT_BYTES[str(macros["WEIGHT"])]), 2.0 * rows * n * k)
    if variant.spec.family == "attention":
        heads, kv_heads, width = (int(macros[name]) for name in ("Q_HEADS", "KV_HEADS", "HEAD_DIM"))
        element = 1 if macros["KV"] == "FP8" else 2
        read = batch.requests * (batch.context + batch.tokens) * 2 * kv_heads * width * element
        return Cost(float(read), 4.0 * heads * width * batch.visible)
    return Cost()


def only(plan: Plan, symbol: str) -> Plan:
    """Returns a plan with the launches of one kernel."""
    segments = [
        Segment(segment.repeat, tuple(launch for launch in segment.launches if launch.symbol == symbol))
        for segment in plan.segments
    ]
    return dataclasses.replace(plan, segments=tuple(segment for segment in segments if segment.launches))


def launches_of(plan: Plan) -> dict[str, int]:
    """Returns how often a plan launches each kernel, in the order of their first launches."""
    counts: dict[str, int] = {}
    for segment in plan.segments:
        for launch in segment.launches:
            counts[launch.symbol] = counts.get(launch.symbol, 0) + segment.repeat
    return counts


def prepare(model: Model, batch: Batch) -> None:
    """Runs a step of the batch, which leaves its inputs in place."""
    width = -(-(batch.context + batch.tokens) // model.memory.kv_block_tokens)
    ids = [7 + index % 90 for index in range(batch.tokens)]
    model.step(
        [
            Chunk(ids, batch.context, list(range(request * width, (request + 1) * width)))
            for request in range(batch.requests)
        ]
    )


def seconds_of(model: Model, plans: Sequence[Plan], budget: float) -> list[float]:
    """Returns the median seconds of each plan: they run in turn, for about `budget` seconds together."""
    graphs = [model.driver.build(plan) for plan in plans]
    found: list[list[float]] = [[] for _ in graphs]
    deadline = time.perf_counter() + budget
    while time.perf_counter() < deadline or len(found[0]) < 3:
        for graph, times in zip(graphs, found, strict=True):
            start = time.perf_counter()
            model.driver.run(graph)
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in found]


def take_apart(
    model: Model, plan: Plan, batch: Batch, variants: Mapping[str, Variant], limits: tuple[float, float], budget: float
) -> dict[str, Any]:
    """Measures a step, and each kind of its launches.

    Args:
        model: booted.
        plan: that the step runs.
        batch: what it holds.
        variants: kernels by symbol.
        limits: GB/s and GFLOPS of the machine.
        budget: seconds that measuring may take.
    """
    prepare(model, batch)
    counts = launches_of(plan)
    whole, *parts = seconds_of(model, [plan, *(only(plan, symbol) for symbol in counts)], budget)
    rows: list[dict[str, Any]] = []
    for (symbol, count), seconds in zip(counts.items(), parts, strict=True):
        cost = cost_of(variants[symbol], batch)
        bandwidth, flops = count * cost.bytes / seconds / 1e9, count * cost.flops / seconds / 1e9
        least = count * max(cost.bytes / limits[0], cost.flops / limits[1]) / 1e9
        rows.append(
            {
                "kernel": symbol,
                "launches": count,
                "ms": round(seconds * 1e3, 3),
                "bytes": cost.bytes,
                "flops": cost.flops,
                "GB/s": round(bandwidth, 1),
                "of reading": round(bandwidth / limits[0], 3),
                "GFLOPS": round(flops, 1),
                "of peak": round(flops / limits[1], 3),
                "of the limit": round(least / seconds, 3),
            }
        )
    total = sum(row["launches"] * row["bytes"] for row in rows), sum(row["launches"] * row["flops"] for row in rows)
    return {
        "ms": round(whole * 1e3, 3),
        "tokens_per_second": round(batch.rows / whole, 1),
        "of reading": round(total[0] / whole / 1e9 / limits[0], 3),
        "of peak": round(total[1] / whole / 1e9 / limits[1], 3),
        "launches": rows,
    }


def print_step(name: str, step: Mapping[str, Any]) -> None:
    """Prints a step's table."""
    print(f"{name}: {step['ms']:.2f} ms, {step['of reading']:.2f} of reading, {step['of peak']:.2f} of the peak")
    for row in step["launches"]:
        print(
            f"  {row['launches']:3} x {row['kernel'][:64]:64} {row['ms']:8.2f} ms {row['GB/s']:6.1f} GB/s "
            f"{row['of reading']:5.2f} {row['GFLOPS']:6.1f} GFLOPS {row['of peak']:5.2f} "
            f"limit {row['of the limit']:5.2f}"
        )


def main() -> None:
    """Measures and writes benchmarks/results/roofline.json."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--threads", type=int, default=2, help="threads that share a step's work")
    options.add_argument("--level", choices=sorted(PEAKS), help="instruction-set level (default: the best)")
    options.add_argument("--seconds", type=float, default=5.0, help="how long each step is measured")
    options.add_argument("--steps", nargs="+", choices=sorted(STEPS), default=list(STEPS), help="which steps")
    args = options.parse_args()
    built = build(smollm2_gguf(), WORK / "roofline.bundle", BuildOptions(lm_head="int8"), force=True)
    cpu = built.lowered.cpu
    variants = {variant.symbol: variant for variant in cpu.variants}
    plans = sorted((p for p in cpu.plans if p.family == "forward"), key=lambda plan: (plan.tokens, plan.requests))
    driver = compile_driver(WORK)
    steps: dict[str, Any] = {}
    boot_options = BootOptions(level=args.level, threads=args.threads, golden_check=False, target="cpu")
    with boot(built.bundle, boot_options) as model:
        for name in args.steps:
            batch = STEPS[name]
            plan = next(p for p in plans if p.tokens >= batch.rows and p.requests >= batch.requests)
            peak = peak_gflops(driver, model.level, args.threads) or float("inf")
            limits = read_bandwidth(driver, READ_BYTES, args.threads), peak
            steps[name] = {
                "limits": {"GB/s": round(limits[0], 1), "GFLOPS": round(limits[1], 1)},
                **take_apart(model, plan, batch, variants, limits, args.seconds),
            }
            print_step(name, steps[name])
        level = model.level
    sys.stdout.flush()
    save("roofline", {"threads": args.threads, "level": level, "steps": steps})


if __name__ == "__main__":
    main()
