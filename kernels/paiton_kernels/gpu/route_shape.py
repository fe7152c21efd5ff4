"""Names, limits, costs and configurations of ``route``, from its constants."""

from __future__ import annotations

from collections.abc import Mapping

import triton

from paiton_kernels.gpu.devices import Profile, Target, target_named
from paiton_kernels.gpu.linear_shape import LOAD_BYTES
from paiton_kernels.gpu.routes import check_routes, width_of
from paiton_kernels.gpu.spec import Config, Constant, Grid, Step, Work

MOST_TOKENS = 64
"""Tokens of the largest tile."""

_MOST_SCORES = 4096
"""Scores of the largest tile of more than 16 tokens: choosing takes several registers for each."""


def tile_tokens(tokens: int, experts: int) -> int:
    """Returns the tokens of a tile, the constant TILE, in a bucket of so many tokens."""
    most = min(MOST_TOKENS, max(16, _MOST_SCORES // int(width_of(experts))))
    return min(max(16, int(triton.next_power_of_2(tokens))), most)


def warps(constants: Mapping[str, Constant], profile: Profile) -> int:
    """Returns the warps whose threads have 16 scores of a tile each, at least 4."""
    threads = int(constants["TILE"]) * int(width_of(constants["EXPERTS"])) // 16
    return max(4, threads // target_named(profile.target).warp_size)


def tiles(values: Mapping[str, Constant], step: Step) -> int:
    """Returns the tiles of tokens that a bucket has."""
    return -(-max(1, step.tokens) // int(values["TILE"]))


def grid(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    """Returns the blocks launched: one for each tile and part of K."""
    return tiles(values, step) * int(values["SPLIT_K"]), 1, 1


def workspace(values: Mapping[str, Constant], step: Step, _profile: Profile) -> dict[str, int]:
    """Returns the scratch that partial products take: f32[tiles][SPLIT_K][TILE][width], and a semaphore a tile."""
    split, count = int(values["SPLIT_K"]), tiles(values, step)
    if split == 1:
        return {}
    return {"workspace": 4 * count * split * int(values["TILE"]) * width_of(values["EXPERTS"]), "semaphores": count}


def space(constants: Mapping[str, Constant], step: Step, profile: Profile) -> tuple[Config, ...]:
    """Returns configurations: parts of K for half of the units, but not too many for the last program to sum."""
    hidden = int(constants["HIDDEN"])
    wanted = max(1, min(16, profile.compute_units // (2 * tiles(constants, step))))
    backend = target_named(profile.target).backend
    options = {"matrix_instr_nonkdim": 16} if backend == "hip" else {}
    found: dict[Config, None] = {}
    for most in (wanted, wanted // 2, 2 * wanted, 1):
        for depth in (128, 64, 256):
            passes = -(-hidden // depth)
            split = -(-passes // -(-passes // min(max(most, 1), passes)))  # no part is empty
            if depth == 64 or depth <= hidden:
                stages = 2 if backend == "hip" else 3
                found.setdefault(Config.of(warps(constants, profile), stages, options, BLOCK_K=depth, SPLIT_K=split))
    return tuple(found)


def work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    """Returns what a full bucket moves and computes."""
    hidden, experts = int(values["HIDDEN"]), int(values["EXPERTS"])
    codes = step.tokens * hidden if values["OUT"] == "FP8" else 0
    return Work(
        bytes=2 * (experts + step.tokens) * hidden + codes + 16 * step.tokens * int(values["TOP_K"]),
        bf16_operations=2 * step.tokens * experts * hidden,
        blocks=grid(values, step, profile)[0],
    )


def check(values: Mapping[str, Constant], _target: Target) -> str:
    """Returns why ``route`` cannot do these constants, or ""."""
    hidden, stride = int(values["HIDDEN"]), int(values["ROW_STRIDE"])
    if hidden % LOAD_BYTES:
        return f"HIDDEN is {hidden}, not a multiple of {LOAD_BYTES}"
    if stride < hidden or 2 * stride % LOAD_BYTES:
        return f"ROW_STRIDE is {stride}, not at least HIDDEN={hidden} and a multiple of {LOAD_BYTES} bytes"
    if values["OUT"] not in ("FP8", "BF16") or (values["OUT"] == "FP8" and values["AMAX"]):
        return f"OUT={values['OUT']} with AMAX={values['AMAX']}"
    if not 16 <= int(values["TILE"]) <= MOST_TOKENS:
        return f"TILE is {values['TILE']}, not within 16..{MOST_TOKENS}"
    return check_routes(values)


def name(values: Mapping[str, Constant]) -> str:
    """Returns the readable part of a symbol: different constants give different names."""
    hidden, stride = values["HIDDEN"], values["ROW_STRIDE"]
    flags = {"norm": values["NORMALISE"], "fp8": values["OUT"] == "FP8", "amax": values["AMAX"]}
    flags |= {"clear": values["CLEAR"], "order": values["ORDER"]}
    parts = [f"h{hidden}", *([f"s{stride}"] if stride != hidden else []), f"e{values['EXPERTS']}"]
    parts += [f"top{values['TOP_K']}", f"t{values['TILE']}", *(name for name, given in flags.items() if given)]
    return "_".join(parts)
