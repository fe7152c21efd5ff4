"""Configurations of ``attention`` to choose from.

None of these orders was measured on the devices; they rest on the compiled code: registers, spills, shared memory and
where loads are waited for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import triton

from paiton_kernels.gpu.attention_items import group_of
from paiton_kernels.gpu.devices import TARGETS, Profile
from paiton_kernels.gpu.spec import Config, Constant, Step

_SIMDS = 4
"""Vector units of an AMD compute unit, among which a block's warps are dealt out."""

_USUAL_HEAD = 128
"""Elements of a head up to which tiles have the usual sizes."""

_MOST = 20
"""Configurations with the best number of query rows."""

_MOST_OTHER = 8
"""Configurations with each other number of query rows."""


def _tile_rows(constants: Mapping[str, Constant], step: Step) -> list[int]:
    """Returns numbers of query rows, best first: what a request of a full step has, within 16..128.

    Heads that are padded or large get 64 at most, for their registers.
    """
    smallest = max(16, triton.next_power_of_2(group_of(constants)))
    largest = max(smallest, 64 if int(constants["HEAD_DIM"]) in (96, 256) else 128)
    average = triton.next_power_of_2(max(1, step.tokens // step.requests) * group_of(constants))
    best = min(max(smallest, average), largest)
    return [best, *(rows for rows in (best // 2, best * 2, best // 4) if smallest <= rows <= largest)]


def _tiles(rows: int, head_dim: int) -> tuple[tuple[int, int], ...]:
    """Returns warps and BLOCK_KV for a number of query rows, best first."""
    if head_dim > _USUAL_HEAD:  # twice the registers for the same rows
        return ((4, 32), (8, 64), (8, 32), (4, 16)) if rows <= 32 else ((8, 32), (4, 32), (8, 64), (8, 16))
    if rows <= 32:
        return (4, 64), (4, 32), (2, 32), (4, 128), (2, 64)
    if rows == 64 and head_dim == 96:  # with masks
        return (4, 32), (4, 64), (8, 64)
    if rows == 64:
        return (4, 64), (4, 32), (8, 64)
    return (8, 64), (8, 32), (4, 32)


def _amd(rows: int, head_dim: int, arch: str, units: int) -> Iterator[Config]:
    # Two stages on gfx950 would copy K and V to shared memory 4 bytes at a time and read hidden arguments.
    pipelines = ((1, 1), (2, 0)) if arch == "gfx942" else ((1, 1),)
    if rows >= 64:
        pipelines = pipelines[::-1]
    for warps, block_kv in _tiles(rows, head_dim):
        for waves in (2, 3, 4, 1) if rows <= 32 else (2, 1):
            for stages, prefetch in pipelines:
                if waves * _SIMDS >= warps:
                    programs = units * (waves * _SIMDS // warps)
                    tiles = {"BLOCK_Q": rows, "BLOCK_KV": block_kv, "PREFETCH": prefetch, "PROGRAMS": programs}
                    # 32x32 matrix instructions need more registers here, and more reads of shared memory.
                    yield Config.of(warps, stages, {"matrix_instr_nonkdim": 16, "waves_per_eu": waves}, **tiles)


def _nvidia(rows: int, head_dim: int, kv: str, units: int) -> Iterator[Config]:
    # FP8 goes through registers, where it becomes bf16 on its way to shared memory; bf16 is copied there directly.
    pipelines = ((1, 1), (2, 0)) if kv == "FP8" else ((3, 0), (2, 0), (1, 1))
    for warps, block_kv in _tiles(rows, head_dim):
        for each in (2, 1, 4) if rows <= 32 else (1, 2):
            for stages, prefetch in pipelines:
                tiles = {"BLOCK_Q": rows, "BLOCK_KV": block_kv, "PREFETCH": prefetch, "PROGRAMS": units * each}
                yield Config.of(warps, stages, None, **tiles)


def attention_space(constants: Mapping[str, Constant], step: Step, profile: Profile) -> tuple[Config, ...]:
    """Returns configurations for a bucket, most promising first."""
    target = TARGETS[profile.target]
    head_dim = int(constants["HEAD_DIM"])
    configs: list[Config] = []
    for place, rows in enumerate(_tile_rows(constants, step)):
        if target.backend == "hip":
            found = _amd(rows, head_dim, target.arch, profile.compute_units)
        else:
            found = _nvidia(rows, head_dim, str(constants["KV"]), profile.compute_units)
        # Every one of them is compiled when they are ranked or measured.
        configs += itertools.islice(found, _MOST if place == 0 else _MOST_OTHER)
    return tuple(configs)
