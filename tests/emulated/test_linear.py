"""``linear``: emulated against float64, and what its code must and must not hold."""

from __future__ import annotations

import pytest

from paiton_kernels.gpu.devices import Target
from paiton_kernels.gpu.linear import LINEAR
from tests.emulated.harness import AMD_TARGETS, ORDERS, check_case

_CASES = [(target, case) for target in AMD_TARGETS for case in LINEAR.cases(target)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("target", "case"), _CASES, ids=[f"{target.arch}-{case.name}" for target, case in _CASES])
def test_every_case(target: Target, case, order: str | None) -> None:
    check_case(LINEAR, case, target, order=order)
