"""router, route, experts and expert_sum against float64, on odd shapes too; no token's result depends on another's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from paiton_kernels.expert_sum import EXPERT_SUM, expert_sum
from paiton_kernels.experts import EXPERTS, SEGMENT_ROWS, expected_experts, products
from paiton_kernels.linear import WEIGHT_BYTES, gelu_mul, silu_mul
from paiton_kernels.numeric_formats import bf16_bits, bf16_values, e4m3_values, round_bf16
from paiton_kernels.pack import activations
from paiton_kernels.route import ROUTE, route
from paiton_kernels.router import ROUTER, scores
from paiton_kernels.spec import Value, Variant
from tests.cpu.kernels.harness import Array, Level
from tests.numerics import assert_close, assert_same_bits

E4M3 = e4m3_values()
FINITE = np.flatnonzero(np.isfinite(E4M3) & (np.arange(256) != 0x80)).astype(np.uint8)
WORKERS = (1, 2, 3, 7)
EPS = 1e-5


def counts(tokens: int) -> Array:
    return np.array([tokens, 1, 1, 0], np.int32)


def padded(rows: Array, stride: int) -> Array:
    """Returns rows of bytes with NaNs between them that must not be read; the last row ends the memory."""
    spaced = np.full((len(rows), stride), 0xFF, np.uint8)
    spaced[:, : rows.shape[1]] = rows
    return spaced.ravel()[: spaced.size - stride + rows.shape[1]].copy()


ROUTERS = [(8, 192, 5, 0), (3, 100, 2, 1), (20, 72, 9, 0), (128, 64, 3, 0)]
"""Experts, columns, tokens, what norms add to their weights."""


def router_variant(experts: int, k: int, offset: int) -> Variant:
    return ROUTER.variant(EXPERTS=experts, K=k, ROW_STRIDE=-(-k * 2 // 16) * 16, NORM_OFFSET=offset)


CHOICES = [(8, 2, 1), (128, 8, 0), (5, 5, 1), (256, 16, 0), (3, 1, 0)]
"""Experts, choices, whether they are normalised."""


@dataclass
class Case:
    """Expert matrices with random data, rows that have chosen some of them, and what comes of it."""

    epilogue: str
    tokens: int
    n: int = 64
    k: int = 192
    experts: int = 6
    top_k: int = 2
    weight: str = "FP8"
    input: str = "BF16"
    act: str = "BF16"
    scale_rows: int = 0
    offset: int = 0
    skewed: bool = False  # everybody chooses the first expert

    def __post_init__(self) -> None:
        rng = np.random.default_rng((self.n, self.k, self.tokens))
        odds = rng.random((self.tokens, self.experts))
        if self.skewed:
            odds[:, 0] = 2
        self.chosen = np.argsort(-odds, axis=1)[:, : self.top_k].astype(np.int32)
        self.probability = rng.random((self.tokens, self.top_k)).astype(np.float32)
        rows = self.tokens if self.by_token else self.tokens * self.top_k
        x = rng.standard_normal((rows, self.k)) * np.exp(rng.standard_normal((rows, 1)))
        self.x: Array = x.astype(np.float32) if self.input == "NORM" else bf16_bits(x)
        self.norm = bf16_bits(rng.uniform(0.5, 1.5, self.k) - self.offset)
        self.row_stride = -(-self.k * WEIGHT_BYTES[self.weight] // 16) * 16
        shape = (self.experts * self.n, self.k)
        self.codes: Array = (
            rng.choice(FINITE, shape)
            if self.weight == "FP8"
            else rng.integers(-127, 128, shape).astype(np.int8).view(np.uint8)
            if self.weight == "INT8"
            else bf16_bits(rng.standard_normal(shape)).view(np.uint8)
        )
        blocks = -(-self.k // 128)
        grid = np.full((len(self.codes) // max(self.scale_rows, 1), blocks + 1), np.nan, np.float32)
        grid[:, :blocks] = rng.uniform(1e-3, 3e-3, (len(grid), blocks))
        self.scale = grid if self.scale_rows else rng.uniform(1e-3, 3e-3, len(self.codes)).astype(np.float32)

    @property
    def by_token(self) -> bool:
        """Rows are tokens', not entries'."""
        return self.epilogue in {"SILU", "GELU"}

    @property
    def variant(self) -> Variant:
        """The kernel."""
        macros: dict[str, Value] = {
            "EXPERTS": self.experts,
            "TOP_K": self.top_k,
            "N": self.n,
            "K": self.k,
            "ROW_STRIDE": self.row_stride,
            "WEIGHT": self.weight,
            "SCALES": "BLOCK" if self.scale_rows else "ROW",
            "SCALE_ROWS": self.scale_rows,
            "INPUT": self.input,
            "ACT": self.act,
            "NORM_OFFSET": self.offset,
            "EPILOGUE": self.epilogue,
        }
        return EXPERTS.variant(**macros)

    def output(self, tokens: int) -> Array:
        """Returns what is there before: only ADD shall look at it."""
        if self.by_token:
            return np.full((tokens, self.top_k, self.n // 2), 0xFFFF, np.uint16)
        shape = (tokens, self.top_k, self.n) if self.epilogue == "ROWS" else (tokens, self.n)
        started = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 64
        return started if self.epilogue == "ADD" else np.full(shape, np.nan, np.float32)

    def run(self, level: Level, workers: int = 1, token: int | None = None) -> Array:
        """Runs all tokens, or one of them alone."""
        mine = slice(None) if token is None else slice(token, token + 1)
        x = self.x if self.by_token else self.x.reshape(self.tokens, self.top_k, self.k)
        out = np.ascontiguousarray(self.output(self.tokens)[mine])
        values: dict[str, Array | float] = {
            "counts": counts(len(out)),
            "chosen": np.ascontiguousarray(self.chosen[mine]),
            "probability": np.ascontiguousarray(self.probability[mine]),
            "x": np.ascontiguousarray(x[mine]),
            "norm_weight": self.norm,
            "eps": EPS,
            "input_scale": np.array([0.037], np.float32),
            "weight": padded(self.codes, self.row_stride),
            "scale": self.scale,
            "scale_stride": self.scale.shape[-1],
            "out": out,
        }
        level.run(self.variant, values, workers=workers, max_tokens=len(out))
        return out

    def expected(self) -> NDArray[np.float64]:
        """Returns the reference's result: [T][TOP_K][N or N/2], or [T][N]."""
        x = self.x.astype(np.float64) if self.input == "NORM" else bf16_values(self.x)
        norm = bf16_values(self.norm) if self.input == "NORM" else None
        static = float(np.float32(0.037))
        rows, x_scale = activations(
            x, act=self.act, norm_weight=norm, eps=EPS, offset=float(self.offset), input_scale=static
        )
        if self.by_token:
            rows, x_scale = np.repeat(rows, self.top_k, axis=0), np.repeat(x_scale, self.top_k, axis=0)
        product = products(rows, x_scale, self.chosen.ravel(), self._weights(), self._scales())
        if self.by_token:
            product = silu_mul(product) if self.epilogue == "SILU" else gelu_mul(product)
        by_token = product.reshape(self.tokens, self.top_k, -1)
        return (
            by_token
            if self.epilogue not in {"STORE", "ADD"}
            else expert_sum(by_token, self.probability.astype(np.float64))
        )

    def _weights(self) -> NDArray[np.float64]:
        values = (
            E4M3[self.codes]
            if self.weight == "FP8"
            else self.codes.view(np.int8).astype(np.float64)
            if self.weight == "INT8"
            else bf16_values(self.codes.view(np.uint16))
        )
        return np.asarray(values).reshape(self.experts, self.n, self.k)

    def _scales(self) -> NDArray[np.float64] | None:
        if self.weight == "BF16":
            return None
        scale = self.scale.astype(np.float64)
        rows = np.repeat(scale[:, :-1], self.scale_rows, axis=0) if self.scale_rows else scale
        return rows.reshape(self.experts, self.n, *rows.shape[1:])


