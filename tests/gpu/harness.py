"""Runs kernels on the device with arguments by name, and says how exact it is where it computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paiton_artifacts.errors import UnsupportedTargetError
from paiton_kernels.gpu.devices import Target
from paiton_kernels.gpu.spec import Case, Config, Constant, GpuKernelSpec, Step
from tests.emulated.harness import check_outputs, configs_of, profile_of
from tests.gpu.launcher import Gpu

Arrays = Mapping[str, NDArray[Any]]

MATRIX_FAMILIES = ("linear", "expert_linear", "route")
"""Families with f32 outputs that come out of matrix instructions."""


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel of a chain: its family, the constants of its shape, and how it is computed."""

    spec: GpuKernelSpec
    constants: Mapping[str, Constant]
    config: Config


def best(spec: GpuKernelSpec, target: Target, step: Step, **constants: Constant) -> Call:
    """Returns a call with the most promising configuration of the tuning space."""
    return Call(spec, constants, spec.space(constants, step, profile_of(target))[0])


def tolerance_on(target: Target, spec: GpuKernelSpec, tolerance: str) -> str:
    """Returns the tolerance that an output has on a target.

    NVIDIA's matrix units cut off what they accumulate instead of rounding it, and those of sm_90 keep 13 bits of the
    sums of FP8 products between promotions: f32 that comes out of them is judged like bf16.
    """
    coarse = target.backend == "cuda" and spec.family in MATRIX_FAMILIES and tolerance == "f32"
    return "bf16" if coarse else tolerance


def run_chain(
    gpu: Gpu, calls: Sequence[Call], step: Step, arrays: Arrays, scalars: Mapping[str, int | float] | None = None
) -> dict[str, NDArray[Any]]:
    """Launches kernels one after the other.

    Args:
        gpu: where.
        calls: the kernels; what they call by the same name is the same array.
        step: the bucket.
        arrays: pointer arguments by name. Scratch that is missing, or too small for the configuration, is made:
            semaphores of zeros, everything else poisoned with NaN. What else is missing is null.
        scalars: the other arguments.

    Returns:
        All arrays, as the last launch left them.
    """
    profile = profile_of(gpu.target)
    everything = dict(arrays)
    for call in calls:
        values = {**call.constants, **dict(call.config.values)}
        for name, size in call.spec.workspace(values, step, profile).items():
            made = np.zeros(size, np.int32) if name == "semaphores" else np.full(size, 0xFF, np.uint8)
            if name not in everything or everything[name].nbytes < made.nbytes:
                everything[name] = made
    with gpu.arrays() as memory:
        places = {name: memory.place(array) for name, array in everything.items()}
        launches = []
        for call in calls:
            variant = call.spec.variant(call.config, **call.constants)
            given: dict[str, int | float] = {**places, **(scalars or {})}
            used = {arg.name: given[arg.name] for arg in call.spec.args if arg.name in given}
            launches.append(gpu.prepare(gpu.load(variant), call.spec.grid(variant.values, step, profile), used))
        gpu.run(*launches)
        return {name: memory.read(address) for name, address in places.items()}


def cases_on(target: Target, spec: GpuKernelSpec) -> Iterator[tuple[Case, tuple[Config, ...]]]:
    """Yields the cases of a family that a target can run, with their configurations; skips if there is none."""
    found = False
    for case in spec.cases(target):
        configs = configs_of(spec, case, target)
        try:
            spec.variant(configs[0], **case.constants).require(target)
        except UnsupportedTargetError:
            continue  # FP8 on a target without
        found = True
        yield case, configs
    if not found:
        pytest.skip(f"{spec.family} has nothing to do on {target.name}")


def run_case(gpu: Gpu, spec: GpuKernelSpec, case: Case, config: Config) -> dict[str, NDArray[Any]]:
    """Launches a case and returns its arrays afterwards."""
    return run_chain(gpu, [Call(spec, case.constants, config)], case.step, case.arrays, case.scalars)


def check_case(gpu: Gpu, spec: GpuKernelSpec, case: Case, config: Config) -> None:
    """Launches a case and compares every output."""
    tolerance = {name: tolerance_on(gpu.target, spec, kind) for name, kind in case.tolerance.items()}
    check_outputs(replace(case, tolerance=tolerance), run_case(gpu, spec, case, config))
