"""``linear``: emulated against float64."""

from __future__ import annotations

import numpy as np
import pytest

from paiton_kernels.gpu.devices import TARGETS, Target
from paiton_kernels.gpu.linear import LINEAR
from paiton_kernels.gpu.linear_cases import BF16, ROPE, ROPE_FP8, SILU, STATIC, STORE, linear_case, small_config
from paiton_kernels.gpu.spec import Case, Constant
from tests.emulated.harness import AMD_TARGETS, ORDERS, check_case, check_outputs, run_case, run_far
from tests.numerics import assert_same_bits

_CASES = [(target, case) for target in AMD_TARGETS for case in LINEAR.cases(target)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("target", "case"), _CASES, ids=[f"{target.arch}-{case.name}" for target, case in _CASES])
def test_every_case(target: Target, case: Case, order: str | None) -> None:
    check_case(LINEAR, case, target, order=order)


def test_who_comes_last_does_not_change_the_sum() -> None:
    target = TARGETS["hip:gfx942"]
    shape: dict[str, Constant] = {"N": 96, "K": 320, **BF16, **STORE}
    case = linear_case(target, "split in five", shape, 5, 8, small_config(target, 16, 32, 64, split=5, dies=8))
    results = [run_case(LINEAR, case, target, case.configs[0], order) for order in (None, "fwd", "rev")]
    check_outputs(case, results[0])
    for other in results[1:]:
        assert_same_bits(other["out"], results[0]["out"])


def test_a_launch_can_be_repeated_on_its_own_workspace() -> None:
    target = TARGETS["hip:gfx942"]
    shape: dict[str, Constant] = {"N": 96, "K": 192, **BF16, **STORE}
    case = linear_case(target, "repeated", shape, 5, 8, small_config(target, 16, 32, 64, split=3))
    first = run_case(LINEAR, case, target, case.configs[0])
    case.arrays["out"][:] = np.nan
    again = Case(case.name, case.constants, case.step, {**first, "out": case.arrays["out"]}, case.scalars, {}, {})
    assert_same_bits(run_case(LINEAR, again, target, case.configs[0])["out"][:5, :96], first["out"][:5, :96])


@pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.arch)
@pytest.mark.parametrize(("inputs", "epilogue"), [(STATIC, STORE), (STATIC, SILU), (BF16, STORE), (BF16, SILU)])
def test_weights_beyond_2_gib(target: Target, inputs: dict[str, Constant], epilogue: dict[str, Constant]) -> None:
    shape: dict[str, Constant] = {"N": 768, "K": 64, **inputs, **epilogue}
    case = linear_case(target, "far weights", shape, 3, 4, small_config(target, 16, 64, 64))
    stride = 3 << 20
    constants = {**case.constants, "ROW_STRIDE": stride}
    far = Case(case.name, constants, case.step, case.arrays, case.scalars, case.expected, case.tolerance, case.configs)
    element = case.arrays["weight"].itemsize
    assert 767 * stride * element > 2 << 30
    run_far(LINEAR, far, target, "weight", [row * stride * element for row in range(768)])


@pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.arch)
@pytest.mark.parametrize(("inputs", "epilogue"), [(STATIC, ROPE_FP8), (BF16, ROPE)])
def test_kv_blocks_beyond_4_gib(target: Target, inputs: dict[str, Constant], epilogue: dict[str, Constant]) -> None:
    case = linear_case(target, "far blocks", {"N": 160, "K": 64, **inputs, **epilogue}, 6, 8, None)
    apart, stride = 613, 1 << 20
    tables = case.arrays["block_tables"]
    arrays = {**case.arrays, "block_tables": tables * np.int32(apart)}
    scalars = {**case.scalars, "kv_block_stride": stride}
    assert int(tables.max()) * apart * stride > 4 << 30
    far = Case(case.name, case.constants, case.step, arrays, scalars, case.expected, case.tolerance, case.configs)
    run_far(LINEAR, far, target, "kv", [block * apart * stride for block in range(len(case.arrays["kv"]))])
