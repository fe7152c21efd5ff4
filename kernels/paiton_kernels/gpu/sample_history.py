"""``history``: the token counts of a request that takes a slot, from its prompt and what it has generated so far.

Every block owns a range of the vocabulary, goes through all tokens and writes the counts of its range once: nothing
has to be zeroed before, and no block waits for another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import triton
import triton.language as tl

from paiton_kernels.gpu.devices import Profile, Target
from paiton_kernels.gpu.sample_args import symbol_part
from paiton_kernels.gpu.spec import Case, Config, Constant, GpuArg, GpuKernelSpec, Grid, Step, Work

_IN_PROMPT = tl.constexpr(-(1 << 31))


@triton.jit
def _counts(tokens, begin, end, first, RANGE: tl.constexpr, TILE: tl.constexpr):
    """Returns how often tokens[begin:end] have each of the values `first` to `first` + RANGE."""
    counts = tl.zeros((RANGE,), tl.int32)
    for start in range(begin, end, TILE):
        place = start + tl.arange(0, TILE)
        offset = tl.load(tokens + place, mask=place < end, other=-1) - first
        counts += tl.histogram(offset, RANGE, mask=(offset >= 0) & (offset < RANGE))
    return counts


def _history(
    history_slot,
    history_length,
    history_prompt_length,
    history_tokens,
    token_counts,
    VOCAB: tl.constexpr,
    RANGE: tl.constexpr,
    TILE: tl.constexpr,
):
    first = tl.program_id(0) * RANGE
    length, prompt = tl.load(history_length), tl.load(history_prompt_length)
    prompted = _counts(history_tokens, 0, tl.minimum(prompt, length), first, RANGE, TILE)
    generated = _counts(history_tokens, prompt, length, first, RANGE, TILE)
    token = first + tl.arange(0, RANGE)
    row = token_counts + tl.load(history_slot).to(tl.int64) * VOCAB
    tl.store(row + token, generated | tl.where(prompted > 0, _IN_PROMPT, 0), mask=token < VOCAB)


def _grid(values: Mapping[str, Constant], _step: Step, _profile: Profile) -> Grid:
    return triton.cdiv(int(values["VOCAB"]), int(values["RANGE"])), 1, 1


def _space(constants: Mapping[str, Constant], _step: Step, _profile: Profile) -> tuple[Config, ...]:
    ranges = (2048, 1024) if int(constants["VOCAB"]) > 16384 else (1024, 512)
    return tuple(Config.of(4, 1, RANGE=tokens, TILE=1024) for tokens in ranges)


def _work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    blocks, _, _ = _grid(values, step, profile)
    return Work(bytes=4 * int(values["VOCAB"]) + 4 * blocks * step.context, blocks=blocks)


def _cases(_target: Target) -> Iterator[Case]:
    random = np.random.default_rng(11)
    for vocab, length, prompt in ((1000, 1500, 1100), (5003, 700, 0), (1024, 3, 3), (1000, 0, 0)):
        slots, slot = 3, 1
        tokens = np.minimum(random.geometric(0.01, 1600), vocab - 1).astype(np.int32)  # some often, most never
        tokens[length:] = 5  # of a request before: must not be counted
        tokens[:2] = [0, vocab - 1]
        counts = random.integers(-5, 5, (slots, vocab)).astype(np.int32)
        expected = counts.copy()
        expected[slot] = np.bincount(tokens[prompt:length], minlength=vocab)
        expected[slot, tokens[:prompt]] |= -(1 << 31)
        arrays: dict[str, Any] = {
            "history_slot": np.array([slot], np.int32),
            "history_length": np.array([length], np.int32),
            "history_prompt_length": np.array([prompt], np.int32),
            "history_tokens": tokens,
            "token_counts": counts,
        }
        outputs = {"token_counts": expected}
        name = f"v{vocab}_{length}"
        yield Case(name, {"VOCAB": vocab}, Step(1, 1), arrays, {}, outputs, {"token_counts": "exact"})


HISTORY = GpuKernelSpec(
    family="history",
    function=_history,
    args=(
        GpuArg("history_slot", "*i32", "i32[1]: the slot"),
        GpuArg("history_length", "*i32", "i32[1]: tokens of the prompt and generated so far"),
        GpuArg("history_prompt_length", "*i32", "i32[1]: tokens of the prompt, at most all"),
        GpuArg("history_tokens", "*i32", "i32[most]: prompt, then generated tokens"),
        GpuArg("token_counts", "*i32", "i32[slots][VOCAB]: the slot's row is replaced; see the sample families"),
    ),
    constants=("VOCAB",),
    tunables=("RANGE", "TILE"),
    name=symbol_part,
    space=_space,
    grid=_grid,
    work=_work,
    cases=_cases,
)
