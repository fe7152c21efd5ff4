"""What the runtime itself takes to make graphs of plans, and to boot as far as that: without the driver's own time.

The driver library is one that runs nothing and times itself (null_hip.c). Each run is a process of its own. "own" is
the processor time of all threads, less what was spent inside the library: others on the machine do not lengthen it,
nor do more processors shorten it. A is Llama 3.1 405B on eight ranks, B Llama 3.1 8B on one; both have a launch for a
launch of the real model, but kernels that do not exist. The boot is that of SmolLM2 up to the first graph, with neither
weights nor golden check, from the start of the process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, WORK, our_environment, parser, save, smollm2_bundle, summary
from benchmarks.null_driver import build_null_driver, environment_of
from benchmarks.synthetic_plans import WORKLOADS
from paiton_artifacts.kernel_table import Kernel
from paiton_artifacts.reader import open_bundle

TARGET = "hip:gfx942"
LIMITS = {"large": 1.0, "small": 0.05, "first graph": 0.25}
"""Seconds of our own that the median of the runs may take."""


def run_child(what: str, library: Path, kernels: Iterable[Kernel], devices: int, runs: int) -> list[dict[str, Any]]:
    """Returns what the child process reported in each run, with the moment of its start; one more run warms up."""
    variables = our_environment() | environment_of(library, kernels, devices)
    command = [sys.executable, "-m", "benchmarks.graphs_child", what]
    reports = []
    for _ in range(runs + 1):
        started = time.monotonic()
        done = subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE, cwd=ROOT)
        reports.append({"started": started, **json.loads(done.stdout)})
    return reports[1:]


def measure_workload(name: str, library: Path, runs: int) -> dict[str, Any]:
    """Returns the figures of one synthetic model."""
    workload = WORKLOADS[name]
    reports = run_child(name, library, workload.kernels().kernels, workload.ranks, runs)
    seconds = ("own_seconds", "driver_seconds", "wall_seconds")
    return {
        **{key: getattr(workload, key) for key in ("layers", "buckets", "ranks")},
        "threads": reports[0]["threads"],
        "nodes": reports[0]["graphs"]["nodes"],
        "argument_bytes": reports[0]["graphs"]["argument_bytes"],
        "graphs": {key: summary([report["graphs"][key] for report in reports]) for key in seconds},
        "reading_plans": {key: summary([report["decode"][key] for report in reports]) for key in seconds[::2]},
        "limit": LIMITS[name],
    }


def measure_boot(bundle: Path, library: Path, runs: int) -> dict[str, Any]:
    """Returns the figures of a boot without weights."""
    kernels = open_bundle(bundle).kernels(TARGET)
    reports = run_child(str(bundle), library, kernels.values(), 1, runs)
    names = ("imports_seconds", "first_graph_own_seconds", "all_graphs_own_seconds", "driver_seconds")
    walls = ("first_graph", "all_graphs")
    return {
        **{name: summary([report[name] for report in reports]) for name in names},
        **{f"{w}_wall_seconds": summary([r[f"{w}_monotonic"] - r["started"] for r in reports]) for w in walls},
        "note": reports[0]["note"],
        "limit": LIMITS["first graph"],
    }


def main() -> None:
    """Measures and reports; fails where a limit is exceeded."""
    args = parser(__doc__ or "")
    args.add_argument("--runs", type=int, default=9)
    args.add_argument("--bundle", type=Path, help=f"to boot, built for {TARGET}, in place of SmolLM2")
    options = args.parse_args()
    library = build_null_driver(WORK / "null-hip")
    bundle = options.bundle or smollm2_bundle("--target", TARGET, "--candidates", "1")
    result = {name: measure_workload(name, library, options.runs) for name in WORKLOADS}
    boot = measure_boot(bundle.resolve(), library, options.runs)
    save("graphs", {"workloads": result, "boot": {"bundle": bundle.name, **boot}})
    own = {name: figures["graphs"]["own_seconds"]["median"] for name, figures in result.items()}
    own["first graph"] = boot["first_graph_own_seconds"]["median"]
    if exceeded := [f"{name}: {own[name]:.3f} s of {limit}" for name, limit in LIMITS.items() if own[name] > limit]:
        raise SystemExit(f"limits are exceeded: {', '.join(exceeded)}")


if __name__ == "__main__":
    main()
