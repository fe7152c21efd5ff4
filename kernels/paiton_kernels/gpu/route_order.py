"""``route_order``: the list of entries (routes.py) of a step of several tiles of tokens.

Every program adds up how often the tiles before its own chose each expert, so that none waits for another and the order
is always the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton.language as tl

from paiton_kernels.gpu.devices import Profile
from paiton_kernels.gpu.route_cases import order_cases
from paiton_kernels.gpu.route_shape import tiles, warps
from paiton_kernels.gpu.routes import check_routes, width_of, write_extents, write_order
from paiton_kernels.gpu.spec import Config, Constant, GpuArg, GpuKernelSpec, Grid, Step, Work

_CHUNK = tl.constexpr(16)
"""Tiles whose histograms are loaded together."""


def _kernel(
    counts,
    expert,
    histogram,
    routes,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    TILE: tl.constexpr,
):
    tokens, tile = tl.load(counts), tl.program_id(0)
    first = tile * TILE
    if first >= tl.maximum(tokens, 1):  # the list of a step without tokens is written too
        return
    column = tl.arange(0, width_of(EXPERTS))
    all_tiles = (tokens + TILE - 1) // TILE
    times = tl.zeros((width_of(EXPERTS),), tl.int32)
    before = tl.zeros((width_of(EXPERTS),), tl.int32)
    for start in range(0, all_tiles, _CHUNK):
        other = (start + tl.arange(0, _CHUNK))[:, None]
        inside = (other < all_tiles) & (column < EXPERTS)[None, :]
        chosen = tl.load(histogram + other * EXPERTS + column[None, :], mask=inside, other=0)
        times += tl.sum(chosen, axis=0)
        before += tl.sum(tl.where(other < tile, chosen, 0), axis=0)
    end = tl.cumsum(times, 0)
    if tile == 0:
        write_extents(routes, end, tokens, EXPERTS, TOP_K)
    token = first + tl.arange(0, TILE)
    slot = tl.full((TILE, width_of(EXPERTS)), -1, tl.int32)
    for j in range(TOP_K):
        taken = tl.load(expert + token * TOP_K + j, mask=token < tokens, other=-1)
        slot = tl.where(taken[:, None] == column[None, :], j, slot)
    write_order(routes, slot, end - times + before, first, EXPERTS, TOP_K, TILE)


def _grid(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    return tiles(values, step), 1, 1


def _space(constants: Mapping[str, Constant], _step: Step, profile: Profile) -> tuple[Config, ...]:
    return (Config.of(warps(constants, profile), 1),)


def _work(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Work:
    count = tiles(values, step)
    return Work(bytes=8 * step.tokens * int(values["TOP_K"]) + 4 * count * int(values["EXPERTS"]), blocks=count)


ROUTE_ORDER = GpuKernelSpec(
    family="route_order",
    function=_kernel,
    args=(
        GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows of this step, 0"),
        GpuArg("expert", "*i32", "i32[T][TOP_K]: a token's experts, all different"),
        GpuArg("histogram", "*i32", "i32[tiles][EXPERTS]: how often each tile of TILE tokens chose each"),
        GpuArg("routes", "*i32", "the list (routes.py), written"),
    ),
    constants=("EXPERTS", "TOP_K", "TILE"),
    tunables=(),
    name=lambda values: f"e{values['EXPERTS']}_top{values['TOP_K']}_t{values['TILE']}",
    space=_space,
    grid=_grid,
    work=_work,
    cases=order_cases,
    check=lambda values, _target: check_routes(values),
)
