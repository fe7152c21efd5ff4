"""What the launches of ``sample`` share: how a row is cut into chunks, ordered keys, probabilities in fixed point.

Probabilities are integers, so sums do not depend on the order in which blocks and threads add them, and equal inputs
give equal tokens on every device. The *mass* of a token is its probability divided by the most probable token's, cut
to 42 bits after the point; a token below 2^-42 of the best (29 nats) has none and is never drawn. 2^18 masses fit in
63 bits. Selection needs the mass above a limit, so tokens are counted in bins of 1/24 octave of mass: a bin's counts
bound its mass within 3 %, and only tokens that lie within those bounds of a limit are looked at one by one.
"""

from __future__ import annotations

import triton
import triton.language as tl

MASS_BITS = 42
BINS_PER_OCTAVE = 24
BINS = 1024
"""Bins of a row's histogram: more than MASS_BITS * BINS_PER_OCTAVE, a power of two."""

MAX_VOCAB = 1 << 18
"""Masses of more tokens could overflow an i64."""

GROUPS = 8
"""Groups of a chunk whose largest logits bound what can be among a row's best."""

TOP_SLOTS = 32
"""Places for the best tokens of a chunk: MAX_TOP_LOGPROBS rounded up to a power of two."""

_MASS_ONE = tl.constexpr(float(1 << MASS_BITS))
_BINS_PER_OCTAVE = tl.constexpr(float(BINS_PER_OCTAVE))
_BINS = tl.constexpr(BINS)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.constexpr_function
def chunk_tokens(vocab):
    """Returns how many neighbouring tokens one block takes: a power of two; a row of scratch holds whole chunks."""
    return 4096 if vocab > 16384 else 1024


@triton.constexpr_function
def chunk_count(vocab):
    """Returns the number of chunks of a row."""
    return -(-vocab // chunk_tokens(vocab))


@triton.constexpr_function
def chunk_slots(vocab):
    """Returns the number of chunks rounded up to a power of two: the places that per-chunk arrays have for a row."""
    return triton.next_power_of_2(chunk_count(vocab))


@triton.jit
def ordered(values):
    """Returns i32 that order as f32 `values` do, with -0 equal to 0; `values` must not be NaN."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):
    """Returns the f32 of an :func:`ordered` key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def without_nan(logits):
    """Returns the logits with NaN, which nothing must choose, as -inf."""
    return tl.where(logits > float("-inf"), logits, float("-inf"))


@triton.jit
def load_logits(row_logits, token, VOCAB: tl.constexpr):
    """Returns the logits of tokens; -inf for NaN and for what is no token.

    Rows have room for a multiple of 16 tokens, so that those of an odd vocabulary are read in vectors as well.
    """
    logits = tl.load(row_logits + token, mask=token < (VOCAB + 15) // 16 * 16, other=float("-inf"))
    return tl.where(token < VOCAB, without_nan(logits), float("-inf"))


@triton.jit
def octaves_per_logit(temperature):
    """Returns by how many factors of two one unit of logit changes a probability; correctly rounded on every target."""
    return tl.div_rn(tl.full((), _LOG2_E, tl.float32), temperature)


@triton.jit
def octaves_below(values, largest, scale):
    """Returns by how many factors of two tokens are less probable than the best; +inf for masked ones."""
    below = tl.where(values == largest, 0.0, (largest - values) * scale)  # no NaN from inf - inf or 0 * inf
    return tl.where(values > float("-inf"), below, float("inf"))


@triton.jit
def mass_of(octaves, min_p):
    """Returns i64 masses, 0 for tokens whose probability is below `min_p` times the best's."""
    share = tl.exp2(-octaves)
    return (tl.where(share >= min_p, share, 0.0) * _MASS_ONE).to(tl.int64)


@triton.jit
def bin_of(octaves):
    """Returns the bin of tokens that have a mass (of others: some bin); later bins hold less probable tokens."""
    return tl.minimum(octaves * _BINS_PER_OCTAVE, _BINS - 1.0).to(tl.int32)


@triton.jit
def least_share(min_p):
    """Returns min_p, but never so much that the best token is dropped."""
    return tl.minimum(min_p, 1.0)


@triton.jit
def filtered(top_k, top_p, VOCAB: tl.constexpr):
    """Returns whether top-k or top-p may drop a token of the row."""
    return ((top_k > 0) & (top_k < VOCAB)) | (top_p < 1.0)
