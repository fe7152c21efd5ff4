"""`python -m benchmarks NAME [options]` runs one benchmark; its report goes to stdout and benchmarks/results/."""

from __future__ import annotations

import importlib
import sys

NAMES = {
    "startup": "process start to the first token, alone and over HTTP beside peers' servers",
    "decode": "tokens per second of one stream and of batches, beside llama.cpp and transformers",
    "prefill": "tokens per second of prompts, beside llama.cpp and transformers",
    "serve": "throughput and latencies over HTTP, beside llama.cpp's server and vLLM's CPU build",
    "load": "gigabytes per second of weights into memory, beside plain pread loops and loaders of others",
    "build": "seconds of builds, cold and unchanged, and sharding beside reading",
    "report": "one HTML page with plots, of what the others wrote to benchmarks/results/",
    "soak": "our server under mixed load with cancellations: does it leak or hang?",
    "numerics": "perplexity and top-1 agreement on a text, beside transformers",
    "outline": "config.json and index of Llama-3.1-405B-Instruct-FP8-KV, to plan it without weights",
    "predict": "how well steps of the cpu target are predicted from steps of other sizes",
    "build_memory": "anonymous memory of a build of a 6 GB checkpoint",
    "scale": "one rank of Llama-3.1-405B from generated weights: memory, seconds per GB, bytes as planned",
    "graphs": "our own time of making graphs of plans, on a driver that runs nothing",
    "store": "pushes, pulls and boots from a store, beside plain transfers by the same client",
    "fuzz": "not a benchmark: a coverage-guided fuzzer on what reads a manifest",
    "cpu_kernels": "bandwidth and flops of single kernels",
    "roofline": "where the time of a step goes on the cpu target, launch by launch, beside what the machine can do",
    "gpu_build": "seconds to make all code objects of a model for GPU targets: cold, warm, ranked",
    "gpu_code": "resources and predicted times of GPU kernels, from their code: docs/gpu-kernels.md",
    "gpu_kernels": "likewise on this machine's GPU, beside a copy and PyTorch",
}


def main() -> int:
    """Dispatches to the benchmark's own command line."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print("usage: python -m benchmarks NAME [--help]\n", file=sys.stderr)
        for name, purpose in NAMES.items():
            print(f"  {name:14} {purpose}", file=sys.stderr)
        return 2
    name = sys.argv.pop(1)
    importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
