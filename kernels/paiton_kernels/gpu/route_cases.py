"""Small launches of ``route`` and ``route_order``, with their results in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paiton_kernels.gpu.case_rows import within
from paiton_kernels.gpu.devices import DEFAULT_PROFILES, PROFILES, Target
from paiton_kernels.gpu.linear_cases import add_scratch
from paiton_kernels.gpu.route_shape import space, tile_tokens, tiles, workspace
from paiton_kernels.gpu.routes import list_bytes, list_of
from paiton_kernels.gpu.spec import Case, Config, Constant, Step
from paiton_kernels.numeric_formats import round_e4m3
from paiton_kernels.route import route

Array = NDArray[Any]

UNTOUCHED = -5
"""What integers hold before a launch."""


def bucket_list(chosen: NDArray[np.int32], experts: int, bucket: int) -> NDArray[np.int32]:
    """Returns the list of entries (routes.py) in a bucket of so many tokens; what a step leaves is UNTOUCHED."""
    made = list_of(chosen, experts)
    room = np.full(list_bytes(experts, bucket * chosen.shape[1]) // 4, UNTOUCHED, np.int32)
    room[: len(made)] = made
    return room


def _histogram(chosen: NDArray[np.int32], experts: int, tile: int, count: int) -> NDArray[np.int32]:
    """Returns how often each tile of tokens chose each expert; rows for `count` tiles."""
    found = np.full((count, experts), UNTOUCHED, np.int32)
    for number in range(-(-len(chosen) // tile)):
        found[number] = np.bincount(chosen[number * tile : (number + 1) * tile].ravel(), minlength=experts)
    return found


def route_case(
    target: Target,
    title: str,
    constants: Mapping[str, Constant],
    tokens: int,
    bucket: int,
    config: Config | None = None,
) -> Case:
    """Returns a launch with `tokens` real tokens in a bucket of `bucket`; two of the experts have the same scores."""
    tile = tile_tokens(bucket, int(constants["EXPERTS"]))
    defaults: dict[str, Constant] = {"OUT": "BF16", "AMAX": 0, "CLEAR": 0, "NORMALISE": 1, "TILE": tile}
    full: dict[str, Constant] = {
        "ROW_STRIDE": constants["HIDDEN"],
        "ORDER": int(bucket <= tile),
        **defaults,
        **constants,
    }
    hidden, stride, experts, top_k = (int(full[name]) for name in ("HIDDEN", "ROW_STRIDE", "EXPERTS", "TOP_K"))
    random, step = np.random.default_rng(len(title)), Step(bucket, 1)
    x = random.standard_normal((bucket, hidden)).astype(ml_dtypes.bfloat16)
    router = (random.standard_normal((experts, stride)) * 1.5 / hidden**0.5).astype(ml_dtypes.bfloat16)
    router[experts - 1] = router[experts // 2]
    scores = x.astype(np.float64) @ router[:, :hidden].astype(np.float64).T
    chosen, probability = route(scores[:tokens], top_k, normalise=bool(full["NORMALISE"]))
    arrays: dict[str, Array] = {
        "counts": np.array([tokens, 1, 1, 0], np.int32),
        "x": x,
        "router": router,
        "probability": np.zeros((bucket, top_k), np.float32),
        "expert": np.full((bucket, top_k), UNTOUCHED, np.int32),
    }
    wanted = arrays["expert"].copy()
    wanted[:tokens] = chosen
    expected: dict[str, Array] = {"probability": within(bucket, probability), "expert": wanted}
    tolerance = {"probability": "f32", "expert": "exact"}
    if full["OUT"] == "FP8":
        scale = np.float32(1 / 150)  # some values are beyond 448
        arrays |= {"x_scale": np.array([scale]), "quantised": np.zeros((bucket, hidden), np.uint8)}
        expected["quantised"] = within(bucket, round_e4m3(x[:tokens].astype(np.float64) / float(scale)))
        tolerance["quantised"] = "fp8"
    if full["AMAX"]:
        arrays["amax"] = np.zeros(bucket, np.float32)
        expected["amax"] = within(bucket, np.abs(x[:tokens].astype(np.float64)).max(axis=1))
        tolerance["amax"] = "exact"
    if full["CLEAR"]:
        arrays["clear"] = np.full((bucket, top_k), 7, np.float32)
        expected["clear"], tolerance["clear"] = within(bucket, np.zeros((tokens, top_k))), "exact"
    name, made = (
        ("routes", bucket_list(chosen, experts, bucket))
        if full["ORDER"]
        else ("histogram", _histogram(chosen, experts, tile, tiles(full, step)))
    )
    arrays[name] = np.full(made.shape, UNTOUCHED, np.int32)
    expected[name], tolerance[name] = made, "exact"
    profile = PROFILES[DEFAULT_PROFILES[target.name]]
    picked = config or space(full, step, profile)[0]
    add_scratch(arrays, expected, tolerance, workspace({**full, **dict(picked.values)}, step, profile))
    return Case(title, full, step, arrays, {}, expected, tolerance, (picked,))


def cases(target: Target) -> Iterator[Case]:
    """Yields one tile and several, each way of rounding, and numbers of experts that are no power of two."""
    mixtral: dict[str, Constant] = {"HIDDEN": 192, "EXPERTS": 8, "TOP_K": 2}
    yield route_case(target, "one_token", mixtral, 1, 1)
    yield route_case(target, "no_tokens", mixtral, 0, 4)
    qwen: dict[str, Constant] = {"HIDDEN": 320, "ROW_STRIDE": 328, "EXPERTS": 128, "TOP_K": 8}
    yield route_case(target, "amax", {**qwen, "AMAX": 1, "CLEAR": 1}, 19, 32)
    yield route_case(target, "several_tiles", {**mixtral, "EXPERTS": 60, "TOP_K": 4, "NORMALISE": 0}, 130, 160)
    yield route_case(target, "all_chosen", {**mixtral, "EXPERTS": 4, "TOP_K": 4, "NORMALISE": 0}, 5, 8)
    if target.fp8:
        yield route_case(target, "static", {**mixtral, "HIDDEN": 208, "OUT": "FP8"}, 5, 8)


def order_cases(_target: Target) -> Iterator[Case]:
    """Yields steps of several tiles: with the last one half full, of more tiles than are loaded at once, of none."""
    for experts, top_k, tokens, bucket in ((60, 4, 39, 80), (8, 2, 300, 300), (128, 8, 0, 32)):
        random = np.random.default_rng(experts)
        popular = random.standard_normal((tokens, experts)) + np.linspace(0, 2, experts)
        chosen, _ = route(popular, top_k, normalise=True) if tokens else (np.zeros((0, top_k), np.int32), None)
        step, constants = Step(bucket, 1), {"EXPERTS": experts, "TOP_K": top_k, "TILE": 16}
        expert = np.full((bucket, top_k), UNTOUCHED, np.int32)
        expert[:tokens] = chosen
        routes = bucket_list(chosen, experts, bucket)
        arrays: dict[str, Array] = {
            "counts": np.array([tokens, 1, 1, 0], np.int32),
            "expert": expert,
            "histogram": _histogram(chosen, experts, 16, tiles(constants, step)),
            "routes": np.full(routes.shape, UNTOUCHED, np.int32),
        }
        yield Case(f"e{experts}_t{tokens}", constants, step, arrays, {}, {"routes": routes}, {"routes": "exact"})
