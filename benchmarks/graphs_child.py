"""One run of the benchmark `graphs` in a process of its own: `python -m benchmarks.graphs_child WORKLOAD|BUNDLE`.

Prints one JSON object. Imports nothing that a boot does not, as a boot is what it measures.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Tally(NamedTuple):
    """What was done inside the null driver, by all threads so far."""

    seconds: float  # of processor time
    calls: int
    nodes: int  # of kernels
    argument_bytes: int


class Span:
    """Wall time, processor time of all threads, and what of that the driver library took."""

    def __init__(self) -> None:
        self._start = (time.perf_counter(), time.process_time(), tally())

    def end(self) -> dict[str, float]:
        """Returns the figures since the span began."""
        wall, processor, before = self._start
        now = (time.perf_counter() - wall, time.process_time() - processor)
        after = tally()
        inside = after.seconds - before.seconds
        return {
            "own_seconds": now[1] - inside,
            "driver_seconds": inside,
            "wall_seconds": now[0],
            "driver_calls": after.calls - before.calls,
            "nodes": after.nodes - before.nodes,
            "argument_bytes": after.argument_bytes - before.argument_bytes,
        }


def null_driver() -> ctypes.CDLL:
    """Returns the library that the runtime finds."""
    return ctypes.CDLL(os.environ["PAITON_HIP_LIBRARY"])


def tally() -> Tally:
    """Returns what the null driver has counted."""
    sums = (ctypes.c_uint64 * 4)()
    null_driver().null_hip_tally(sums)
    nanoseconds, *counts = sums
    return Tally(nanoseconds / 1e9, *counts)


def run_workload(name: str) -> dict[str, object]:
    """Decodes and checks the plans of a synthetic model, then makes graphs of them on every rank."""
    from benchmarks.synthetic_plans import EXTENT, WORKLOADS  # noqa: PLC0415
    from paiton_artifacts.kernel_table import check_launches  # noqa: PLC0415
    from paiton_artifacts.layout import Region  # noqa: PLC0415
    from paiton_artifacts.plan import check_plan, decode_plan, encode_plan  # noqa: PLC0415
    from paiton_runtime.budget import RegionSizes  # noqa: PLC0415
    from paiton_runtime.drivers.device_library import open_library  # noqa: PLC0415
    from paiton_runtime.drivers.gpu import GpuDriver  # noqa: PLC0415

    workload = WORKLOADS[name]
    files = [encode_plan(plan) for plan in workload.plans()]
    kernels = {kernel.symbol: kernel for kernel in workload.kernels().kernels}
    archive = bytes(max(kernel.offset + kernel.size for kernel in kernels.values()))
    library = open_library("hip")
    library.initialise()
    driver = GpuDriver(library, range(workload.ranks), workload.memory(), "graph")
    driver.reserve()
    driver.allocate(RegionSizes(0, 0, EXTENT, 0))
    driver.load_kernels(archive, kernels)
    span = Span()
    plans = [decode_plan(data) for data in files]
    for plan in plans:
        check_plan(plan, dict.fromkeys(Region, EXTENT), workload.ranks, kernels.keys())
        check_launches(plan, kernels)
    decoded = span.end()
    span = Span()
    graphs = driver.build_all(plans)
    built = span.end()
    if built["nodes"] != workload.ranks * sum(graph.launches for graph in graphs):
        raise SystemExit(f"{built['nodes']} nodes were counted")
    driver.close()
    return {"decode": decoded, "graphs": built, "threads": workload.ranks + 1}


def run_boot(bundle: Path) -> dict[str, object]:
    """Boots a bundle as the command does, but without weights and goldens."""
    import paiton_runtime.cli  # noqa: PLC0415
    import paiton_runtime.commands.generate  # noqa: F401, PLC0415
    from paiton_runtime.boot import BootOptions, boot  # noqa: PLC0415
    from paiton_runtime.drivers.gpu import GpuDriver  # noqa: PLC0415

    imported = time.process_time()
    setattr(GpuDriver, "load_weights", lambda _: None)  # noqa: B010 (type checkers rightly mind a plain assignment)
    options = BootOptions(target="hip:gfx942", executor="graph", golden_check=False, kv_tokens=4096)
    model = boot(bundle, options)
    moments = (ctypes.c_uint64 * 3)()
    inside = tally()
    own = time.process_time() - inside.seconds
    null_driver().null_hip_first_graph(moments)
    monotonic, processor, before = (moment / 1e9 for moment in moments)
    return {
        "imports_seconds": imported,
        "first_graph_own_seconds": processor - before,
        "first_graph_monotonic": monotonic,
        "all_graphs_own_seconds": own,
        "all_graphs_monotonic": time.monotonic(),
        "driver_seconds": inside.seconds,
        "note": model.ledger.rows["graph compilation"].note,
    }


if __name__ == "__main__":
    what = sys.argv[1]
    print(json.dumps(run_boot(Path(what)) if Path(what).is_dir() else run_workload(what)))
