"""Routing and the experts' launches: emulated against float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paiton_kernels.gpu.devices import TARGETS
from paiton_kernels.gpu.expert_cases import expert_case
from paiton_kernels.gpu.expert_linear import EXPERT_LINEAR
from paiton_kernels.gpu.expert_sum import EXPERT_SUM
from paiton_kernels.gpu.linear_cases import BF16, SILU, STATIC, STORE, small_config
from paiton_kernels.gpu.route import ROUTE
from paiton_kernels.gpu.route_cases import UNTOUCHED, bucket_list, route_case
from paiton_kernels.gpu.route_order import ROUTE_ORDER
from paiton_kernels.gpu.spec import Case, Constant, GpuKernelSpec, Step
from tests.emulated.harness import check_case, configs_of, run_case, run_far
from tests.numerics import assert_same_bits

GFX942 = TARGETS["hip:gfx942"]
SPECS = (ROUTE, ROUTE_ORDER, EXPERT_LINEAR, EXPERT_SUM)
SIZES: dict[str, Constant] = {"N": 96, "K": 64, "EXPERTS": 6, "TOP_K": 2}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.family)
@pytest.mark.parametrize(("arch", "order"), [("gfx942", None), ("gfx942", "rev"), ("gfx950", "rev")])
def test_every_case(arch: str, spec: GpuKernelSpec, order: str | None) -> None:
    target = TARGETS[f"hip:{arch}"]
    for case in spec.cases(target):
        check_case(spec, case, target, configs_of(spec, case, target)[0], order)


def test_both_ways_to_order_entries_give_the_same_list() -> None:
    """`route` does it itself for a tile; the same tokens as a tile of a longer step get theirs by `route_order`."""
    constants: dict[str, Constant] = {"HIDDEN": 64, "EXPERTS": 8, "TOP_K": 2}
    alone = route_case(GFX942, "same tokens", constants, 20, 32)
    routes = run_case(ROUTE, alone, GFX942, alone.configs[0])["routes"]
    counted = route_case(GFX942, "same tokens", {**constants, "ORDER": 0, "TILE": 16}, 20, 32)
    found = run_case(ROUTE, counted, GFX942, counted.configs[0])
    assert_same_bits(found["expert"][:20], alone.expected["expert"][:20])
    arrays = {name: found[name] for name in ("counts", "expert", "histogram")}
    order = Case("order", {"EXPERTS": 8, "TOP_K": 2, "TILE": 16}, Step(32, 1), arrays, {}, {}, {})
    arrays["routes"] = np.full_like(routes, UNTOUCHED)
    assert_same_bits(run_case(ROUTE_ORDER, order, GFX942, configs_of(ROUTE_ORDER, order, GFX942)[0])["routes"], routes)


def test_scores_that_are_no_numbers_still_name_different_experts() -> None:
    """What reads the list trusts it, so a token without numbers gets experts as well, and its own results are lost."""
    case = route_case(GFX942, "nan", {"HIDDEN": 64, "EXPERTS": 8, "TOP_K": 2}, 3, 4)
    case.arrays["x"][1] = np.nan
    case.arrays["x"][2] = np.inf
    found = run_case(ROUTE, case, GFX942, case.configs[0])
    assert found["expert"][1].tolist() == [0, 1]
    assert np.isnan(found["probability"][1]).all()
    assert_same_bits(found["expert"][:1], case.expected["expert"][:1])
    assert_same_bits(found["routes"], bucket_list(found["expert"][:3], 8, 4))


@pytest.mark.parametrize("inputs", [BF16, STATIC], ids=["bf16", "static"])
def test_results_do_not_depend_on_the_rest_of_the_batch(inputs: dict[str, Constant]) -> None:
    """A token gets the same bits beside twenty others, alone, and with others' rows around it in every tile."""
    constants = {**SIZES, **inputs, **SILU, "INPUT": "TOKENS"}
    config = small_config(GFX942, 16, 32, 64)
    case = expert_case(GFX942, "batch", constants, 21, 32, config)
    together = run_case(EXPERT_LINEAR, case, GFX942, config)
    start = 4 + -(-6 // 4) * 4
    order = together["routes"][start : start + 42]
    chosen = np.zeros((21, 2), np.int32)
    chosen.ravel()[order] = np.repeat(np.arange(6), np.diff(together["routes"][3:10]))
    for token in (0, 13):
        a = case.arrays["a"].copy()
        a[0] = a[token]
        routes = bucket_list(chosen[token : token + 1], 6, 32)
        alone = run_case(EXPERT_LINEAR, replace(case, arrays={**case.arrays, "a": a, "routes": routes}), GFX942, config)
        assert_same_bits(alone["out"][:2], together["out"][2 * token : 2 * token + 2])


@pytest.mark.parametrize("inputs", [STATIC, BF16], ids=["static", "bf16"])
def test_weights_beyond_2_gib(inputs: dict[str, Constant]) -> None:
    constants = {**SIZES, **inputs, **STORE, "EXPERTS": 8, "INPUT": "ENTRIES"}
    case = expert_case(GFX942, "far weights", constants, 3, 4, small_config(GFX942, 16, 32, 64))
    stride = 3 << 20
    far = replace(case, constants={**case.constants, "ROW_STRIDE": stride})
    element = case.arrays["weight"].itemsize
    assert 767 * stride * element > 2 << 30
    run_far(EXPERT_LINEAR, far, GFX942, "weight", [row * stride * element for row in range(768)])
