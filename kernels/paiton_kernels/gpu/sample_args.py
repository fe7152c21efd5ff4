"""Arguments and scratch of the launches of ``sample``, by name: what one launch leaves for a later one has one name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from paiton_kernels.gpu.devices import Profile, Target
from paiton_kernels.gpu.sample_arithmetic import (
    BINS,
    GROUPS,
    MAX_VOCAB,
    TOP_SLOTS,
    chunk_count,
    chunk_slots,
    chunk_tokens,
)
from paiton_kernels.gpu.spec import Config, Constant, GpuArg, Grid, Step

_ARGS = (
    GpuArg("counts", "*i32", "i32[4]: tokens, requests, logits rows (R) of this step, 0"),
    GpuArg("logits", "*fp32", "f32[R][logits_stride]; NaN counts as -inf"),
    GpuArg("logits_stride", "i64", "elements from one row of logits to the next", divisor=16),
    GpuArg("slot_of", "*i32", "i32[R]: the slot of the row's request"),
    GpuArg("temperature", "*fp32", "f32[R]: 0 takes the most probable token"),
    GpuArg("top_k", "*i32", "i32[R]: 0 is off"),
    GpuArg("top_p", "*fp32", "f32[R]: 1 is off"),
    GpuArg("min_p", "*fp32", "f32[R]: 0 is off"),
    GpuArg("seed", "*i64", "i64[R]: bits of the request's u64 key"),
    GpuArg("draw", "*i64", "i64[R]: bits of the u64 number of the draw in its request"),
    GpuArg("repetition_penalty", "*fp32", "f32[R]: above 0; 1 is off"),
    GpuArg("presence_penalty", "*fp32", "f32[R]: 0 is off"),
    GpuArg("frequency_penalty", "*fp32", "f32[R]: 0 is off"),
    GpuArg(
        "token_counts", "*i32", "i32[slots][VOCAB]: bits 0-30 how often it was generated, bit 31 if the prompt has it"
    ),
    GpuArg("mask_row", "*i32", "i32[R]: row of mask, or -1 for an unconstrained row"),
    GpuArg("mask", "*i32", "i32[rows][ceil(VOCAB / 32)]: bit b of word w allows token 32 w + b"),
    GpuArg("bias_count", "*i32", "i32[R]: how many of the row's biases apply; 0 for none"),
    GpuArg("bias_tokens", "*i32", "i32[R][300]: the tokens, each once"),
    GpuArg("bias_values", "*fp32", "f32[R][300]: what is added to their logits; -inf bans a token"),
    GpuArg("top_logprobs", "*i32", "i32[R]: how many of the best tokens to report, at most 20; -1 or 0 for none"),
    GpuArg("stop_tokens", "*i32", "i32[R][8]: tokens that end the request, then -1"),
    GpuArg("max_position", "*i32", "i32[R]: the request ends when its next position reaches this"),
    GpuArg("positions", "*i32", "i32[T]: of the tokens of this step"),
    GpuArg("logit_rows", "*i32", "i32[R]: the token that the row of logits is of"),
    GpuArg("sampled", "*i32", "i32[R]"),
    GpuArg("sampled_logprob", "*fp32", "f32[R]: of the logits as they came"),
    GpuArg("sampled_rank", "*i32", "i32[R]: 1 + the tokens with a larger logit, as they came"),
    GpuArg(
        "top_tokens", "*i32", "i32[R][20]: the best tokens, ties by lower id; only as many as asked for are written"
    ),
    GpuArg("top_values", "*fp32", "f32[R][20]: their log-probabilities"),
    GpuArg("last_token", "*i32", "i32[slots]: what each slot sampled last"),
    GpuArg("finished", "*i32", "i32[slots]: 1 if the request ended with this token, else 0"),
    GpuArg("processed", "*fp32", "f32[R][padded vocabulary]: logits after biases, mask, penalties; then -inf"),
    GpuArg("candidates", "*fp32", "f32[R][padded vocabulary]: by chunk, processed logits that a limit may lie among"),
    GpuArg("chunk_largest", "*fp32", "f32[R][2][chunks]: largest logit, largest processed logit"),
    GpuArg("chunk_sum", "*fp32", "f32[R][chunks]: sum of exp(logit - largest logit)"),
    GpuArg("chunk_best", "*i32", "i32[R][chunks]: the first token with the largest processed logit"),
    GpuArg("group_largest", "*fp32", "f32[R][chunks][8]: largest logit of each eighth of a chunk"),
    GpuArg("best_keys", "*i64", "i64[R][chunks][32]: ordered logit and inverted id of a chunk's best tokens"),
    GpuArg("row_histogram", "*i32", "i32[R][1024]: tokens by how probable they are"),
    GpuArg("row_limit", "*i32", "i32[R]: tokens surely kept by top-k that are no candidates, or -1: it drops none"),
    GpuArg("chunk_mass", "*i64", "i64[R][3][chunks]: of all tokens, of those above and of those between candidates"),
    GpuArg("chunk_candidates", "*i32", "i32[R][chunks]: how many there are"),
)
_BY_NAME = {arg.name: arg for arg in _ARGS}

_ROW_BYTES: dict[str, Callable[[int], int]] = {
    "processed": lambda vocab: 4 * chunk_count(vocab) * chunk_tokens(vocab),
    "candidates": lambda vocab: 4 * chunk_count(vocab) * chunk_tokens(vocab),
    "chunk_largest": lambda vocab: 2 * 4 * chunk_slots(vocab),
    "chunk_sum": lambda vocab: 4 * chunk_slots(vocab),
    "chunk_best": lambda vocab: 4 * chunk_slots(vocab),
    "group_largest": lambda vocab: 4 * GROUPS * chunk_slots(vocab),
    "best_keys": lambda vocab: 8 * TOP_SLOTS * chunk_slots(vocab),
    "row_histogram": lambda _vocab: 4 * BINS,
    "row_limit": lambda _vocab: 4,
    "chunk_mass": lambda vocab: 3 * 8 * chunk_slots(vocab),
    "chunk_candidates": lambda vocab: 4 * chunk_slots(vocab),
}

Bytes = Callable[[Mapping[str, Constant], Step, Profile], int]


def _bytes_of(row_bytes: Callable[[int], int]) -> Bytes:
    return lambda values, step, _profile: step.requests * row_bytes(int(values["VOCAB"]))


SAMPLE_SCRATCH: dict[str, Bytes] = {name: _bytes_of(row_bytes) for name, row_bytes in _ROW_BYTES.items()}
"""Scratch that lives from the first to the last launch of the chain: bytes by argument, (constants, step, profile)."""


def arguments(*names: str) -> tuple[GpuArg, ...]:
    """Returns the arguments of these names, in this order."""
    return tuple(_BY_NAME[name] for name in names)


def scratch(
    args: tuple[GpuArg, ...],
) -> Callable[[Mapping[str, Constant], Step, Profile], dict[str, int]]:
    """Returns the `workspace` function of a spec with these arguments."""
    names = [arg.name for arg in args if arg.name in SAMPLE_SCRATCH]
    return lambda values, step, profile: {name: SAMPLE_SCRATCH[name](values, step, profile) for name in names}


def chunk_grid(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    """A block for each chunk of each row."""
    return step.requests, chunk_count(int(values["VOCAB"])), 1


def chunk_space(*warps: int) -> Callable[[Mapping[str, Constant], Step, Profile], tuple[Config, ...]]:
    """Returns the `space` of a launch with a block for each chunk: chunks have a fixed size, so warps are all it has.

    Args:
        warps: to choose from for real vocabularies; those of tests have small chunks.
    """

    def space(constants: Mapping[str, Constant], _step: Step, _profile: Profile) -> tuple[Config, ...]:
        return tuple(Config.of(count, 1) for count in (warps if chunk_tokens(int(constants["VOCAB"])) > 1024 else (4,)))

    return space


def check_vocabulary(values: Mapping[str, Constant], _target: Target) -> str:
    """Returns why a vocabulary is too large, or nothing."""
    vocab = int(values["VOCAB"])
    return "" if vocab <= MAX_VOCAB else f"vocabulary of {vocab} tokens, above {MAX_VOCAB}"


def symbol_part(values: Mapping[str, Constant]) -> str:
    """Returns the readable part of a symbol."""
    return f"v{values['VOCAB']}"