CASES = [
    Case("GELU", 3, weight="BF16", input="NORM", offset=1),
    Case("SILU", 40, k=100, top_k=3, weight="INT8"),
    Case("SILU", SEGMENT_ROWS + 9, n=32, k=64, top_k=1, skewed=True),
    Case("SILU", 7, n=128, k=256, input="NORM", act="FP8_BLOCK", scale_rows=64),
    Case("SILU", 30, k=256, input="NORM", act="FP8_DYNAMIC"),
    Case("ROWS", 9, weight="BF16", k=72),
    Case("ROWS", 11, n=32, k=2136, experts=2, top_k=1, skewed=True),  # columns in two slices
    Case("ROWS", SEGMENT_ROWS + 5, n=32, k=200, act="FP8_BLOCK", scale_rows=16, skewed=True),
    Case("ROWS", 20, experts=40, top_k=4, k=128, act="FP8_STATIC"),
    Case("STORE", 1, n=16, k=100, weight="INT8", act="FP8_DYNAMIC"),
    Case("STORE", 6, n=128, k=300, act="FP8_BLOCK", scale_rows=128, top_k=4),
    Case("ADD", 12, n=48, k=128, weight="BF16", skewed=True),
]


def name_of(case: Case) -> str:
    return f"{case.variant.symbol.removeprefix('experts_')}_t{case.tokens}"


@pytest.fixture(scope="module", autouse=True)
def _compile(level: Level) -> None:
    level.load(
        [
            *(case.variant for case in CASES),
            *(router_variant(experts, k, offset) for experts, k, _, offset in ROUTERS),
            *(ROUTE.variant(EXPERTS=e, TOP_K=k, NORMALISE=normalise) for e, k, normalise in CHOICES),
            *(EXPERT_SUM.variant(TOP_K=3, N=100, MODE=mode) for mode in ("STORE", "ADD")),
        ]
    )


