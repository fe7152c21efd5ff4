"""Sampling at a real vocabulary's size, against PyTorch on the same device."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from paiton_kernels.gpu.spec import Step
from paiton_kernels.sample import uniform
from tests.gpu.harness import run_chain
from tests.gpu.launcher import Gpu
from tests.gpu.sampling import Wish, sampling_arrays, sampling_chain
from tests.numerics import assert_close

VOCAB = 128256
ROWS = 32
EDGE = 1e-5
"""Share of the mass by which a draw may miss: the kernel's sums have another order and f32 exponentials."""


def kept(torch: ModuleType, logits: Any, wish: Wish) -> Any:
    """Returns the probabilities of a row after its limits, 0 for tokens that they drop."""
    order = torch.argsort(logits, descending=True, stable=True)
    ranked = torch.softmax(logits[order] / wish.temperature, 0)
    if wish.top_k:
        ranked[wish.top_k :] = 0
        ranked /= ranked.sum()
    if wish.top_p < 1:
        ranked[1:][ranked.cumsum(0)[:-1] >= wish.top_p] = 0
    probabilities = torch.zeros_like(ranked)
    probabilities[order] = ranked / ranked.sum()
    return probabilities


@pytest.mark.parametrize(
    "wish",
    [Wish(), Wish(0.7), Wish(top_k=50), Wish(top_p=0.95), Wish(0.8, top_k=40, top_p=0.9), Wish(2.5, top_p=0.99)],
    ids=["all", "cooler", "top-k", "top-p", "both", "hotter"],
)
def test_a_draw_is_the_one_of_torch_probabilities(gpu: Gpu, torch: ModuleType, wish: Wish) -> None:
    random = np.random.default_rng(1)
    logits = (random.standard_normal((ROWS, VOCAB)) * 3).astype(np.float32)
    wishes = [Wish(wish.temperature, wish.top_k, wish.top_p, seed=row + 1, draw=7 * row) for row in range(ROWS)]
    arrays = sampling_arrays(logits, wishes)
    chain = sampling_chain(gpu, VOCAB, ROWS)
    found = run_chain(gpu, chain, Step(ROWS, ROWS), arrays, {"logits_stride": VOCAB})["sampled"]
    for row, each in enumerate(wishes):
        probabilities = kept(torch, torch.from_numpy(logits[row]).cuda().double(), each)
        mass, token = probabilities.cumsum(0), int(found[row])
        assert probabilities[token] > 0
        start, end = float(mass[token] - probabilities[token]), float(mass[token])
        assert start - EDGE <= uniform(each.seed, each.draw) <= end + EDGE


def test_greedy_and_log_probabilities_are_those_of_torch(gpu: Gpu, torch: ModuleType) -> None:
    random = np.random.default_rng(2)
    logits = (random.standard_normal((ROWS, VOCAB)) * 3).astype(np.float32)
    arrays = sampling_arrays(logits, [Wish(0.0, top_logprobs=5)] * ROWS)
    chain = sampling_chain(gpu, VOCAB, ROWS)
    found = run_chain(gpu, chain, Step(ROWS, ROWS), arrays, {"logits_stride": VOCAB})
    values, tokens = torch.log_softmax(torch.from_numpy(logits).cuda().double(), 1).topk(5)
    assert np.array_equal(found["sampled"], tokens[:, 0].cpu().numpy())
    assert np.array_equal(found["top_tokens"][:, :5], tokens.cpu().numpy())
    assert_close(found["top_values"][:, :5], values.cpu().numpy(), "f32")
    assert_close(found["sampled_logprob"], values[:, 0].cpu().numpy(), "f32")
    assert (found["sampled_rank"] == 1).all()
