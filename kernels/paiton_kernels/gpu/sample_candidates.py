"""Third launch of ``sample``: gathers the tokens among which the limits of top-k and top-p lie.

The histogram says in which bin the top-k limit lies, and bounds the mass above each bin, hence the bins in which the
top-p limit can lie. Tokens in these bins are the candidates; those above are surely kept, those below surely dropped.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from paiton_kernels.gpu.devices import Profile
from paiton_kernels.gpu.sample_args import (
    arguments,
    check_vocabulary,
    chunk_grid,
    chunk_space,
    scratch,
    symbol_part,
)
from paiton_kernels.gpu.sample_arithmetic import (
    BINS,
    BINS_PER_OCTAVE,
    MASS_BITS,
    bin_of,
    chunk_count,
    chunk_slots,
    chunk_tokens,
    filtered,
    least_share,
    mass_of,
    octaves_below,
    octaves_per_logit,
)
from paiton_kernels.gpu.sample_cases import candidates_cases
from paiton_kernels.gpu.spec import Constant, GpuKernelSpec, Step, Work

_BINS = tl.constexpr(BINS)
_OCTAVES_PER_BIN = tl.constexpr(1 / BINS_PER_OCTAVE)
_MASS_UNIT = tl.constexpr(2.0**-MASS_BITS)
_SLACK = tl.constexpr(1e-3)
"""Relative: far above the rounding of f32 sums, far below a bin's 3 %."""

_TAIL_SLACK = tl.constexpr(2.0**-20)
"""Absolute: what cutting 2^18 masses to 42 bits can take from the mass of improbable tokens is 2^-24."""


@triton.jit
def _limits(histogram, k, p, total):
    """Returns the bin of the top-k limit, the bins that the top-p limit lies between, and the sure tokens of top-k.

    A limit that drops nothing is in bin BINS. Sure tokens are above the top-k limit and no candidates; -1: none drop.

    Args:
        histogram: the row's tokens by bin.
        k: top_k.
        p: top_p.
        total: mass of all tokens in units of the best token's, f32.
    """
    index = tl.arange(0, _BINS)
    tokens = tl.load(histogram + index)
    reached = tl.cumsum(tokens, 0)
    limited = (k > 0) & (k < tl.sum(tokens))
    k_bin = tl.where(limited, tl.sum((reached < k).to(tl.int32)), _BINS)
    kept = tl.where(index == k_bin, k - (reached - tokens), tl.where(index < k_bin, tokens, 0)).to(tl.float32)
    octaves = index.to(tl.float32) * _OCTAVES_PER_BIN
    most, least = kept * tl.exp2(-octaves), kept * tl.exp2(-octaves - _OCTAVES_PER_BIN)
    total_most = tl.where(limited, tl.sum(most), total) * (1 + _SLACK)
    total_least = tl.where(limited, tl.sum(least), total) * (1 - _SLACK)
    # A bin lies before the limit if too little mass lies up to it, or too much behind it: the first is the tighter
    # bound for small p, the second for large p.
    rest = (1 - p) * total_most + _TAIL_SLACK
    too_much = (tl.cumsum(least, 0, reverse=True) > rest) & (index > 0)
    first = tl.maximum(tl.sum((tl.cumsum(most, 0) < p * total_least).to(tl.int32)), tl.sum(too_much.to(tl.int32)))
    rest = (1 - p) * total_least - _TAIL_SLACK
    too_much = (tl.cumsum(most, 0, reverse=True) > rest) & (index > 0)
    last = tl.minimum(tl.sum((tl.cumsum(least, 0) < p * total_most).to(tl.int32)), tl.sum(too_much.to(tl.int32)))
    last = tl.minimum(last, k_bin)
    first = tl.where(p < 1, tl.minimum(first, last), k_bin)
    last = tl.where(p < 1, last, k_bin)
    sure = tl.sum(tl.where((index < k_bin) & ((index < first) | (index > last)), tokens, 0))
    return k_bin, first, last, tl.where(limited, sure, -1)


def _candidates(
    counts,
    temperature,
    top_k,
    top_p,
    min_p,
    processed,
    chunk_largest,
    row_histogram,
    chunk_mass,
    candidates,
    chunk_candidates,
    row_limit,
    VOCAB: tl.constexpr,
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    if row >= tl.load(counts + 2):
        return
    heat, k, p = tl.load(temperature + row), tl.load(top_k + row), tl.load(top_p + row)
    if (heat > 0) & filtered(k, p, VOCAB):
        CHUNK: tl.constexpr = chunk_tokens(VOCAB)
        CHUNKS: tl.constexpr = chunk_count(VOCAB)
        SLOTS: tl.constexpr = chunk_slots(VOCAB)
        slot = tl.arange(0, SLOTS)
        row_mass = chunk_mass + row * (3 * SLOTS)
        total = tl.sum(tl.load(row_mass + slot, mask=slot < CHUNKS, other=0)).to(tl.uint64).to(tl.float32)
        k_bin, first, last, sure = _limits(row_histogram + row * _BINS, k, p, total * _MASS_UNIT)
        if chunk == 0:
            tl.store(row_limit + row, sure)

        bests = chunk_largest + row * (2 * SLOTS) + SLOTS
        largest = tl.max(tl.load(bests + slot, mask=slot < CHUNKS, other=float("-inf")))
        place = row.to(tl.int64) * (CHUNK * CHUNKS) + chunk * CHUNK
        values = tl.load(processed + place + tl.arange(0, CHUNK))
        octaves = octaves_below(values, largest, octaves_per_logit(heat))
        mass = mass_of(octaves, least_share(tl.load(min_p + row)))
        bins = tl.where(mass > 0, bin_of(octaves), _BINS + 1)
        tl.store(row_mass + SLOTS + chunk, tl.sum(tl.where(bins < first, mass, 0)))
        tl.store(row_mass + 2 * SLOTS + chunk, tl.sum(tl.where((bins > last) & (bins < k_bin), mass, 0)))
        chosen = ((bins >= first) & (bins <= last)) | (bins == k_bin)
        one = chosen.to(tl.int32)
        behind = tl.cumsum(one, 0)
        tl.store(chunk_candidates + row * SLOTS + chunk, tl.max(behind))
        tl.store(candidates + place + behind - 1, values, mask=one > 0)


def _work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    rows, chunks, _ = chunk_grid(values, step, profile)
    return Work(bytes=4 * rows * int(values["VOCAB"]), blocks=rows * chunks)


_CANDIDATES_ARGS = arguments(*_candidates.__code__.co_varnames[: _candidates.__code__.co_argcount - 1])

SAMPLE_CANDIDATES = GpuKernelSpec(
    family="sample_candidates",
    function=_candidates,
    args=_CANDIDATES_ARGS,
    constants=("VOCAB",),
    tunables=(),
    name=symbol_part,
    space=chunk_space(8),
    grid=chunk_grid,
    work=_work,
    cases=candidates_cases,
    check=check_vocabulary,
    workspace=scratch(_CANDIDATES_ARGS),
)
