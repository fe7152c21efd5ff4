"""Fourth launch of ``sample``: the exact limits of top-k and top-p, and the draw."""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from paiton_kernels.gpu.devices import Profile, target_named
from paiton_kernels.gpu.sample_args import arguments, check_vocabulary, scratch, symbol_part
from paiton_kernels.gpu.sample_arithmetic import (
    chunk_count,
    chunk_slots,
    chunk_tokens,
    filtered,
    least_share,
    mass_of,
    octaves_below,
    octaves_per_logit,
    ordered,
)
from paiton_kernels.gpu.sample_cases import draw_cases
from paiton_kernels.gpu.sample_limits import kept_by_limits
from paiton_kernels.gpu.spec import Config, Constant, GpuKernelSpec, Grid, Step, Work

_LEAST_KEY = tl.constexpr(-(1 << 31))


@triton.jit
def _uniform_times(seed, draw, total):
    """Returns the 53-bit uniform of Philox4x32-10, key `seed`, counter `draw`, times an i64, rounded down exactly."""
    low, high = (draw & 0xFFFFFFFF).to(tl.uint32), ((draw >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = low & 0
    first, second, _, _ = tl.philox(seed, low, high, zero, zero)
    bits = (first.to(tl.uint64) << 32) | (second.to(tl.uint64) & 0xFFFFF800)
    return tl.umulhi(bits, total.to(tl.uint64)).to(tl.int64)


@triton.jit
def _walk(row_processed, chunk, target, key, ties, best, scale, min_p, CHUNK: tl.constexpr):
    """Returns the first token of a chunk at which the running mass of its kept tokens exceeds `target` (i64)."""
    values = tl.load(row_processed + chunk * CHUNK + tl.arange(0, CHUNK))
    keys = ordered(values)
    tie = keys == key
    kept = (keys > key) | (tie & (tl.cumsum(tie.to(tl.int32), 0) <= ties))
    mass = tl.where(kept, mass_of(octaves_below(values, best, scale), min_p), 0)
    return chunk * CHUNK + tl.sum((tl.cumsum(mass, 0) <= target).to(tl.int32))


def _draw(
    counts,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    draw,
    processed,
    candidates,
    chunk_largest,
    chunk_best,
    chunk_mass,
    chunk_candidates,
    row_limit,
    sampled,
    sampled_rank,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0)
    if row >= tl.load(counts + 2):
        return
    CHUNK: tl.constexpr = chunk_tokens(VOCAB)
    CHUNKS: tl.constexpr = chunk_count(VOCAB)
    SLOTS: tl.constexpr = chunk_slots(VOCAB)
    WIDTH: tl.constexpr = min(CHUNK, TILE // SLOTS)
    slot = tl.arange(0, SLOTS)
    exists = slot < CHUNKS
    bests = tl.load(chunk_largest + row * (2 * SLOTS) + SLOTS + slot, mask=exists, other=float("-inf"))
    best = tl.max(bests)
    heat = tl.load(temperature + row)
    if (heat > 0) & (best > float("-inf")):
        k, p, scale = tl.load(top_k + row), tl.load(top_p + row), octaves_per_logit(heat)
        row_mass = chunk_mass + row * (3 * SLOTS)
        kept = tl.load(row_mass + slot, mask=exists, other=0)
        key, ties = tl.full((), _LEAST_KEY, tl.int32), tl.full((), 0, tl.int64)
        ties_before = tl.zeros((SLOTS,), tl.int64)
        if filtered(k, p, VOCAB):
            sure = tl.load(row_limit + row)
            if (sure >= 0) | (p < 1):
                found = tl.load(chunk_candidates + row * SLOTS + slot, mask=exists, other=0)
                above = tl.load(row_mass + SLOTS + slot, mask=exists, other=0)
                between = tl.load(row_mass + 2 * SLOTS + slot, mask=exists, other=0)
                row_candidates = candidates + row.to(tl.int64) * (CHUNK * CHUNKS)
                key, ties, ties_before, kept = kept_by_limits(
                    row_candidates, found, kept, above, between, sure, k, p, best, scale, CHUNK, SLOTS, WIDTH
                )
        target = _uniform_times(tl.load(seed + row), tl.load(draw + row), tl.sum(kept))
        chunk = tl.sum((tl.cumsum(kept, 0) <= target).to(tl.int32))
        target -= tl.sum(tl.where(slot < chunk, kept, 0))
        ties -= tl.sum(tl.where(slot == chunk, ties_before, 0))
        share = least_share(tl.load(min_p + row))
        row_processed = processed + row.to(tl.int64) * (CHUNK * CHUNKS)
        token = _walk(row_processed, chunk, target, key, ties, best, scale, share, CHUNK)
    else:
        firsts = tl.load(chunk_best + row * SLOTS + slot, mask=exists, other=VOCAB)
        token = tl.min(tl.where(bests == best, firsts, VOCAB))
    tl.store(sampled + row, token)
    tl.store(sampled_rank + row, 1)  # the next launch adds the tokens with a larger logit


def _grid(_values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    return step.requests, 1, 1


def _space(constants: Mapping[str, Constant], _step: Step, profile: Profile) -> tuple[Config, ...]:
    if chunk_tokens(int(constants["VOCAB"])) == 1024:
        return tuple(Config.of(warps, 1, TILE=1024) for warps in (4, 8))
    cuda = target_named(profile.target).backend == "cuda"
    options = {"maxnreg": 128} if cuda else {}  # or ptxas spills for an occupancy that one block a row cannot use
    return tuple(Config.of(8, 1, options, TILE=tile) for tile in (1024, 2048))


def _work(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Work:
    return Work(bytes=8 * step.requests * chunk_tokens(int(values["VOCAB"])), blocks=step.requests)


_DRAW_ARGS = arguments(*_draw.__code__.co_varnames[: _draw.__code__.co_argcount - 2])

SAMPLE_DRAW = GpuKernelSpec(
    family="sample_draw",
    function=_draw,
    args=_DRAW_ARGS,
    constants=("VOCAB",),
    tunables=("TILE",),
    name=symbol_part,
    space=_space,
    grid=_grid,
    work=_work,
    cases=draw_cases,
    check=check_vocabulary,
    workspace=scratch(_DRAW_ARGS),
)
