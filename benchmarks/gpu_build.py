"""Seconds to make all code objects of a model for GPU targets: cold, warm, and with every configuration ranked.

- *ranking*: the whole space of every kernel is compiled and ranked, as `paiton-build tune --static` does; empty cache.
- *cold*: the build's own stage for a target, with the table that the ranking wrote; empty cache. Without a ranking,
  what the tables that come with the kernels lack is ranked here.
- *warm*: the same again.

Each is done by a process of its own that may use `--processes` processors. No device and no weights are needed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import WORK, parser, save, smollm2_gguf
from benchmarks.headers import LLAMA_3_1_8B, write_headers
from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.lower import lower
from paiton_aot.options import BuildOptions
from paiton_aot.progress import Progress
from paiton_aot.targets.gpu.build import build_targets
from paiton_aot.tune_command import model_requests
from paiton_kernels.gpu.compile_cache import entry_path
from paiton_kernels.gpu.devices import DEFAULT_PROFILES, TARGETS, Profile, Target, profile_named, target_named
from paiton_kernels.gpu.tuning import record_table

MODELS = {"SmolLM2-135M": "bf16", "Llama-3.1-8B": "fp8"}
"""Models, and their activations on targets that have FP8."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one process does.

    Attributes:
        checkpoint: the model; its headers are enough.
        options: of the build; one target.
        processors: that it may use.
        table: what a ranking is written to.
    """

    checkpoint: Path
    options: BuildOptions
    processors: int
    table: Path

    @property
    def target(self) -> Target:
        """The only one."""
        (name,) = self.options.targets
        return target_named(name)

    @property
    def profile(self) -> Profile:
        """The usual one of the target."""
        return profile_named(DEFAULT_PROFILES[self.target.name])


def main() -> None:
    """Measures every model on every target and writes the result."""
    args = _arguments()
    WORK.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=WORK, prefix="gpu-build-") as scratch:
        for model in args.model:
            if model == "Llama-3.1-8B":
                checkpoint = write_headers(Path(scratch, "llama"), LLAMA_3_1_8B)
            else:
                checkpoint = args.smollm2 or smollm2_gguf()
            found[model] = {
                name: _measure(args, checkpoint, MODELS[model], target_named(name), Path(scratch))
                for name in args.target
            }
    save("gpu_build", {"processes": args.processes, "candidates": args.candidates, "models": found})


def _arguments() -> argparse.Namespace:
    args = parser(__doc__ or "")
    args.add_argument("--target", nargs="+", choices=tuple(TARGETS), default=list(TARGETS), help="of GPUs")
    args.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="to build")
    args.add_argument("--smollm2", type=Path, metavar="PATH", help="its checkpoint; by default the package's, fetched")
    args.add_argument("--processes", type=int, default=2, help="processors that a build may use")
    args.add_argument("--candidates", type=int, default=0, metavar="N", help="configurations ranked; 0 is all")
    args.add_argument("--no-ranking", action="store_true", help="only build")
    found: argparse.Namespace = args.parse_args()
    return found


def _measure(args: argparse.Namespace, checkpoint: Path, act: str, target: Target, scratch: Path) -> dict[str, Any]:
    """Returns the figures of a model on a target; caches are gone afterwards."""
    table = scratch / f"{target.level}.json"
    table.unlink(missing_ok=True)
    figures: dict[str, Any] = {}

    def job(cache: Path, tables: tuple[Path, ...] = ()) -> Job:
        options = BuildOptions(
            targets=(target.name,),
            tuning_tables=tables,
            candidates=args.candidates,
            weights=None if target.fp8 else "bf16",
            act=act if target.fp8 else "bf16",
            cache_dir=cache,
        )
        return Job(checkpoint, options, args.processes, table)

    cache = scratch / "cache"
    if not args.no_ranking:
        figures["ranking"] = _alone(ranking, job(cache))
        shutil.rmtree(cache)
    tables = (table,) if table.exists() else ()
    for name in ("cold", "warm"):
        figures[name] = _alone(code_objects, job(cache, tables))
    shutil.rmtree(cache)
    return figures


def _alone(work: Callable[[Job], dict[str, Any]], job: Job) -> dict[str, Any]:
    """Returns what `work` does in a new process, in which nothing is remembered."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, job).result()


def ranking(job: Job) -> dict[str, Any]:
    """Ranks the space of every kernel that has a choice; returns seconds, kernels with a choice, kernels compiled."""
    _confine(job.processors)
    requests = model_requests(job.checkpoint, job.options)
    started = time.perf_counter()
    table = record_table(
        job.table, requests, job.target, job.profile, job.options.cache_dir, candidates=job.options.candidates
    )
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "choices": len(table.entries),
        "compiled": _entries(job.options.cache_dir),
    }


def code_objects(job: Job) -> dict[str, Any]:
    """Makes a target's archive and plans; returns seconds, its kernels, what chose them, and the archive's bytes."""
    _confine(job.processors)
    before = _entries(job.options.cache_dir)
    with open_checkpoint(job.checkpoint) as checkpoint:
        lowered = lower(checkpoint, job.options)
    started = time.perf_counter()
    (gpu,) = build_targets(lowered, job.options, Progress(enabled=False))
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "kernels": len(gpu.table.kernels),
        "chosen by": dict(Counter(kernel.tuning for kernel in gpu.table.kernels)),
        "compiled": _entries(job.options.cache_dir) - before,
        "plans": len(gpu.plans),
        "bytes": len(gpu.code),
    }


def _confine(processors: int) -> None:
    """Lets this process and the compilers that it starts use so many processors."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:processors])


def _entries(cache: Path) -> int:
    """Returns how many compiled kernels a cache holds."""
    return len(list(cache.glob(f"gpu/{entry_path(cache, '*').name}")))
