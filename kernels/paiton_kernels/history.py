"""``history``: the token counts of a request that takes a slot, from its prompt and what it has generated so far."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.sample import TOKEN_COUNTS
from paiton_kernels.spec import Arg, KernelSpec, Macro, Value

IN_PROMPT = -(1 << 31)
"""The bit of a token count that says that the prompt has the token, as an i32."""


def _name(macros: Mapping[str, Value]) -> str:
    return f"v{macros['VOCAB']}"


HISTORY = KernelSpec(
    family="history",
    args=(
        Arg("history_slot", "i32*", "i32[1]: the slot"),
        Arg("history_length", "i32*", "i32[1]: tokens of the prompt and generated so far"),
        Arg("history_prompt_length", "i32*", "i32[1]: tokens of the prompt; what exceeds the length does not count"),
        Arg("history_tokens", "i32*", "i32[most]: prompt, then generated tokens"),
        TOKEN_COUNTS,
    ),
    macros=(Macro("VOCAB", "tokens of the vocabulary"),),
    name=_name,
)
"""Replaces the slot's row of token_counts; the others stay as they are."""


def history(tokens: NDArray[np.int32], prompt_length: int, vocab: int) -> NDArray[np.int32]:
    """Returns i32[vocab]: the row of token_counts after `tokens`, of which the first `prompt_length` are the prompt."""
    counts = np.bincount(tokens[prompt_length:], minlength=vocab).astype(np.int32)
    counts[tokens[:prompt_length]] |= IN_PROMPT
    return counts
