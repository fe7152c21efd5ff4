"""Every case of every family, compiled for this machine's GPU and run on it."""

from __future__ import annotations

import pytest

from paiton_kernels.gpu.families import FAMILIES
from tests.emulated.harness import profile_of
from tests.gpu.harness import cases_on, check_case, run_case
from tests.gpu.launcher import Gpu
from tests.numerics import assert_same_bits

by_family = pytest.mark.parametrize("family", FAMILIES)


@by_family
def test_a_launch_makes_what_float64_expects(gpu: Gpu, family: str) -> None:
    spec = FAMILIES[family]
    for case, configs in cases_on(gpu.target, spec):
        for config in configs:
            check_case(gpu, spec, case, config)


@by_family
def test_a_launch_makes_the_same_bytes_every_time(gpu: Gpu, family: str) -> None:
    spec = FAMILIES[family]
    for case, configs in cases_on(gpu.target, spec):
        first = run_case(gpu, spec, case, configs[0])
        for _ in range(3):
            again = run_case(gpu, spec, case, configs[0])
            for name in case.expected:
                assert_same_bits(again[name], first[name])


@by_family
def test_every_configuration_of_the_tuning_space_agrees(gpu: Gpu, family: str) -> None:
    spec = FAMILIES[family]
    free = [case for case, _ in cases_on(gpu.target, spec) if not case.configs]
    if not free:
        pytest.skip(f"{family} has no case whose configuration is free")
    case = free[0]
    for config in spec.space(case.constants, case.step, profile_of(gpu.target)):
        kernel = gpu.compile(spec.variant(config, **case.constants))
        if kernel.shared_bytes <= gpu.properties.shared_bytes:  # else no build would choose it
            check_case(gpu, spec, case, config)
