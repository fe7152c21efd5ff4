"""Second launch of ``sample``: masses of each chunk, the row's histogram, and what of a chunk may be among the best."""

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
    GROUPS,
    TOP_SLOTS,
    bin_of,
    chunk_count,
    chunk_slots,
    chunk_tokens,
    filtered,
    least_share,
    load_logits,
    mass_of,
    octaves_below,
    octaves_per_logit,
    ordered,
)
from paiton_kernels.gpu.sample_cases import histogram_cases
from paiton_kernels.gpu.spec import Constant, GpuKernelSpec, Step, Work
from paiton_kernels.spec import MAX_TOP_LOGPROBS

_BINS = tl.constexpr(BINS)
_GROUPS = tl.constexpr(GROUPS)
_TOP_SLOTS = tl.constexpr(TOP_SLOTS)
_MAX_TOP = tl.constexpr(MAX_TOP_LOGPROBS)
_NO_KEY = tl.constexpr(-(1 << 63))


@triton.jit
def _best_of_chunk(
    row_logits, groups, keys, chunk, wanted, VOCAB: tl.constexpr, CHUNK: tl.constexpr, SLOTS: tl.constexpr
):
    """Stores the keys, best first, of the chunk's tokens that may be among the `wanted` best of the row.

    At least `wanted` logits reach the `wanted`-th largest of the groups' largest, so nothing below it is among the
    best: few chunks go through more than two or three rounds.
    """
    group = tl.arange(0, SLOTS * _GROUPS)
    largest = tl.load(groups + group, mask=group < chunk_count(VOCAB) * _GROUPS, other=float("-inf"))
    not_less = tl.zeros((SLOTS * _GROUPS,), tl.int32)
    for start in range(0, chunk_count(VOCAB) * _GROUPS, _GROUPS):
        others = tl.load(groups + start + tl.arange(0, _GROUPS))
        not_less += tl.sum((others[None, :] >= largest[:, None]).to(tl.int32), axis=1)
    limit = tl.max(tl.where(not_less >= wanted, largest, float("-inf")))

    token = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = token < VOCAB
    values = load_logits(row_logits, token, VOCAB)
    remaining = (ordered(values).to(tl.int64) << 32) | (0x7FFFFFFF - token).to(tl.int64)
    remaining = tl.where(inside & (values >= limit), remaining, _NO_KEY)
    found = tl.full((_TOP_SLOTS,), _NO_KEY, tl.int64)
    best = tl.max(remaining)
    place = 0
    while (place < wanted) & (best != _NO_KEY):
        found = tl.where(tl.arange(0, _TOP_SLOTS) == place, best, found)
        remaining = tl.where(remaining == best, _NO_KEY, remaining)
        best = tl.max(remaining)
        place += 1
    tl.store(keys + tl.arange(0, _TOP_SLOTS), found)


def _histogram(
    counts,
    logits,
    logits_stride,
    temperature,
    top_k,
    top_p,
    min_p,
    top_logprobs,
    processed,
    chunk_largest,
    group_largest,
    best_keys,
    row_histogram,
    chunk_mass,
    VOCAB: tl.constexpr,
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    if row >= tl.load(counts + 2):
        return
    CHUNK: tl.constexpr = chunk_tokens(VOCAB)
    CHUNKS: tl.constexpr = chunk_count(VOCAB)
    SLOTS: tl.constexpr = chunk_slots(VOCAB)
    wanted = tl.minimum(tl.load(top_logprobs + row), _MAX_TOP)
    if wanted > 0:
        groups = group_largest + row * (SLOTS * _GROUPS)
        keys = best_keys + (row * SLOTS + chunk) * _TOP_SLOTS
        _best_of_chunk(logits + row * logits_stride, groups, keys, chunk, wanted, VOCAB, CHUNK, SLOTS)

    heat = tl.load(temperature + row)
    if heat > 0:
        slot = tl.arange(0, SLOTS)
        bests = tl.load(chunk_largest + row * (2 * SLOTS) + SLOTS + slot, mask=slot < CHUNKS, other=float("-inf"))
        place = tl.arange(0, CHUNK)
        values = tl.load(processed + row.to(tl.int64) * (CHUNK * CHUNKS) + chunk * CHUNK + place)
        octaves = octaves_below(values, tl.max(bests), octaves_per_logit(heat))
        mass = mass_of(octaves, least_share(tl.load(min_p + row)))
        tl.store(chunk_mass + row * (3 * SLOTS) + chunk, tl.sum(mass))
        if filtered(tl.load(top_k + row), tl.load(top_p + row), VOCAB):
            tokens = tl.histogram(bin_of(octaves), _BINS, mask=mass > 0)
            index = row * _BINS + tl.arange(0, _BINS)
            tl.atomic_add(row_histogram + index, tokens, mask=tokens > 0, sem="relaxed")


def _work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    rows, chunks, _ = chunk_grid(values, step, profile)
    return Work(bytes=4 * rows * int(values["VOCAB"]), blocks=rows * chunks)


_HISTOGRAM_ARGS = arguments(*_histogram.__code__.co_varnames[: _histogram.__code__.co_argcount - 1])

SAMPLE_HISTOGRAM = GpuKernelSpec(
    family="sample_histogram",
    function=_histogram,
    args=_HISTOGRAM_ARGS,
    constants=("VOCAB",),
    tunables=(),
    name=symbol_part,
    space=chunk_space(8),
    grid=chunk_grid,
    work=_work,
    cases=histogram_cases,
    check=check_vocabulary,
    workspace=scratch(_HISTOGRAM_ARGS),
)
