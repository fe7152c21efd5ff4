"""First launch of ``sample``: biases, mask and penalties, and what each chunk of the vocabulary knows by itself."""

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
    chunk_count,
    chunk_slots,
    chunk_tokens,
    load_logits,
    without_nan,
)
from paiton_kernels.gpu.sample_cases import process_cases
from paiton_kernels.gpu.spec import Constant, GpuKernelSpec, Step, Work
from paiton_kernels.spec import MAX_BIASES

_BINS = tl.constexpr(BINS)
_GROUPS = tl.constexpr(GROUPS)
_MAX_BIASES = tl.constexpr(MAX_BIASES)
_BIASES_AT_ONCE = tl.constexpr(4)
"""Few requests have more, and their loads wait for memory together."""


@triton.jit
def _biased(values, token, count, tokens, biases):
    """Returns the logits of tokens after the row's `count` biases: each block goes through all of them."""
    count = tl.minimum(count, _MAX_BIASES)
    for start in range(0, count, _BIASES_AT_ONCE):
        for offset in tl.static_range(_BIASES_AT_ONCE):
            place = start + offset
            biased = tl.load(tokens + place, mask=place < count, other=-1)
            bias = tl.load(biases + place, mask=place < count, other=0.0)
            values = tl.where(token == biased, values + bias, values)
    return without_nan(values)  # inf - inf


@triton.jit
def _penalised(logits, history, repetition_penalty, presence_penalty, frequency_penalty):
    """Returns the logits after penalties; `history` as in token_counts."""
    generated = history & 0x7FFFFFFF
    inverse = tl.div_rn(tl.full((), 1.0, tl.float32), repetition_penalty)
    changed = tl.where(history != 0, logits * tl.where(logits > 0, inverse, repetition_penalty), logits)
    changed -= frequency_penalty * generated.to(tl.float32)
    return tl.where(generated > 0, changed - presence_penalty, changed)


def _process(
    counts,
    logits,
    logits_stride,
    slot_of,
    temperature,
    repetition_penalty,
    presence_penalty,
    frequency_penalty,
    token_counts,
    mask_row,
    mask,
    bias_count,
    bias_tokens,
    bias_values,
    processed,
    chunk_largest,
    chunk_sum,
    chunk_best,
    group_largest,
    row_histogram,
    VOCAB: tl.constexpr,
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    if row >= tl.load(counts + 2):
        return
    CHUNK: tl.constexpr = chunk_tokens(VOCAB)
    SLOTS: tl.constexpr = chunk_slots(VOCAB)
    PADDED: tl.constexpr = CHUNK * chunk_count(VOCAB)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = token < VOCAB
    values = load_logits(logits + row * logits_stride, token, VOCAB)

    largest = tl.max(values)
    shares = tl.exp(tl.where(values == largest, 0.0, values - largest))  # no NaN from inf - inf
    tl.store(chunk_largest + row * (2 * SLOTS) + chunk, largest)
    tl.store(chunk_sum + row * SLOTS + chunk, tl.sum(tl.where(inside, shares, 0.0)))
    groups = tl.max(tl.reshape(values, (_GROUPS, CHUNK // _GROUPS)), axis=1)
    tl.store(group_largest + (row * SLOTS + chunk) * _GROUPS + tl.arange(0, _GROUPS), groups)

    biases = tl.load(bias_count + row)
    if biases > 0:
        values = _biased(values, token, biases, bias_tokens + row * _MAX_BIASES, bias_values + row * _MAX_BIASES)
    repetition, presence = tl.load(repetition_penalty + row), tl.load(presence_penalty + row)
    frequency = tl.load(frequency_penalty + row)
    if (repetition != 1.0) | (presence != 0.0) | (frequency != 0.0):  # else the history need not be read
        history = token_counts + tl.load(slot_of + row).to(tl.int64) * VOCAB
        seen = tl.load(history + token, mask=inside, other=0)
        values = _penalised(values, seen, repetition, presence, frequency)
    constraint = tl.load(mask_row + row)
    if constraint >= 0:
        words = mask + constraint.to(tl.int64) * ((VOCAB + 31) // 32)
        allowed = (tl.load(words + token // 32, mask=inside, other=0) >> (token % 32)) & 1
        values = tl.where(allowed != 0, values, float("-inf"))

    best = tl.max(values)
    tl.store(chunk_largest + row * (2 * SLOTS) + SLOTS + chunk, best)
    tl.store(chunk_best + row * SLOTS + chunk, tl.min(tl.where(values == best, token, VOCAB)))
    if tl.load(temperature + row) > 0:
        tl.store(processed + row.to(tl.int64) * PADDED + token, values)
        if chunk == 0:
            tl.store(row_histogram + row * _BINS + tl.arange(0, _BINS), tl.zeros((_BINS,), tl.int32))


def _work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    rows, chunks, _ = chunk_grid(values, step, profile)
    return Work(bytes=12 * rows * int(values["VOCAB"]), blocks=rows * chunks)


_PROCESS_ARGS = arguments(*_process.__code__.co_varnames[: _process.__code__.co_argcount - 1])

SAMPLE_PROCESS = GpuKernelSpec(
    family="sample_process",
    function=_process,
    args=_PROCESS_ARGS,
    constants=("VOCAB",),
    tunables=(),
    name=symbol_part,
    space=chunk_space(8, 16),
    grid=chunk_grid,
    work=_work,
    cases=process_cases,
    check=check_vocabulary,
    workspace=scratch(_PROCESS_ARGS),
)