@pytest.mark.parametrize(("experts", "k", "tokens", "offset"), ROUTERS)
def test_scores_are_of_the_normalised_rows(level: Level, experts: int, k: int, tokens: int, offset: int) -> None:
    rng = np.random.default_rng(experts)
    x = rng.standard_normal((tokens, k)).astype(np.float32)
    norm, weight = bf16_bits(rng.uniform(0.5, 1.5, k) - offset), bf16_bits(rng.standard_normal((experts, k)))
    rounded, _ = activations(
        x.astype(np.float64), act="BF16", norm_weight=bf16_values(norm), eps=EPS, offset=float(offset)
    )
    variant = router_variant(experts, k, offset)
    first: Array | None = None
    for workers in (*WORKERS, 40):
        normed, out = np.zeros((tokens, k), np.uint16), np.full((tokens, experts), np.nan, np.float32)
        values: dict[str, Array | float] = {
            "counts": counts(tokens),
            "x": x,
            "norm_weight": norm,
            "eps": EPS,
            "weight": padded(weight.view(np.uint8), int(variant.macros["ROW_STRIDE"])),
            "normed": normed,
            "scores": out,
        }
        level.run(variant, values, workers=workers)
        assert_close(bf16_values(normed), rounded, "bf16")
        assert_close(out, scores(bf16_values(normed), bf16_values(weight)), "f32")
        first = out if first is None else first
        assert_same_bits(out, first)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(("experts", "top_k", "normalise"), CHOICES)
def test_the_most_probable_experts_are_chosen(
    level: Level, experts: int, top_k: int, normalise: int, workers: int
) -> None:
    rng = np.random.default_rng(experts)
    out_of = (rng.standard_normal((9, experts)) * 5).astype(np.float32)
    out_of[3] = np.round(out_of[3])  # many are equal
    out_of[4] = 0  # all are
    out_of[5, : experts // 2] = -np.inf
    out_of[6] -= 1e4
    chosen, probability = np.full((9, top_k), -1, np.int32), np.full((9, top_k), np.nan, np.float32)
    variant = ROUTE.variant(EXPERTS=experts, TOP_K=top_k, NORMALISE=normalise)
    values = {"counts": counts(9), "scores": out_of, "chosen": chosen, "probability": probability}
    level.run(variant, values, workers=workers)
    expected, probabilities = route(out_of.astype(np.float64), top_k, normalise=bool(normalise))
    assert_same_bits(chosen, expected)
    assert_close(probability, probabilities, "f32")


def test_scores_of_nan_still_choose_experts_that_exist(level: Level) -> None:
    chosen, probability = np.full((2, 8), -1, np.int32), np.zeros((2, 8), np.float32)
    out_of = np.full((2, 128), np.nan, np.float32)
    values = {"counts": counts(2), "scores": out_of, "chosen": chosen, "probability": probability}
    level.run(ROUTE.variant(EXPERTS=128, TOP_K=8, NORMALISE=0), values)
    assert [sorted(set(row)) for row in chosen.tolist()] == [list(range(8))] * 2


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_experts_agree_with_float64(level: Level, case: Case) -> None:
    out, expected = case.run(level, workers=2), case.expected()
    dtype = "bf16" if case.act == "BF16" else "fp8"
    if case.by_token:
        assert_close(bf16_values(out), round_bf16(expected), dtype)
    else:
        assert_close(out, expected + (case.output(case.tokens) if case.epilogue == "ADD" else 0), dtype)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_token_is_the_same_alone_and_by_any_number_of_workers(level: Level, case: Case) -> None:
    whole = case.run(level)
    for workers in WORKERS[1:]:
        assert_same_bits(case.run(level, workers), whole)
    for token in range(0, case.tokens, max(1, case.tokens // 4)):
        assert_same_bits(case.run(level, token=token)[0], whole[token])


@pytest.mark.parametrize("mode", ["STORE", "ADD"])
def test_a_sum_over_experts_is_in_the_order_of_choices(level: Level, mode: str) -> None:
    rng = np.random.default_rng(1)
    product, probability = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 3, 100), (5, 3)))
    before = rng.standard_normal((5, 100)).astype(np.float32)
    terms = product * probability[..., None]
    in_order = terms[:, 0] + terms[:, 1] + terms[:, 2]
    for workers in WORKERS:
        out = before.copy() if mode == "ADD" else np.full_like(before, np.nan)
        values = {"counts": counts(5), "product": product, "probability": probability, "out": out}
        level.run(EXPERT_SUM.variant(TOP_K=3, N=100, MODE=mode), values, workers=workers)
        assert_same_bits(out, before + in_order if mode == "ADD" else in_order)
    assert_close(in_order, expert_sum(product.astype(np.float64), probability.astype(np.float64)), "f32")


def test_expected_experts_are_what_random_choices_use() -> None:
    rng = np.random.default_rng(0)
    used = [len({e for _ in range(20) for e in rng.permutation(64)[:4]}) for _ in range(300)]
    assert expected_experts(64, 4, 20) == pytest.approx(np.mean(used), rel=0.01)
    assert expected_experts(64, 4, 1) == pytest.approx(4)
    assert expected_experts(8, 8, 3) == pytest.approx(8)
