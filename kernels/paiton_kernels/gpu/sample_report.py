"""Last launch of ``sample``: what is told of the sampled token, and what of the request moves on with it."""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from paiton_kernels.gpu.devices import Profile
from paiton_kernels.gpu.sample_advance import advance
from paiton_kernels.gpu.sample_args import arguments, check_vocabulary, chunk_space, scratch, symbol_part
from paiton_kernels.gpu.sample_arithmetic import (
    TOP_SLOTS,
    chunk_count,
    chunk_slots,
    chunk_tokens,
    load_logits,
    value_of,
    without_nan,
)
from paiton_kernels.gpu.sample_cases import report_cases
from paiton_kernels.gpu.spec import Constant, GpuKernelSpec, Grid, Step, Work
from paiton_kernels.spec import MAX_TOP_LOGPROBS

_TOP_SLOTS = tl.constexpr(TOP_SLOTS)
_MAX_TOP = tl.constexpr(MAX_TOP_LOGPROBS)
_NO_KEY = tl.constexpr(-(1 << 63))


@triton.jit
def _log_probability(value, largest, log_sum):
    return tl.where(value == largest, 0.0, value - largest) - log_sum  # no NaN from inf - inf


def _report(
    counts,
    logits,
    logits_stride,
    slot_of,
    top_logprobs,
    stop_tokens,
    max_position,
    positions,
    logit_rows,
    chunk_largest,
    chunk_sum,
    best_keys,
    sampled,
    sampled_logprob,
    sampled_rank,
    top_tokens,
    top_values,
    last_token,
    token_counts,
    finished,
    VOCAB: tl.constexpr,
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    if row >= tl.load(counts + 2):
        return
    CHUNK: tl.constexpr = chunk_tokens(VOCAB)
    CHUNKS: tl.constexpr = chunk_count(VOCAB)
    SLOTS: tl.constexpr = chunk_slots(VOCAB)
    row_logits = logits + row * logits_stride
    drawn = tl.load(sampled + row)
    logit = without_nan(tl.load(row_logits + drawn))
    if chunk < CHUNKS:
        token = chunk * CHUNK + tl.arange(0, CHUNK)
        values = load_logits(row_logits, token, VOCAB)
        larger = tl.sum((values > logit).to(tl.int32))
        if larger > 0:
            tl.atomic_add(sampled_rank + row, larger, sem="relaxed")
    else:
        slot = tl.arange(0, SLOTS)
        largest = tl.load(chunk_largest + row * (2 * SLOTS) + slot, mask=slot < CHUNKS, other=float("-inf"))
        best = tl.max(largest)
        sums = tl.load(chunk_sum + row * SLOTS + slot, mask=slot < CHUNKS, other=0.0)
        log_sum = tl.log(tl.sum(sums * tl.exp(tl.where(largest == best, 0.0, largest - best))))
        tl.store(sampled_logprob + row, _log_probability(logit, best, log_sum))
        wanted = tl.minimum(tl.load(top_logprobs + row), min(_MAX_TOP, VOCAB))
        if wanted > 0:
            place = tl.arange(0, SLOTS * _TOP_SLOTS)
            keys = best_keys + row * (SLOTS * _TOP_SLOTS)
            remaining = tl.load(keys + place, mask=place < CHUNKS * _TOP_SLOTS, other=_NO_KEY)
            for rank in range(wanted):
                key = tl.max(remaining)
                remaining = tl.where(remaining == key, _NO_KEY, remaining)
                tl.store(top_tokens + row * _MAX_TOP + rank, 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32))
                value = value_of((key >> 32).to(tl.int32))
                tl.store(top_values + row * _MAX_TOP + rank, _log_probability(value, best, log_sum))
        ends = stop_tokens, max_position, positions, logit_rows
        advance(row, drawn, slot_of, *ends, last_token, token_counts, finished, VOCAB)


def _grid(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    return step.requests, chunk_count(int(values["VOCAB"])) + 1, 1


def _work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    rows, blocks, _ = _grid(values, step, profile)
    return Work(bytes=4 * rows * int(values["VOCAB"]), blocks=rows * blocks)


_REPORT_ARGS = arguments(*_report.__code__.co_varnames[: _report.__code__.co_argcount - 1])

SAMPLE_REPORT = GpuKernelSpec(
    family="sample_report",
    function=_report,
    args=_REPORT_ARGS,
    constants=("VOCAB",),
    tunables=(),
    name=symbol_part,
    space=chunk_space(8, 16),
    grid=_grid,
    work=_work,
    cases=report_cases,
    check=check_vocabulary,
    workspace=scratch(_REPORT_ARGS),
)
