"""What of a request moves on with its next token, whichever launch has chosen it."""

from __future__ import annotations

import triton
import triton.language as tl

from paiton_kernels.spec import MAX_STOP_TOKENS

_STOP_TOKENS = tl.constexpr(MAX_STOP_TOKENS)


@triton.jit
def advance(
    row,
    token,
    slot_of,
    stop_tokens,
    max_position,
    positions,
    logit_rows,
    last_token,
    token_counts,
    finished,
    VOCAB: tl.constexpr,
):
    """Makes the sampled token the request's last one, counts it, and decides whether the request ends with it."""
    slot = tl.load(slot_of + row)
    tl.store(last_token + slot, token)
    count = token_counts + slot.to(tl.int64) * VOCAB + token
    tl.store(count, tl.load(count) + 1)
    stops = tl.load(stop_tokens + row * _STOP_TOKENS + tl.arange(0, _STOP_TOKENS))
    stopped = tl.sum((stops == token).to(tl.int32)) > 0
    position = tl.load(positions + tl.load(logit_rows + row))
    ended = stopped | (position + 1 >= tl.load(max_position + row))
    tl.store(finished + slot, ended.to(tl.int32))
