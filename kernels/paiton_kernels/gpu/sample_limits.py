"""The exact limits of top-k and top-p of one row, by bisection among its candidates.

A limit is a key (ordered logit) and a number of ties: all tokens with larger keys are kept, and of those with the same
key as many as the number says, lowest ids first. Candidates are held by chunk, in any order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from paiton_kernels.gpu.sample_arithmetic import mass_of, octaves_below, ordered, value_of

_LEAST_KEY = tl.constexpr(-(1 << 31))
_LARGEST_KEY = tl.constexpr((1 << 31) - 1)


@triton.jit
def _load_tile(candidates, found, start, CHUNK: tl.constexpr, SLOTS: tl.constexpr, WIDTH: tl.constexpr):
    """Returns candidates `start` to `start` + WIDTH of every chunk, [SLOTS][WIDTH]; -inf where there are fewer."""
    place = start + tl.arange(0, WIDTH)
    index = tl.arange(0, SLOTS)[:, None] * CHUNK + place[None, :]
    # Whole vectors are loaded; what lies behind the last candidate of a chunk is dropped.
    values = tl.load(candidates + index, mask=place[None, :] // 4 * 4 < found[:, None], other=float("-inf"))
    return tl.where(place[None, :] < found[:, None], values, float("-inf"))


@triton.jit
def _key_range(candidates, found, CHUNK: tl.constexpr, SLOTS: tl.constexpr, WIDTH: tl.constexpr):
    """Returns the smallest and the largest key of the candidates."""
    smallest = tl.full((SLOTS, WIDTH), _LARGEST_KEY, tl.int32)
    largest = tl.full((SLOTS, WIDTH), _LEAST_KEY, tl.int32)
    for start in range(0, tl.max(found), WIDTH):
        values = _load_tile(candidates, found, start, CHUNK, SLOTS, WIDTH)
        keys = ordered(values)
        smallest = tl.minimum(smallest, tl.where(values > float("-inf"), keys, _LARGEST_KEY))
        largest = tl.maximum(largest, keys)
    return tl.min(tl.min(smallest, axis=1)), tl.max(tl.max(largest, axis=1))


@triton.jit
def _number_from(candidates, found, key, CHUNK: tl.constexpr, SLOTS: tl.constexpr, WIDTH: tl.constexpr):
    """Returns how many candidates have at least this key, spread over i32[SLOTS][WIDTH]."""
    number = tl.zeros((SLOTS, WIDTH), tl.int32)
    for start in range(0, tl.max(found), WIDTH):
        values = _load_tile(candidates, found, start, CHUNK, SLOTS, WIDTH)
        number += (ordered(values) >= key).to(tl.int32)
    return number


@triton.jit
def _mass_from(candidates, found, key, best, scale, CHUNK: tl.constexpr, SLOTS: tl.constexpr, WIDTH: tl.constexpr):
    """Returns the mass of the candidates that have at least this key, spread over i64[SLOTS][WIDTH]."""
    mass = tl.zeros((SLOTS, WIDTH), tl.int64)
    for start in range(0, tl.max(found), WIDTH):
        values = _load_tile(candidates, found, start, CHUNK, SLOTS, WIDTH)
        mass += tl.where(ordered(values) >= key, mass_of(octaves_below(values, best, scale), 0.0), 0)
    return mass


@triton.jit
def _middle(low, high):
    """Returns a key of (low, high]."""
    return (low + (high.to(tl.int64) - low + 1) // 2).to(tl.int32)


@triton.jit
def _mass_at(key, best, scale):
    """Returns the mass of a token with this key (i64)."""
    return mass_of(octaves_below(value_of(key), best, scale), 0.0)


@triton.jit
def kept_by_limits(
    candidates,
    found,
    mass,
    above,
    between,
    sure,
    k,
    p,
    best,
    scale,
    CHUNK: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Returns the limit's key and ties (i32, i64), the ties before each chunk and its kept mass (i64[SLOTS]).

    Args:
        candidates: the row's candidates, [SLOTS][CHUNK].
        found: i32[SLOTS]: how many each chunk has.
        mass: i64[SLOTS]: of all tokens.
        above: i64[SLOTS]: of the tokens above all candidates.
        between: i64[SLOTS]: of tokens above the top-k limit but below the candidates of the top-p limit.
        sure: tokens surely kept by top-k that are no candidates; -1: top-k drops nothing.
        k: top_k.
        p: top_p.
        best: the row's largest processed logit.
        scale: octaves per unit of logit.
        CHUNK: tokens of a chunk.
        SLOTS: chunks, as a power of two.
        WIDTH: candidates of each chunk that are looked at together.
    """
    low, high = _key_range(candidates, found, CHUNK, SLOTS, WIDTH)
    key = low
    ties = tl.full((), 1 << 62, tl.int64)
    total = tl.sum(mass)
    if sure >= 0:
        needed = k - sure
        top = high
        while low < top:
            middle = _middle(low, top)
            enough = tl.sum(_number_from(candidates, found, middle, CHUNK, SLOTS, WIDTH)) >= needed
            low = tl.where(enough, middle, low)
            top = tl.where(enough, top, middle - 1)
        key = low
        ties = (needed - tl.sum(_number_from(candidates, found, key + 1, CHUNK, SLOTS, WIDTH))).to(tl.int64)
        total = tl.sum(above + between) + ties * _mass_at(key, best, scale)
        total += tl.sum(_mass_from(candidates, found, key + 1, best, scale, CHUNK, SLOTS, WIDTH))
    if p < 1:
        share = (tl.maximum(p, 0.0) * 4294967296.0).to(tl.uint64) << 32  # exact from 2^-8 on, always within 2^-32
        missing = tl.umulhi(share, total.to(tl.uint64)).to(tl.int64) - tl.sum(above)
        while low < high:
            middle = _middle(low, high)
            enough = tl.sum(_mass_from(candidates, found, middle, best, scale, CHUNK, SLOTS, WIDTH)) >= missing
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle - 1)
        missing -= tl.sum(_mass_from(candidates, found, low + 1, best, scale, CHUNK, SLOTS, WIDTH))
        one = _mass_at(low, best, scale)
        ties = tl.maximum((missing + one - 1) // one, 1)
        key = low
    here = _number_from(candidates, found, key, CHUNK, SLOTS, WIDTH)
    here -= _number_from(candidates, found, key + 1, CHUNK, SLOTS, WIDTH)
    here = tl.sum(here, axis=1).to(tl.int64)
    before = tl.cumsum(here, 0) - here
    kept = above + tl.sum(_mass_from(candidates, found, key + 1, best, scale, CHUNK, SLOTS, WIDTH), axis=1)
    kept += tl.minimum(tl.maximum(ties - before, 0), here) * _mass_at(key, best, scale)
    return key, ties, before, kept
