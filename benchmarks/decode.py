"""Decode: tokens per second of one stream and of batches, beside llama.cpp in Q8_0 and transformers in bf16.

Each contender runs in a process of its own, alternately. Every round also reads as many bytes as a step of ours reads
weights, again and again: what it reaches is the limit that the share of one stream refers to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import WORK, parser, save, smollm2_bundle, smollm2_hf, summary
from benchmarks.comparison import OURS, Comparison, Numbers, compare, print_medians
from benchmarks.cpu_kernels import compile_driver, read_bandwidth
from benchmarks.peers import add_peer_options, install, llama_model, releases
from benchmarks.throughput import Decode, Work, llama, paiton, paiton_engine, transformers
from paiton_artifacts.reader import open_bundle

DECODES = (Decode(1, 128, 128), Decode(8, 64, 64), Decode(32, 64, 32))
READING = "reading"


def bytes_per_step(bundle: Path) -> int:
    """Returns the bytes of weights that a step reads: all tensors, but of an untied embedding only single rows."""
    tensors = open_bundle(bundle).manifest.tensors
    head = any(tensor.name == "lm_head" for tensor in tensors)
    return sum(tensor.size for tensor in tensors if not (head and tensor.name == "embed_tokens"))


def llama_bytes_per_step(directory: Path) -> int:
    """Returns the same of llama.cpp's model, whose embedding is its head."""
    from gguf import GGUFReader  # noqa: PLC0415  (takes a while to import)

    return sum(int(tensor.n_bytes) for tensor in GGUFReader(llama_model(directory)).tensors)


def shares(found: Comparison, sizes: dict[str, int], limits: list[float]) -> dict[str, dict[str, float]]:
    """Returns the share of its round's read bandwidth that one stream of each contender reaches.

    Args:
        found: rates by round.
        sizes: bytes of weights a step, of each contender.
        limits: gigabytes per second, one a round.
    """
    return {
        name: summary(
            [
                sample[DECODES[0].name] * size / 1e9 / limit
                for sample, limit in zip(found.samples[name], limits, strict=True)
            ]
        )
        for name, size in sizes.items()
        if name in found.samples
    }


def main() -> None:
    """Measures and reports."""
    args = parser(__doc__ or "")
    args.add_argument("--runs", type=int, default=5)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--lm-head", default="int8", help="of ours; llama.cpp's has 8 bits, too")
    args.add_argument("--bundle", type=Path, help="built before; else one is built")
    args.add_argument("--engine", action="store_true", help="also ours through its scheduler, as the server runs it")
    args.add_argument("--without", nargs="+", default=[], choices=["llama.cpp", "transformers"], help="peers left out")
    add_peer_options(args)
    options = args.parse_args()
    if options.install_peers:
        install(options.peers, ["llama"])
    bundle = options.bundle or smollm2_bundle("--lm-head", options.lm_head)
    work = Work(options.threads, decodes=DECODES)
    size, driver = bytes_per_step(bundle), compile_driver(WORK)
    contenders: dict[str, Callable[[], Numbers]] = {
        OURS: lambda: paiton(bundle, work),
        "llama.cpp": lambda: llama(options.peers, work),
        "transformers": lambda: transformers(smollm2_hf(), work),
        READING: lambda: {"gigabytes_per_second": read_bandwidth(driver, size, options.threads)},
    }
    if options.engine:
        contenders["paiton, engine"] = lambda: paiton_engine(bundle, work)
    found = compare({name: run for name, run in contenders.items() if name not in options.without}, options.runs)
    sizes = {OURS: size}
    if "llama.cpp" in found.samples:
        sizes["llama.cpp"] = llama_bytes_per_step(options.peers)
    limits = [sample["gigabytes_per_second"] for sample in found.samples.pop(READING)]
    report: dict[str, Any] = {
        "threads": options.threads,
        "versions": releases(options.peers),
        "lm_head": open_bundle(bundle).manifest.model.lm_head,
        "tokens": {decode.name: [decode.tokens_in, decode.tokens_out] for decode in DECODES},
        "tokens_per_second": found.as_json(),
        "read_limit": {
            "gigabytes_per_second": summary(limits),
            "bytes_per_step": sizes,
            "share": shares(found, sizes, limits),
        },
    }
    save("decode", report)
    print_medians(found)
    for name, share in report["read_limit"]["share"].items():
        print(f"{name}, one stream: {share['median']:.0%} of the read bandwidth")


if __name__ == "__main__":
    main()
