"""What every launch of ``sample`` leaves in memory, for its tests: a batch of rows carried through the chain by numpy.

A batch is a dict of arrays by argument name. Each function here is one launch: it returns the batch as that launch
leaves it. Masses and bins are computed as on the device, in f32 where that decides an integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.gpu.sample_arithmetic import (
    BINS,
    BINS_PER_OCTAVE,
    GROUPS,
    MASS_BITS,
    chunk_count,
    chunk_tokens,
)
from paiton_kernels.sample_reference import (
    Row,
    best_tokens,
    log_probabilities,
    processed_logits,
    rank_of,
    sampled_token,
)
from paiton_kernels.spec import MAX_TOP_LOGPROBS

Batch = dict[str, NDArray[Any]]

_NO_KEY = -(1 << 63)


def _changed(batch: Batch, *names: str) -> Batch:
    """Returns a batch in which arrays of these names may be written."""
    return {**batch, **{name: batch[name].copy() for name in names}}


def _padded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a row as [chunks][tokens of a chunk], padded with -inf."""
    chunks, tokens = chunk_count(len(values)), chunk_tokens(len(values))
    padded = np.full(chunks * tokens, -np.inf, np.float32)
    padded[: len(values)] = np.where(np.isnan(values), -np.inf, values)
    return padded.reshape(chunks, tokens)


def _allowed(batch: Batch, row: int, vocab: int) -> NDArray[np.bool_]:
    if batch["mask_row"][row] < 0:
        return np.ones(vocab, bool)
    words = batch["mask"][batch["mask_row"][row]].view(np.uint8)
    return np.unpackbits(words, bitorder="little")[:vocab].astype(bool)


def _bias(batch: Batch, row: int, vocab: int) -> NDArray[np.float32]:
    bias = np.zeros(vocab, np.float32)
    count = batch["bias_count"][row]
    bias[batch["bias_tokens"][row, :count]] = batch["bias_values"][row, :count]
    return bias


def _processed(batch: Batch, row: int, parameters: Row, vocab: int) -> NDArray[np.float32]:
    logits, history = batch["logits"][row, :vocab], batch["token_counts"][batch["slot_of"][row]]
    return processed_logits(logits, history, _allowed(batch, row, vocab), parameters, _bias(batch, row, vocab))


def after_process(batch: Batch, rows: Sequence[Row], vocab: int) -> Batch:
    """The first launch: processed logits, and what a chunk knows by itself."""
    names = ("processed", "chunk_largest", "chunk_sum", "chunk_best", "group_largest", "row_histogram")
    batch = _changed(batch, *names)
    chunks = chunk_count(vocab)
    for r, row in enumerate(rows):
        logits = batch["logits"][r, :vocab]
        values = _processed(batch, r, row, vocab)
        raw, processed = _padded(logits), _padded(values)
        largest = raw.max(axis=1)
        batch["chunk_largest"][r, 0, :chunks] = largest
        with np.errstate(invalid="ignore"):
            below = np.where(raw == largest[:, None], 0.0, raw.astype(np.float64) - largest[:, None])
        below.reshape(-1)[vocab:] = -np.inf
        batch["chunk_sum"][r, :chunks] = np.exp(below).sum(axis=1)
        batch["chunk_largest"][r, 1, :chunks] = processed.max(axis=1)
        batch["chunk_best"][r, :chunks] = np.arange(chunks) * chunk_tokens(vocab) + processed.argmax(axis=1)
        batch["group_largest"][r, :chunks] = raw.reshape(chunks, GROUPS, -1).max(axis=2)
        if row.temperature > 0:
            batch["processed"][r] = processed.ravel()
            batch["row_histogram"][r] = 0
    return batch


