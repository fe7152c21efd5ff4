"""Sharding: ranks cover every weight, and FP8.md's rules for KV heads and vocabularies hold."""

from __future__ import annotations

import dataclasses

import pytest

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.weights import ShardRule, Source, check_tp, padded_vocab, shard, valid_tp
from paiton_artifacts.errors import TensorParallelError

SMOLLM2 = ModelConfig(
    architecture="LlamaForCausalLM",
    layers=30,
    hidden_size=576,
    intermediate_size=1536,
    attention_heads=9,
    kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    max_position=8192,
    rms_norm_eps=1e-5,
    rope_theta=1e5,
    rope_scaling=None,
    tied_embeddings=True,
    bos_token_id=1,
    eos_token_ids=(2,),
)
LLAMA_405B = dataclasses.replace(
    SMOLLM2, attention_heads=128, kv_heads=8, hidden_size=16384, intermediate_size=53248, vocab_size=128256
)


def test_valid_rank_counts() -> None:
    assert valid_tp(SMOLLM2) == [1, 3]
    assert valid_tp(dataclasses.replace(SMOLLM2, attention_heads=12, kv_heads=4)) == [1, 2, 4, 12]
    assert valid_tp(LLAMA_405B) == [1, 2, 4, 8, 16]


def test_a_rank_count_that_does_not_divide_is_refused_with_those_that_do() -> None:
    with pytest.raises(TensorParallelError, match=r"--tp 2 .*9 attention heads.*one of 1, 3") as caught:
        check_tp(SMOLLM2, 2)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("rule", [ShardRule.COLUMN, ShardRule.ROW])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_ranks_partition_a_weight(rule: ShardRule, tp: int) -> None:
    source = Source("w", (32, 64), rule)
    cells = [
        (row, col)
        for rank in range(tp)
        for piece in [shard(source, rank, tp, 8)]
        for row in range(piece.row, piece.row + piece.rows)
        for col in range(piece.col, piece.col + piece.cols)
    ]
    assert sorted(cells) == [(row, col) for row in range(32) for col in range(64)]


def test_kv_heads_are_split_while_there_are_enough() -> None:
    source = Source("k", (8 * 64, 16), ShardRule.KV_HEAD)
    assert [(p.row, p.rows) for p in (shard(source, rank, 4, 8) for rank in range(4))] == [
        (0, 128),
        (128, 128),
        (256, 128),
        (384, 128),
    ]


def test_kv_heads_are_replicated_beyond_that() -> None:
    source = Source("k", (2 * 64, 16), ShardRule.KV_HEAD)
    heads = [shard(source, rank, 8, 2).row // 64 for rank in range(8)]
    assert heads == [rank // (8 // 2) for rank in range(8)]


def test_vocabulary_is_padded_to_64_rows_per_rank() -> None:
    assert padded_vocab(49152, 3) == 49152
    assert padded_vocab(50257, 4) == 50432
    shares = [shard(Source("e", (50257, 8), ShardRule.VOCAB), rank, 4, 1) for rank in range(4)]
    assert [share.row for share in shares] == [0, 12608, 25216, 37824]
    assert {share.rows for share in shares} == {12608}
