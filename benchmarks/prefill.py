"""Prefill: tokens per second of prompts of 512 and 2,048 tokens, beside llama.cpp in Q8_0 and transformers in bf16.

Each contender runs in a process of its own, alternately; every round also measures the machine's peak of multiply-adds
in the widest form of the level that ours runs on. At the end the GEMMs of a layer run alone, against that peak.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path
from typing import Any

from benchmarks.common import WORK, parser, save, smollm2_bundle, smollm2_hf, summary
from benchmarks.comparison import OURS, Comparison, Numbers, compare, print_medians
from benchmarks.cpu_kernels import LINEARS, Bench, compile_driver, measure_prefill, peak_gflops, variants
from benchmarks.peers import add_peer_options, install, releases
from benchmarks.throughput import Work, llama, paiton, prompt_name, transformers
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.schema import ModelFacts
from paiton_runtime.levels import choose_level, cpu_flags

PROMPTS = (512, 2048)
PEAK = "peak"


def gemm_flops(model: ModelFacts) -> float:
    """Returns floating-point operations a token in the linear layers (the head is computed for one token only)."""
    heads, hidden = model.attention_heads * model.head_dim, model.hidden_size
    kv, wide = model.kv_heads * model.head_dim, model.intermediate_size
    return 2.0 * model.layers * (hidden * (heads + 2 * kv) + heads * hidden + 3 * hidden * wide)


def peak_of(driver: CDLL, level: str, threads: int) -> float:
    """Returns the GFLOPS that multiply-adds reach which only touch registers."""
    peak = peak_gflops(driver, level, threads)
    if peak is None:
        raise SystemExit(f"level {level} has no vector instructions whose peak could be measured")
    return peak


def gemms_alone(level: str, threads: int, peak: float) -> dict[str, Any]:
    """Returns GFLOPS of each of a layer's GEMMs at 512 tokens, and of all of them together."""
    kernels = {name: variant for name, variant in variants("FP8").items() if name.endswith("prefill")}
    bench = Bench(compile_driver(WORK), level, threads, list(kernels.values()))
    alone = measure_prefill(bench, kernels, peak)
    flops = {name: float(shape["N"] * shape["K"]) for name, shape in LINEARS.items()}
    rate = sum(flops.values()) / sum(flops[name] / alone[f"{name} prefill"]["GFLOPS"] for name in flops)
    return {"each": alone, "together_gflops": rate, "share_of_peak": rate / peak}


def whole_shares(found: Comparison, flops: float, peaks: list[float]) -> dict[str, dict[str, float]]:
    """Returns, for each prompt, the share of its round's peak that the linear layers' work over the whole time is."""
    ours = found.samples[OURS]
    return {
        name: summary([sample[name] * flops / 1e9 / peak for sample, peak in zip(ours, peaks, strict=True)])
        for name in map(prompt_name, PROMPTS)
    }


def main() -> None:
    """Measures and reports."""
    args = parser(__doc__ or "")
    args.add_argument("--runs", type=int, default=5)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--bundle", type=Path, help="built before; else one is built")
    args.add_argument("--without", nargs="+", default=[], choices=["llama.cpp", "transformers"], help="peers left out")
    add_peer_options(args)
    options = args.parse_args()
    if options.install_peers:
        install(options.peers, ["llama"])
    bundle = options.bundle or smollm2_bundle("--lm-head", "int8")
    opened, driver = open_bundle(bundle), compile_driver(WORK)
    level = choose_level(opened.code_objects("cpu"), cpu_flags(), None)
    work = Work(options.threads, prompts=PROMPTS)
    contenders: dict[str, Callable[[], Numbers]] = {
        OURS: lambda: paiton(bundle, work),
        "llama.cpp": lambda: llama(options.peers, work),
        "transformers": lambda: transformers(smollm2_hf(), work),
        PEAK: lambda: {"gflops": peak_of(driver, level, options.threads)},
    }
    found = compare({name: run for name, run in contenders.items() if name not in options.without}, options.runs)
    peaks = [sample["gflops"] for sample in found.samples.pop(PEAK)]
    middle = summary(peaks)["median"]
    report: dict[str, Any] = {
        "threads": options.threads,
        "versions": releases(options.peers),
        "level": level,
        "lm_head": opened.manifest.model.lm_head,
        "tokens_per_second": found.as_json(),
        "peak_gflops": summary(peaks),
        "whole_share_of_peak": whole_shares(found, gemm_flops(opened.manifest.model), peaks),
        "gemms": gemms_alone(level, options.threads, middle),
    }
    save("prefill", report)
    print_medians(found)
    print(f"GEMMs alone: {report['gemms']['share_of_peak']:.0%} of the peak of {middle:.0f} GFLOPS ({level})")


if __name__ == "__main__":
    main()
