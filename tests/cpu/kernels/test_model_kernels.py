"""Kernels that some architectures need: norms of heads before RoPE, norms behind blocks, scaled embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from paiton_kernels.embed import embed
from paiton_kernels.families import FAMILIES
from paiton_kernels.linear import kv_slots, kv_tiles, rotate
from paiton_kernels.norm_add import norm_add
from paiton_kernels.numeric_formats import bf16_bits, bf16_values, e4m3_values, round_e4m3
from paiton_kernels.pack import rms_norm
from paiton_kernels.rope_table import rope_table
from tests.cpu.kernels.harness import Array, Level
from tests.numerics import assert_close, assert_same_bits

WORKERS = (1, 2, 3, 7)
Q_HEADS, KV_HEADS = 3, 2
ROPE = {
    (head_dim, offset, kv): FAMILIES["rope_kv"].variant(
        Q_HEADS=Q_HEADS, KV_HEADS=KV_HEADS, HEAD_DIM=head_dim, NORM_OFFSET=offset, KV=kv
    )
    for head_dim, offset, kv in ((64, 0, "BF16"), (96, 1, "BF16"), (32, 1, "FP8"))
}
ADD = {
    (ranks, offset): FAMILIES["norm_add"].variant(RANKS=ranks, HIDDEN=100, NORM_OFFSET=offset)
    for ranks, offset in ((1, 1), (3, 0), (16, 1))
}
SCALED = FAMILIES["embed"].variant(HIDDEN=100, ROWS=7, ROW_STRIDE=200, SCALED=1)
SCALES = {"k_scale": np.array([0.02], np.float32), "v_scale": np.array([0.05], np.float32)}


@pytest.fixture(scope="module", autouse=True)
def _compile(level: Level) -> None:
    level.load([*ROPE.values(), *ADD.values(), SCALED])


def counts(tokens: int) -> Array:
    return np.array([tokens, 1, 1, 0], np.int32)


@pytest.mark.parametrize(("head_dim", "offset", "kv"), ROPE)
def test_rope_kv_normalises_heads_rotates_and_writes_the_cache(
    level: Level, head_dim: int, offset: int, kv: str
) -> None:
    rng = np.random.default_rng(head_dim)
    tokens = 9
    qkv = rng.standard_normal((tokens, Q_HEADS + 2 * KV_HEADS, head_dim)).astype(np.float32) * 3
    norms = {name: bf16_bits(rng.uniform(0.5, 1.5, head_dim) - offset) for name in ("q_norm", "k_norm")}
    positions = rng.permutation(40)[:tokens].astype(np.int32)
    request_of = rng.integers(0, 2, tokens).astype(np.int32)
    tables = rng.permutation(6).astype(np.int32).reshape(2, 3)
    angles = rope_table(positions, (10000.0 ** -np.linspace(0, 1, head_dim // 2, endpoint=False)).astype(np.float32))
    width = 1 if kv == "FP8" else 2
    results = []
    for workers in WORKERS:
        out = np.zeros((tokens, Q_HEADS * head_dim), np.uint16)
        cache = np.zeros((6, 2 * KV_HEADS * 16 * head_dim * width + 32), np.uint8)
        values: dict[str, Array | float] = {
            **norms,
            **SCALES,
            "counts": counts(tokens),
            "qkv": qkv,
            "eps": 1e-6,
            "rope": angles.astype(np.float32),
            "positions": positions,
            "request_of": request_of,
            "block_tables": tables,
            "block_table_stride": 3,
            "kv": cache,
            "kv_block_stride": cache.shape[1],
            "out": out,
        }
        level.run(ROPE[head_dim, offset, kv], values, workers=workers)
        results.append((out, cache))
    for out, cache in results[1:]:
        assert_same_bits(out, results[0][0])
        assert_same_bits(cache, results[0][1])
    q, k, v = np.split(qkv.astype(np.float64), [Q_HEADS, Q_HEADS + KV_HEADS], axis=1)
    q, k = (rms_norm(x, bf16_values(norms[name]), 1e-6, offset) for x, name in ((q, "q_norm"), (k, "k_norm")))
    assert_close(bf16_values(results[0][0]), rotate(q, angles).reshape(tokens, -1), "bf16")
    history = np.zeros((2, 6, KV_HEADS, 16, head_dim))
    blocks, places = kv_slots(positions, request_of, tables)
    history[0, blocks, :, places], history[1, blocks, :, places] = rotate(k, angles), v
    expected = np.stack(kv_tiles(history[0], history[1]), axis=1)
    stored = results[0][1][:, :-32].copy()
    if kv == "FP8":
        scales = np.concatenate([SCALES["k_scale"], SCALES["v_scale"]]).astype(np.float64)[None, :, None, None]
        values_stored = e4m3_values()[stored.reshape(expected.shape)] * scales
        assert_close(values_stored, round_e4m3(expected / scales) * scales, "fp8")
    else:
        assert_close(bf16_values(stored.view(np.uint16)).reshape(expected.shape), expected, "bf16")


@pytest.mark.parametrize("tokens", [1, 2, 9])
@pytest.mark.parametrize(("ranks", "offset"), ADD)
def test_norm_add_normalises_the_sum_of_ranks_and_adds_it(level: Level, ranks: int, offset: int, tokens: int) -> None:
    rng = np.random.default_rng(ranks)
    parts = [rng.standard_normal((tokens, 100)).astype(np.float32) for _ in range(ranks)]
    before = rng.standard_normal((tokens, 100)).astype(np.float32)
    weight = bf16_bits(rng.uniform(0.5, 1.5, 100) - offset)
    results = []
    for workers in WORKERS:
        out = before.copy()
        values: dict[str, Array | float] = {f"part{rank}": part for rank, part in enumerate(parts)}
        values |= {"counts": counts(tokens), "norm_weight": weight, "eps": 1e-6, "out": out}
        level.run(ADD[ranks, offset], values, workers=workers)
        results.append(out)
    for out in results[1:]:
        assert_same_bits(out, results[0])
    assert_close(results[0], norm_add(parts, bf16_values(weight), before, 1e-6, offset), "f32")


def test_a_scaled_embedding_is_its_rows_times_the_scale(level: Level) -> None:
    table = bf16_bits(np.random.default_rng(0).standard_normal((7, 100)))
    ids = np.array([10, 16, 9], np.int32)
    for workers in WORKERS:
        out = np.full((3, 100), np.nan, np.float32)
        values: dict[str, Array | float] = {
            "counts": counts(3),
            "token_ids": ids,
            "last_token": ids,
            "table": table,
            "first_token": 10,
            "scale": 11.3125,
            "out": out,
        }
        level.run(SCALED, values, workers=workers)
        assert_close(out, embed(ids, bf16_values(table), 10, 11.3125), "f32")
