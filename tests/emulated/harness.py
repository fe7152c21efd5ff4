"""Runs a kernel's cases: compiled for an AMD target, executed in the emulator, compared with float64."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.gpu.compile import compile_kernel
from paiton_kernels.gpu.devices import DEFAULT_PROFILES, PROFILES, TARGETS, Profile, Target
from paiton_kernels.gpu.spec import Case, Config, GpuKernelSpec
from paiton_kernels.numeric_formats import e4m3_values
from tests.emulated.cdna import DeviceMemory, DevicePointer, Kernel
from tests.numerics import assert_close

AMD_TARGETS = tuple(target for target in TARGETS.values() if target.backend == "hip")
ORDERS = (None, "rev")
"""All waves in lockstep; one wave at a time up to each barrier, the last one first."""


def profile_of(target: Target) -> Profile:
    """Returns the profile that a target's cases are planned for."""
    return PROFILES[DEFAULT_PROFILES[target.name]]


def configs_of(spec: GpuKernelSpec, case: Case, target: Target) -> tuple[Config, ...]:
    """Returns the configurations that a case is run with."""
    return case.configs or tuple(spec.space(case.constants, case.step, profile_of(target))[:1])


def run_case(
    spec: GpuKernelSpec, case: Case, target: Target, config: Config, order: str | None = None
) -> dict[str, NDArray[Any]]:
    """Runs a case in the emulator and returns all its arrays afterwards."""
    variant = spec.variant(config, **case.constants)
    kernel = compile_kernel(variant, target, Path(os.environ["PAITON_CACHE"]))
    assert kernel.shared_bytes <= target.max_shared_bytes
    arrays = {name: array.copy() for name, array in case.arrays.items()}
    arguments = [arrays.get(arg.name) if arg.pointer else case.scalars[arg.name] for arg in spec.args]
    grid = spec.grid(variant.values, case.step, profile_of(target))
    emulated = Kernel(kernel.assembly, target.arch)
    types = list(variant.signature(target).values())
    emulated.launch(grid, arguments, types, config.num_warps, kernel.shared_bytes, order=order)
    return arrays


def check_case(
    spec: GpuKernelSpec, case: Case, target: Target, config: Config | None = None, order: str | None = None
) -> dict[str, NDArray[Any]]:
    """Runs a case and compares every output; what must not be written must keep its bytes."""
    chosen = config or configs_of(spec, case, target)[0]
    arrays = run_case(spec, case, target, chosen, order)
    check_outputs(case, arrays)
    return arrays


def check_outputs(case: Case, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Compares what a launch left behind with what a case expects."""
    for name, expected in case.expected.items():
        actual, before = arrays[name], case.arrays[name]
        written = ~np.isnan(expected) if expected.dtype.kind == "f" else np.ones(expected.shape, bool)
        untouched = actual[~written].tobytes() == before[~written].tobytes()
        assert untouched, f"{case.name}: {name} was written outside of what it covers"
        wanted, tolerance = expected[written], case.tolerance[name]
        if tolerance == "exact":
            assert np.array_equal(actual[written], wanted.astype(actual.dtype)), f"{case.name}: {name} differs"
            continue
        found = e4m3_values()[actual[written]] if actual.dtype == np.uint8 else actual[written].astype(np.float64)
        assert_close(found, wanted, tolerance)


def run_far(spec: GpuKernelSpec, case: Case, target: Target, name: str, rows: list[int]) -> None:
    """Checks a case with one of its arrays in memory of its own, most of it never touched: row i is at byte rows[i]."""
    near = case.arrays[name]
    memory = DeviceMemory()
    pool = memory.reserve(max(rows) + near[0].nbytes, name)
    for place, row in zip(rows, near, strict=True):
        memory.write(pool + place, row)
    arrays = {key: array.copy() for key, array in case.arrays.items()}
    pointers: dict[str, Any] = {**arrays, name: DevicePointer(memory, pool)}
    variant = spec.variant(case.configs[0], **case.constants)
    kernel = compile_kernel(variant, target, Path(os.environ["PAITON_CACHE"]))
    arguments = [pointers.get(arg.name) if arg.pointer else case.scalars[arg.name] for arg in spec.args]
    types = list(variant.signature(target).values())
    grid = spec.grid(variant.values, case.step, profile_of(target))
    Kernel(kernel.assembly, target.arch).launch(grid, arguments, types, case.configs[0].num_warps, kernel.shared_bytes)
    for place, row in zip(rows, arrays[name], strict=True):
        row[:] = np.frombuffer(memory.read(pool + place, row.nbytes), row.dtype)
    check_outputs(case, arrays)