def _octaves(values: NDArray[np.float32], row: Row) -> NDArray[np.float32]:
    """Returns how far the tokens of a padded row lie below its best, in f32 as on the device."""
    with np.errstate(over="ignore"):
        scale = np.float32(1.4426950408889634) / np.float32(row.temperature)
    largest = values.max()
    with np.errstate(invalid="ignore", over="ignore"):
        octaves = np.where(values == largest, np.float32(0), (largest - values) * scale)
    return np.where(values == -np.inf, np.float32(np.inf), octaves)


def _masses(values: NDArray[np.float32], row: Row) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the masses of a padded row, and its bins; BINS for tokens without mass."""
    octaves = _octaves(values, row)
    shares = np.exp2(-octaves.astype(np.float64))
    mass = (np.where(shares >= min(np.float32(row.min_p), 1.0), shares, 0.0) * 2.0**MASS_BITS).astype(np.int64)
    bins = np.minimum(octaves * np.float32(BINS_PER_OCTAVE), np.float32(BINS - 1)).astype(np.int64)
    return mass, np.where(mass > 0, bins, BINS + 1)


def _filtered(row: Row, vocab: int) -> bool:
    return row.temperature > 0 and (0 < row.top_k < vocab or row.top_p < 1)


def after_histogram(batch: Batch, rows: Sequence[Row], vocab: int) -> Batch:
    """The second launch: masses, the histogram, and the best tokens of each chunk."""
    batch = _changed(batch, "best_keys", "row_histogram", "chunk_mass")
    chunks, tokens = chunk_count(vocab), chunk_tokens(vocab)
    for r, row in enumerate(rows):
        if row.temperature > 0:
            mass, bins = _masses(batch["processed"][r], row)
            batch["chunk_mass"][r, 0, :chunks] = mass.reshape(chunks, tokens).sum(axis=1)
            if _filtered(row, vocab):
                batch["row_histogram"][r] = np.bincount(bins, minlength=BINS + 2)[:BINS]
        if row.top_logprobs > 0:
            batch["best_keys"][r, :chunks] = _best_keys(batch, r, row.top_logprobs, vocab)
    return batch


def _best_keys(batch: Batch, r: int, wanted: int, vocab: int) -> NDArray[np.int64]:
    """Returns each chunk's keys of tokens that reach the `wanted`-th largest of the groups' largest, best first."""
    chunks, tokens = chunk_count(vocab), chunk_tokens(vocab)
    groups = np.sort(batch["group_largest"][r, :chunks].ravel())[::-1]
    limit = groups[wanted - 1] if wanted <= len(groups) else -np.inf
    keys = np.full((chunks, batch["best_keys"].shape[2]), _NO_KEY)
    logits = batch["logits"][r, :vocab]
    values = np.where(np.isnan(logits), np.float32(-np.inf), logits) + np.float32(0)
    bits = values.view(np.int32).astype(np.int64)
    order = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits) * (1 << 32) + (0x7FFFFFFF - np.arange(vocab))
    for chunk in range(chunks):
        own = slice(chunk * tokens, (chunk + 1) * tokens)
        found = np.sort(order[own][values[own] >= limit])[::-1][:wanted]
        keys[chunk, : len(found)] = found
    return keys


def after_candidates(batch: Batch, rows: Sequence[Row], vocab: int) -> Batch:
    """The third launch: the tokens that limits lie among."""
    batch = _changed(batch, "chunk_mass", "candidates", "chunk_candidates", "row_limit")
    chunks, tokens = chunk_count(vocab), chunk_tokens(vocab)
    for r, row in enumerate(rows):
        if not _filtered(row, vocab):
            continue
        mass, bins = _masses(batch["processed"][r], row)
        k_bin, first, last = limit_bins(batch["row_histogram"][r], row, float(mass.sum()) * 2.0**-MASS_BITS)
        chosen = ((bins >= first) & (bins <= last)) | (bins == k_bin)
        between = (bins > last) & (bins < k_bin)
        sure = np.count_nonzero((bins < first) | between)
        batch["row_limit"][r] = sure if k_bin < BINS else -1
        for chunk in range(chunks):
            own = slice(chunk * tokens, (chunk + 1) * tokens)
            found = batch["processed"][r, own][chosen[own]]
            batch["candidates"][r, chunk * tokens : chunk * tokens + len(found)] = found
            batch["chunk_candidates"][r, chunk] = len(found)
            batch["chunk_mass"][r, 1, chunk] = mass[own][bins[own] < first].sum()
            batch["chunk_mass"][r, 2, chunk] = mass[own][between[own]].sum()
    return batch


def limit_bins(histogram: NDArray[np.int32], row: Row, total: float) -> tuple[int, int, int]:
    """Returns the bin of the top-k limit (BINS if it drops nothing), and those the top-p limit lies between."""
    reached = np.cumsum(histogram)
    k_bin = int(np.searchsorted(reached, row.top_k)) if 0 < row.top_k < reached[-1] else BINS
    kept = histogram.astype(np.float64)
    kept[k_bin + 1 :] = 0
    if k_bin < BINS:
        kept[k_bin] -= reached[k_bin] - row.top_k
    if row.top_p >= 1:
        return k_bin, k_bin, k_bin
    p = row.top_p
    most = kept * np.exp2(-np.arange(BINS) / BINS_PER_OCTAVE)
    least = kept * np.exp2(-(np.arange(BINS) + 1) / BINS_PER_OCTAVE)
    bounds = (most.sum(), least.sum()) if k_bin < BINS else (total, total)
    total_most, total_least = bounds[0] * (1 + 1e-3), bounds[1] * (1 - 1e-3)
    before = np.arange(BINS) > 0

    def bins_before(mass: NDArray[np.float64], enough: float, behind: NDArray[np.float64], rest: float) -> list[int]:
        tail = np.cumsum(behind[::-1])[::-1]
        return [int(np.count_nonzero(np.cumsum(mass) < enough)), int(np.count_nonzero(before & (tail > rest)))]

    first = max(bins_before(most, p * total_least, least, (1 - p) * total_most + 2.0**-20))
    last = min(*bins_before(least, p * total_most, most, (1 - p) * total_least - 2.0**-20), k_bin)
    return k_bin, min(first, last), last


def after_draw(batch: Batch, rows: Sequence[Row], vocab: int) -> Batch:
    """The fourth launch: the token."""
    batch = _changed(batch, "sampled", "sampled_rank")
    for r, row in enumerate(rows):
        token, stable = sampled_token(_processed(batch, r, row, vocab), row)
        if not stable:
            raise ValueError(f"row {r} of the batch lies on an edge, where rounding decides: choose another draw")
        batch["sampled"][r] = token
        batch["sampled_rank"][r] = 1
    return batch


def after_report(batch: Batch, rows: Sequence[Row], vocab: int) -> Batch:
    """The last launch: log-probabilities and ranks, and the request's state."""
    state = ("last_token", "token_counts", "finished")
    batch = _changed(batch, "sampled_logprob", "sampled_rank", "top_tokens", "top_values", *state)
    for r, row in enumerate(rows):
        logits, token, slot = batch["logits"][r, :vocab], batch["sampled"][r], batch["slot_of"][r]
        logprobs = log_probabilities(logits)
        batch["sampled_logprob"][r] = logprobs[token]
        batch["sampled_rank"][r] = rank_of(logits, token)
        best = best_tokens(logits, min(max(row.top_logprobs, 0), MAX_TOP_LOGPROBS))
        batch["top_tokens"][r, : len(best)] = best
        batch["top_values"][r, : len(best)] = logprobs[best]
        batch["last_token"][slot] = token
        batch["token_counts"][slot, token] += 1
        position = batch["positions"][batch["logit_rows"][r]]
        stopped = token in batch["stop_tokens"][r]
        batch["finished"][slot] = stopped or position + 1 >= batch["max_position"][r]
    return batch
