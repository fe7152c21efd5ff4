"""Builds: SmolLM2 for every target, cold and with nothing changed; and sharding, beside plain reads of the same file.

- *cold*: no compiled kernel, no digest and no bundle is kept from before. `gpu_build` has the kernels alone.
- *unchanged*: the same command again, which finds its bundle in the build cache.
- *sharding*: a checkpoint of some gigabytes, not in the page cache, to ranks: its bytes over the seconds of reading,
  quantising, writing and digesting, beside threads that only read it. `with_disk` counts the last stage, too, which
  waits until all of it lies on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.build_memory import write_checkpoint
from benchmarks.common import ROOT, WORK, our_environment, our_program, parser, save, smollm2_gguf, summary
from benchmarks.comparison import print_table
from benchmarks.load import allocate, clocked, make_cold, plain_loop
from paiton_kernels.gpu.devices import TARGETS

READERS, PIECE = 4, 4 << 20

FP8_TARGETS = [name for name, target in TARGETS.items() if target.fp8]
"""The others need a bundle of their own, with bf16 weights."""


def run_build(model: Path, *flags: str) -> dict[str, Any]:
    """Builds in a process of its own; returns what it tells, and the seconds of the whole process."""
    command = [*our_program("paiton-build"), str(model), "--json", "-q", *flags]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT, env=our_environment())
    told: dict[str, Any] = json.loads(done.stdout)
    return {**told, "process_seconds": time.perf_counter() - start}


def smollm2_builds(scratch: Path, targets: list[str], runs: int) -> dict[str, Any]:
    """Returns seconds of a cold build for cpu and all targets, and of the same again."""
    flags = [word for target in targets for word in ("--target", target)]
    flags += ["--cache-dir", str(scratch / "kernels"), "--cache", str(scratch / "builds")]
    cold = run_build(smollm2_gguf(), *flags)
    again = [run_build(smollm2_gguf(), *flags) for _ in range(runs)]
    for build in again:
        if not build["hit"]:
            raise SystemExit(f"a repeated build was not in the cache; changed since: {build['differs']}")
    return {
        "targets": cold["targets"],
        "kernels": cold["kernels"],
        "plans": cold["plans"],
        "bytes": cold["bytes"],
        "cold_seconds": cold["process_seconds"],
        "cold_stages": cold["seconds"],
        "unchanged_seconds": summary([build["process_seconds"] for build in again]),
    }


def read_rate(path: Path, runs: int) -> dict[str, float]:
    """Returns gigabytes per second of plain reads of a file that is not cached, around the page cache."""
    size = path.stat().st_size
    rates = []
    with path.open("rb") as file, allocate(size) as pages, memoryview(pages) as memory:
        direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            for _ in range(runs):
                make_cold(file.fileno(), size)
                rates.append(size / clocked(lambda: plain_loop(direct, memory, READERS, PIECE)) / 1e9)
        finally:
            os.close(direct)
    return summary(rates)


def sharding(scratch: Path, layers: int, ranks: int, runs: int) -> dict[str, Any]:
    """Returns gigabytes of checkpoint per second that become shards, and the share of the disk's read rate.

    A first build digests the checkpoint for its key, which is remembered: the others read it for its weights alone.
    """
    folder, output = scratch / "checkpoint", scratch / "sharded.bundle"
    size = write_checkpoint(folder, layers)
    (path,) = folder.glob("*.safetensors")
    reading = read_rate(path, runs)
    flags = ["-o", str(output), "--tp", str(ranks), "--force"]
    first = run_build(folder, *flags)
    stages = []
    for _ in range(runs):
        with path.open("rb") as file:
            make_cold(file.fileno(), size)
        stages.append(run_build(folder, *flags)["seconds"])
    shutil.rmtree(output)
    rates = summary([size / each["convert"] / 1e9 for each in stages])
    return {
        "checkpoint_bytes": size,
        "ranks": ranks,
        "read_gigabytes_per_second": reading,
        "convert_gigabytes_per_second": rates,
        "with_disk_gigabytes_per_second": summary([size / (each["convert"] + each["write"]) / 1e9 for each in stages]),
        "share_of_reading": rates["median"] / reading["median"],
        "digest_gigabytes_per_second": size / first["seconds"]["identify"] / 1e9,
        "stages": stages[0],
    }


def main() -> None:
    """Measures and reports."""
    args = parser(__doc__ or "")
    args.add_argument("--runs", type=int, default=3, help="of everything but the cold build")
    args.add_argument("--target", nargs="*", choices=FP8_TARGETS, default=FP8_TARGETS, help="besides the cpu")
    args.add_argument("--layers", type=int, default=4, help="of the checkpoint to shard: 0.9 GB and 0.36 GB each")
    args.add_argument("--tp", type=int, default=4, help="ranks to shard it for")
    options = args.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="build-") as scratch:
        smollm2 = smollm2_builds(Path(scratch), options.target, options.runs)
        sharded = sharding(Path(scratch), options.layers, options.tp, options.runs)
    save("build", {"smollm2": smollm2, "sharding": sharded})
    rows = [
        (f"SmolLM2 for {len(smollm2['targets'])} targets, cold", smollm2["cold_seconds"], "s"),
        ("the same, unchanged", smollm2["unchanged_seconds"]["median"], "s"),
        (f"sharding to {options.tp} ranks", sharded["convert_gigabytes_per_second"]["median"], "GB/s"),
        ("reading", sharded["read_gigabytes_per_second"]["median"], "GB/s"),
        ("sharding over reading", sharded["share_of_reading"], ""),
    ]
    print_table(("what", "median", "unit"), rows)


if __name__ == "__main__":
    main()
