"""Small launches of ``expert_linear`` in the modes that plans use, with their results in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from paiton_kernels.gpu.case_rows import within
from paiton_kernels.gpu.devices import DEFAULT_PROFILES, PROFILES, Target
from paiton_kernels.gpu.expert_shape import space, workspace
from paiton_kernels.gpu.linear_cases import (
    AMAX,
    BF16,
    BLOCK,
    DEFAULTS,
    FP8_WEIGHT,
    GROUP,
    INT8,
    ROW,
    SILU,
    SILU_AMAX,
    SILU_FP8,
    STATIC,
    STORE,
    Array,
    Inputs,
    add_scratch,
    expected_of_gate,
    small_config,
)
from paiton_kernels.gpu.route_cases import bucket_list
from paiton_kernels.gpu.spec import Case, Config, Constant, Step
from paiton_kernels.route import route

_UP: dict[str, Constant] = {"INPUT": "TOKENS"}
_DOWN: dict[str, Constant] = {"INPUT": "ENTRIES", **STORE}


def expert_case(
    target: Target,
    title: str,
    constants: Mapping[str, Constant],
    tokens: int,
    bucket: int,
    config: Config | None = None,
) -> Case:
    """Returns a launch with `tokens` real tokens in a bucket of `bucket`; some experts are chosen often, some never."""
    full: dict[str, Constant] = {"AMAX": 0, "SCALE_ROWS": 0, "ROW_STRIDE": constants["K"], **constants}
    experts, top_k, n = (int(full[name]) for name in ("EXPERTS", "TOP_K", "N"))
    per_token = 1 if full["INPUT"] == "TOKENS" else top_k
    # The matrices of all experts below one another are those of one layer, of which each row wants some columns.
    inputs = Inputs({**DEFAULTS, **full, "N": experts * n}, tokens * per_token, bucket * per_token, len(title))
    scores = inputs.random.standard_normal((bucket, experts)) + np.linspace(0, 4, experts)
    chosen, _ = route(scores[:tokens], top_k, normalise=True)
    entries = np.arange(tokens * top_k)
    rows = entries // top_k if per_token == 1 else entries
    inputs.product = inputs.product.reshape(-1, experts, n)[rows, chosen.ravel()]
    inputs.arrays["routes"] = bucket_list(chosen, experts, bucket)
    expected: dict[str, Array]
    if full["EPILOGUE"] == "STORE":
        inputs.arrays["out"] = np.zeros((bucket * top_k, n), np.float32)
        expected, tolerance = {"out": within(bucket * top_k, inputs.product)}, {"out": "f32"}
    else:
        expected, tolerance = expected_of_gate(inputs, full, bucket * top_k)
    step, profile = Step(bucket, 1), PROFILES[DEFAULT_PROFILES[target.name]]
    picked = config or space(full, step, profile)[0]
    add_scratch(inputs.arrays, expected, tolerance, workspace({**full, **dict(picked.values)}, step, profile))
    return Case(title, full, step, inputs.arrays, {}, expected, tolerance, (picked,))


def cases(target: Target) -> Iterator[Case]:
    """Yields each kind of input with each epilogue that follows it in plans, split and large tiles among them."""
    sizes: dict[str, Constant] = {"N": 96, "K": 192, "EXPERTS": 6, "TOP_K": 2}
    split = small_config(target, 16, 32, 64, split=2, dies=8)
    yield expert_case(target, "bf16_silu", {**sizes, **_UP, **BF16, **SILU}, 5, 8)
    yield expert_case(target, "bf16_down_split", {**sizes, **_DOWN, **BF16}, 21, 32, split)
    yield expert_case(target, "int8_down", {**sizes, **_DOWN, **INT8}, 5, 8)
    yield expert_case(target, "no_tokens", {**sizes, **_UP, **BF16, **SILU}, 0, 4)
    if not target.fp8:
        return
    large = small_config(target, 64, 64, 128, group=2, dies=8, warps=4)
    yield expert_case(target, "fp8_weight_silu", {**sizes, **_UP, **FP8_WEIGHT, **SILU}, 5, 8, split)
    yield expert_case(target, "static_silu_large", {**sizes, **_UP, **STATIC, **SILU_FP8}, 90, 96, large)
    yield expert_case(target, "static_down", {**sizes, **_DOWN, **STATIC, "N": 88}, 5, 8)
    yield expert_case(target, "amax_silu_split", {**sizes, **_UP, **AMAX, **SILU_AMAX}, 21, 32, split)
    yield expert_case(target, "amax_down", {**sizes, **_DOWN, **AMAX, "ROW_STRIDE": 208}, 5, 8)
    yield expert_case(target, "row_silu", {**sizes, **_UP, **ROW, **SILU_AMAX}, 21, 32)
    yield expert_case(target, "row_down_large", {**sizes, **_DOWN, **ROW}, 90, 96, large)
    blocks: dict[str, Constant] = {**sizes, "N": 64, "K": 272, "ROW_STRIDE": 272, "SCALE_ROWS": 32}
    yield expert_case(target, "block_silu", {**blocks, **_UP, **BLOCK, "SCALE_ROWS": 32, **SILU}, 5, 8)
    yield expert_case(target, "group_down", {**blocks, **_DOWN, **GROUP, "SCALE_ROWS": 32}, 21, 32)
