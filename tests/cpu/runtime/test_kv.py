"""KV blocks are never handed out twice, and come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paiton_artifacts.errors import OutOfMemoryError
from paiton_runtime.kv import BlockPool, CachedSequence

BLOCK = 4


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), max_size=12))
def test_blocks_are_owned_by_one_sequence(prompts: list[list[int]]) -> None:
    """Two sequences serve prompts in turn: kept prefixes agree with the prompt, and no block is shared or lost."""
    pool = BlockPool(20)
    sequences = [CachedSequence(pool, BLOCK), CachedSequence(pool, BLOCK)]
    for turn, prompt in enumerate(prompts):
        sequence = sequences[turn % 2]
        cached = list(sequence.tokens)
        kept = sequence.keep_prefix(prompt)
        assert sequence.tokens == cached[:kept] == prompt[:kept]
        assert kept < len(prompt)
        assert kept == len(prompt) - 1 or kept == len(cached) or cached[kept] != prompt[kept]
        sequence.reserve(len(prompt))
        sequence.tokens += prompt[kept:]
        assert len(sequence.blocks) == -(-len(prompt) // BLOCK)
        owned = sequences[0].blocks + sequences[1].blocks
        assert len(set(owned)) == len(owned) == 20 - len(pool)


def test_the_lowest_blocks_come_first() -> None:
    pool = BlockPool(8)
    first = pool.take(3)
    assert first == [0, 1, 2]
    pool.give_back(first)
    assert pool.take(4) == [0, 1, 2, 3]


def test_an_empty_pool_is_an_error_that_takes_nothing() -> None:
    pool = BlockPool(2)
    with pytest.raises(OutOfMemoryError, match="3 KV blocks are needed and 2 are free"):
        pool.take(3)
    assert len(pool) == 2
