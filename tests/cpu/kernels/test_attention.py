"""attention against float64: groups of query heads, ragged batches, both cache types, and bitwise invariance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from paiton_kernels.attention import attention
from paiton_kernels.families import FAMILIES
from paiton_kernels.linear import kv_slots, kv_tiles
from paiton_kernels.numeric_formats import bf16_bits, bf16_values, e4m3_values
from paiton_kernels.spec import Variant
from tests.cpu.kernels.harness import Array, Level
from tests.numerics import assert_close, assert_same_bits

E4M3 = e4m3_values()
FINITE = np.flatnonzero(np.isfinite(E4M3) & (np.abs(E4M3) <= 8)).astype(np.uint8)
K_SCALE, V_SCALE = 0.25, 0.5


@dataclass
class Case:
    """A step of several requests: `chunks` holds (first position, tokens) of each, `spread` multiplies the queries."""

    q_heads: int
    kv_heads: int
    head_dim: int
    chunks: tuple[tuple[int, int], ...]
    kv: str = "BF16"
    window: int = 0
    softcap: float = 0.0
    spread: float = 1.0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.q_heads * 1000 + self.head_dim)
        self.request_of = np.repeat(np.arange(len(self.chunks)), [n for _, n in self.chunks]).astype(np.int32)
        self.positions = np.concatenate([np.arange(start, start + n) for start, n in self.chunks]).astype(np.int32)
        blocks = int(self.positions.max()) // 16 + 1
        self.block_tables = rng.permutation(blocks * len(self.chunks)).astype(np.int32).reshape(-1, blocks)
        self.q = bf16_bits(self.spread * rng.standard_normal((len(self.positions), self.q_heads, self.head_dim)))
        history = (len(self.chunks), blocks * 16, self.kv_heads, self.head_dim)
        if self.kv == "FP8":
            self.k, self.v = rng.choice(FINITE, history), rng.choice(FINITE, history)
        else:
            self.k, self.v = bf16_bits(rng.standard_normal(history)), bf16_bits(rng.standard_normal(history))
        self.cache = self._fill_cache()

    def _fill_cache(self) -> Array:
        """Lays the history out in blocks; what no token may see is NaN."""
        shape = (2, self.block_tables.size, self.kv_heads, 16, self.head_dim)
        cache = np.full(shape, -1, np.int64).astype(self.k.dtype)
        for request, (start, tokens) in enumerate(self.chunks):
            positions = np.arange(start + tokens, dtype=np.int32)
            blocks, places = kv_slots(positions, np.full_like(positions, request), self.block_tables)
            cache[0, blocks, :, places] = self.k[request, : len(positions)]
            cache[1, blocks, :, places] = self.v[request, : len(positions)]
        return np.stack(kv_tiles(cache[0], cache[1]), axis=1)

    @property
    def variant(self) -> Variant:
        """The kernel of this shape."""
        return FAMILIES["attention"].variant(
            Q_HEADS=self.q_heads,
            KV_HEADS=self.kv_heads,
            HEAD_DIM=self.head_dim,
            KV=self.kv,
            WINDOW=int(self.window > 0),
            SOFTCAP=int(self.softcap > 0),
        )

    def run(self, level: Level, workers: int = 1, tokens: slice | None = None) -> Array:
        """Runs the step, or only some of its tokens; returns bf16 bits [T][Q_HEADS][D]."""
        tokens = tokens or slice(0, len(self.positions))
        out = np.zeros_like(self.q[tokens])
        values: dict[str, Array | float] = {
            "counts": np.array([len(out), len(self.chunks), 1, 0], np.int32),
            "q": self.q[tokens],
            "positions": self.positions[tokens],
            "request_of": self.request_of[tokens],
            "block_tables": self.block_tables,
            "block_table_stride": self.block_tables.shape[1],
            "kv": self.cache,
            "kv_block_stride": self.cache[0].nbytes,
            "k_scale": np.array([K_SCALE], np.float32),
            "v_scale": np.array([V_SCALE], np.float32),
            "softmax_scale": self.head_dim**-0.5,
            "window": self.window,
            "softcap": self.softcap,
            "out": out,
        }
        level.run(self.variant, values, workers=workers)
        return out

    def expected(self) -> Array:
        """Returns the reference's f64[T][Q_HEADS][D]."""
        if self.kv == "FP8":
            k, v = E4M3[self.k] * K_SCALE, E4M3[self.v] * V_SCALE
        else:
            k, v = bf16_values(self.k), bf16_values(self.v)
        parts = []
        for request, (start, tokens) in enumerate(self.chunks):
            mine = self.request_of == request
            history = slice(0, start + tokens)
            q = bf16_values(self.q[mine])
            parts.append(
                attention(
                    q,
                    k[request, history],
                    v[request, history],
                    self.positions[mine],
                    self.head_dim**-0.5,
                    self.window,
                    self.softcap,
                )
            )
        return np.concatenate(parts)


CASES = [
    Case(9, 3, 64, ((0, 1),)),
    Case(9, 3, 64, ((0, 40),)),
    Case(4, 1, 64, ((15, 1), (16, 1), (200, 1), (3, 5))),
    Case(4, 1, 128, ((5, 30), (47, 1), (0, 17), (31, 2))),
    Case(2, 2, 32, ((0, 33), (100, 9))),
    Case(3, 3, 96, ((30, 20), (0, 20))),
    Case(6, 2, 64, ((0, 1), (77, 1), (12, 40)), kv="FP8"),
    Case(4, 4, 32, ((17, 3),), kv="FP8"),
    Case(40, 1, 32, ((9, 35),)),
    Case(4, 1, 64, ((15, 1), (16, 1), (200, 1), (3, 5)), window=16),
    Case(4, 1, 128, ((5, 60), (47, 1), (0, 17), (90, 2)), window=7),
    Case(2, 2, 32, ((0, 70), (100, 40)), window=33, softcap=1.5),
    Case(6, 2, 64, ((0, 1), (77, 1), (12, 60)), kv="FP8", window=20),
    Case(3, 3, 96, ((30, 20), (0, 20)), softcap=0.5),
    Case(40, 1, 32, ((9, 35),), window=1),
    Case(9, 3, 64, ((130, 70),), spread=40.0),
    Case(8, 1, 32, ((250, 13), (300, 1), (0, 30)), kv="FP8", spread=10.0),
    Case(12, 1, 256, ((60, 9), (127, 1)), window=50, spread=5.0),
]


def name_of(case: Case) -> str:
    return f"{case.variant.symbol}_t{len(case.positions)}"


@pytest.fixture(scope="module", autouse=True)
def _compile(level: Level) -> None:
    level.load([case.variant for case in CASES])


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_agrees_with_float64(level: Level, case: Case) -> None:
    assert_close(bf16_values(case.run(level, workers=2)), case.expected(), "bf16")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_rows_do_not_depend_on_batch_or_workers(level: Level, case: Case) -> None:
    out = case.run(level)
    for workers in (2, 3, 5):
        assert_same_bits(case.run(level, workers), out)
    for t in range(len(out)):
        assert_same_bits(case.run(level, 1, slice(t, t + 1)), out[t : t + 1])
