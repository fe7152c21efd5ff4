"""The benchmark of graphs: its driver library fits what the runtime calls, and counts what it is there to count."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.graphs import run_child
from benchmarks.null_driver import build_null_driver, environment_of
from benchmarks.synthetic_plans import SMALL
from paiton_artifacts.kernel_table import check_launches
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import check_plan
from tests.conftest import python_environment


def test_every_launch_becomes_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", python_environment()["PYTHONPATH"])
    kernels = SMALL.kernels().kernels
    (report,) = run_child("small", build_null_driver(tmp_path), kernels, 1, runs=1)
    by_symbol = {kernel.symbol: kernel for kernel in kernels}
    launches = [
        by_symbol[launch.symbol]
        for plan in SMALL.plans()
        for segment in plan.segments
        for launch in segment.launches * segment.repeat
    ]
    graphs = report["graphs"]
    assert graphs["nodes"] == len(launches) == SMALL.buckets * (3 + 7 * SMALL.layers + 2)
    assert graphs["argument_bytes"] == sum(a.size for kernel in launches for a in kernel.arguments)
    assert 0 < graphs["driver_seconds"] < graphs["wall_seconds"]
    assert graphs["own_seconds"] > 0


def test_synthetic_plans_are_what_a_bundle_could_hold() -> None:
    kernels = {kernel.symbol: kernel for kernel in SMALL.kernels().kernels}
    for plan in SMALL.plans():
        check_plan(plan, dict.fromkeys(Region, 1 << 30), SMALL.ranks, kernels.keys())
        check_launches(plan, kernels)


def test_the_environment_lists_every_argument(tmp_path: Path) -> None:
    kernels = SMALL.kernels().kernels
    variables = environment_of(tmp_path / "library.so", kernels, 3)
    lines = Path(variables["NULL_HIP_KERNELS"]).read_text(encoding="ascii").splitlines()
    assert [line.split()[0] for line in lines] == [kernel.symbol for kernel in kernels]
    assert [len(line.split()) - 1 for line in lines] == [len(kernel.arguments) for kernel in kernels]
    assert variables["NULL_HIP_DEVICES"] == "3"
