"""linear and pack against float64: every weight type, activation mode, epilogue and form, on odd shapes too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from paiton_kernels.families import FAMILIES
from paiton_kernels.linear import WEIGHT_BYTES, gelu_mul, kv_slots, kv_tiles, linear, rotate, silu_mul, soft_cap
from paiton_kernels.numeric_formats import bf16_bits, bf16_values, e4m3_values, round_bf16, round_e4m3
from paiton_kernels.pack import activations, scale_count
from paiton_kernels.rope_table import rope_table
from paiton_kernels.spec import Value, Variant
from tests.cpu.kernels.harness import Array, Level
from tests.numerics import assert_close, assert_same_bits

E4M3 = e4m3_values()
FINITE = np.flatnonzero(np.isfinite(E4M3) & (np.arange(256) != 0x80)).astype(np.uint8)
FORMS = ("DECODE", "PREFILL")


@dataclass
class Case:
    """A linear layer with random data, and what it should compute."""

    n: int
    k: int
    tokens: int
    weight: str = "FP8"
    input: str = "NORM"
    act: str = "BF16"
    epilogue: str = "STORE"
    gather: int = 0
    row_stride: int = 0
    heads: tuple[int, int, int] = (0, 0, 0)
    kv: str = "BF16"
    input_scale: float = 0.037
    bias: int = 0
    softcap: float = 0.0
    norm_offset: int = 0
    scale_rows: int = 0  # of a block of 128 columns that shares a scale; 0: one for each row

    def __post_init__(self) -> None:
        rng = np.random.default_rng(hash((self.n, self.k)) % 2**32)
        width = WEIGHT_BYTES[self.weight]
        self.row_stride = self.row_stride or -(-self.k * width // 16) * 16
        source_rows = self.tokens + 3 if self.gather else self.tokens
        self.rows = rng.permutation(source_rows)[: self.tokens].astype(np.int32)
        x = rng.standard_normal((source_rows, self.k)) * np.exp(rng.standard_normal((source_rows, 1)))
        self.x: Array = x.astype(np.float32) if self.input == "NORM" else bf16_bits(x)
        self.norm = bf16_bits(rng.uniform(0.5, 1.5, self.k) - self.norm_offset)
        self.biases = rng.standard_normal(self.n).astype(np.float32)
        # Scales of blocks have a row more than they need, filled with what must not be read.
        blocks = -(-self.k // 128)
        grid = np.full((-(-self.n // max(self.scale_rows, 1)), blocks + 1), np.nan, np.float32)
        grid[:, :blocks] = rng.uniform(1e-3, 3e-3, (len(grid), blocks))
        self.scale = grid if self.scale_rows else rng.uniform(1e-3, 3e-3, self.n).astype(np.float32)
        self.stored = self._random_weight(rng)
        self.positions = (
            rng.permutation(40)[: self.tokens].astype(np.int32)
            if self.tokens <= 40
            else np.arange(self.tokens, dtype=np.int32)
        )
        self.request_of = rng.integers(0, 2, self.tokens).astype(np.int32)
        blocks = int(self.positions.max()) // 16 + 1
        self.block_tables = rng.permutation(2 * blocks).astype(np.int32).reshape(2, blocks)
        self.inv_freq = (10000.0 ** -np.linspace(0, 1, max(self.heads[2] // 2, 1), endpoint=False)).astype(np.float32)

    def _random_weight(self, rng: np.random.Generator) -> Array:
        shape = (self.n, self.k)
        rows: Array
        if self.weight == "FP8":
            rows = rng.choice(FINITE, shape)
        elif self.weight == "INT8":
            rows = rng.integers(-127, 128, shape).astype(np.int8).view(np.uint8)
        else:
            rows = bf16_bits(rng.standard_normal(shape)).view(np.uint8)
        # Between the rows lies what must not be read as weights: NaN in every format. The last row ends the memory.
        padded = np.full((self.n, self.row_stride), 0xFF, np.uint8)
        padded[:, : rows.shape[1]] = rows
        self.weights = rows
        return padded.ravel()[: padded.size - self.row_stride + rows.shape[1]].copy()

    def weight_values(self) -> NDArray[np.float64]:
        """Returns the stored weights' values, f64[N][K]."""
        if self.weight == "FP8":
            return np.asarray(E4M3[self.weights])
        if self.weight == "INT8":
            return np.asarray(self.weights.view(np.int8), np.float64)
        return bf16_values(self.weights.view(np.uint16))

    def variants(self, form: str) -> tuple[Variant, Variant]:
        """Returns the pack and the linear variant."""
        shared: dict[str, Value] = {"K": self.k, "INPUT": self.input, "ACT": self.act, "GATHER": self.gather}
        shared["NORM_OFFSET"] = self.norm_offset
        q_heads, kv_heads, head_dim = self.heads
        extra: dict[str, Value] = {"Q_HEADS": q_heads, "KV_HEADS": kv_heads, "HEAD_DIM": head_dim, "KV": self.kv}
        own: dict[str, Value] = {
            "SCALES": "BLOCK" if self.scale_rows else "ROW",
            "SCALE_ROWS": self.scale_rows,
            "N": self.n,
            "ROW_STRIDE": self.row_stride,
            "WEIGHT": self.weight,
            "EPILOGUE": self.epilogue,
            "BIAS": self.bias,
            "SOFTCAP": int(self.softcap > 0),
        }
        return FAMILIES["pack"].variant(**shared), FAMILIES["linear"].variant(**shared, **own, **extra, FORM=form)

    def output(self) -> Array:
        """Returns a fresh output array, with something in it to add to."""
        if self.epilogue == "ROPE":
            return np.zeros((self.tokens, self.heads[0] * self.heads[2]), np.uint16)
        if self.epilogue in {"SILU", "GELU"}:
            return np.zeros((self.tokens, self.n // 2), np.uint16)
        return np.arange(self.tokens * (self.n + 5), dtype=np.float32).reshape(self.tokens, self.n + 5) / 64

    def cache(self) -> Array:
        """Returns an empty KV cache: blocks of bytes, with a gap between them."""
        _, kv_heads, head_dim = self.heads
        width = 1 if self.kv == "FP8" else 2
        return np.zeros((self.block_tables.size, 2 * kv_heads * 16 * head_dim * width + 32), np.uint8)

    def run(self, level: Level, form: str, workers: int = 1, rows: slice | None = None) -> tuple[Array, Array]:
        """Runs the layer, on a slice of its tokens if told; returns the output and the KV cache."""
        rows = rows or slice(0, self.tokens)
        tokens = rows.stop - rows.start
        counts = np.array([0 if self.gather else tokens, 1, tokens if self.gather else 0, 0], np.int32)
        out, cache = self.output()[rows].copy(), self.cache()
        table = rope_table(self.positions, self.inv_freq).astype(np.float32)
        pack, kernel = self.variants(form)
        values: dict[str, Array | float] = {
            "counts": counts,
            "x": self.x if self.gather else self.x[rows],
            "rows": self.rows[rows],
            "norm_weight": self.norm,
            "eps": 1e-5,
            "input_scale": np.array([self.input_scale], np.float32),
        }
        packed = {
            "packed": np.zeros(tokens * -(-self.k // 64) * 64, np.float32),
            "packed_scale": np.zeros((tokens, scale_count(pack.macros)), np.float32),
        }
        if form == "PREFILL":
            level.run(pack, {**values, **packed}, workers=workers)
        values |= packed | {"weight": self.stored, "scale": self.scale, "out": out, "out_stride": out.shape[1]}
        values |= {"scale_stride": self.scale.shape[-1], "bias": self.biases, "softcap": self.softcap}
        if self.epilogue in {"STORE", "ADD"}:
            values["out_col"] = 5
        if self.epilogue == "ROPE":
            values |= {
                "rope": table[rows],
                "positions": self.positions[rows],
                "request_of": self.request_of[rows],
                "block_tables": self.block_tables,
                "block_table_stride": self.block_tables.shape[1],
                "kv": cache,
                "kv_block_stride": cache.shape[1],
                "k_scale": np.array([0.02], np.float32),
                "v_scale": np.array([0.05], np.float32),
            }
        level.run(kernel, values, workers=workers)
        return out, cache

    def product(self) -> NDArray[np.float64]:
        """Returns the reference's product, f64[T][N]."""
        x = self.x.astype(np.float64) if self.input == "NORM" else bf16_values(self.x.view(np.uint16))
        if self.gather:
            x = x[self.rows]
        norm = bf16_values(self.norm) if self.input == "NORM" else None
        static = float(np.float32(self.input_scale))
        offset = float(self.norm_offset)
        rounded, scale = activations(x, act=self.act, norm_weight=norm, eps=1e-5, offset=offset, input_scale=static)
        scales = None if self.weight == "BF16" else self.weight_scales()
        product = linear(
            rounded, scale, self.weight_values(), scales, self.biases.astype(np.float64) if self.bias else None
        )
        return soft_cap(product, self.softcap) if self.softcap else product

    def weight_scales(self) -> NDArray[np.float64]:
        """Returns the scales of each row: f64[N], or f64[N][ceil(K/128)] where they are of blocks."""
        if not self.scale_rows:
            return self.scale.astype(np.float64)
        return self.scale[np.arange(self.n) // self.scale_rows, :-1].astype(np.float64)


def check(case: Case, out: Array, cache: Array) -> None:
    """Compares an output with the reference."""
    product = case.product()
    # Rounding an activation the other way on a tie of f32 and f64 costs an ulp of the activation's format.
    dtype = "bf16" if case.act == "BF16" else "fp8"
    if case.epilogue == "STORE":
        assert_close(out[:, 5:], product, dtype)
        assert_same_bits(out[:, :5], case.output()[:, :5])
    elif case.epilogue == "ADD":
        assert_close(out[:, 5:], case.output()[:, 5:].astype(np.float64) + product, dtype)
    elif case.epilogue in {"SILU", "GELU"}:
        gated = silu_mul(product) if case.epilogue == "SILU" else gelu_mul(product)
        assert_close(bf16_values(out.view(np.uint16)), round_bf16(gated), dtype)
    else:
        check_rope(case, product, out, cache)


def check_rope(case: Case, product: NDArray[np.float64], out: Array, cache: Array) -> None:
    """Compares q, and K and V in the cache, with the reference."""
    q_heads, kv_heads, head_dim = case.heads
    heads = product.reshape(case.tokens, -1, head_dim)
    table = rope_table(case.positions, case.inv_freq)
    q, k, v = np.split(heads, [q_heads, q_heads + kv_heads], axis=1)
    assert_close(bf16_values(out.view(np.uint16)), rotate(q, table).reshape(case.tokens, -1), "bf16")
    blocks, places = kv_slots(case.positions, case.request_of, case.block_tables)
    history = np.zeros((2, len(cache), kv_heads, 16, head_dim))
    history[0, blocks, :, places] = rotate(k, table)
    history[1, blocks, :, places] = v
    expected = np.stack(kv_tiles(history[0], history[1]), axis=1)
    if case.kv == "FP8":
        scales = np.array([0.02, 0.05], np.float32).astype(np.float64)[None, :, None, None]
        stored = E4M3[cache[:, :-32].reshape(expected.shape)] * scales
        assert_close(stored, round_e4m3(expected / scales) * scales, "fp8")
    else:
        assert_close(bf16_values(cache[:, :-32].copy().view(np.uint16)).reshape(expected.shape), expected, "bf16")


CASES = [
    Case(64, 192, 3),
    Case(576, 576, 1, epilogue="ADD", input="BF16"),
    Case(61, 100, 5),
    Case(40, 100, 2, weight="BF16"),
    Case(35, 100, 2, weight="INT8", epilogue="ADD"),
    Case(96, 1536, 8, input="BF16", epilogue="ADD"),
    Case(32, 2900, 7, weight="INT8"),
    Case(96, 192, 7, epilogue="SILU"),
    Case(64, 192, 4, epilogue="SILU", weight="BF16"),
    Case(48, 192, 6, weight="INT8"),
    Case(77, 192, 8, weight="INT8", gather=1),
    Case(48, 192, 3, weight="BF16", gather=1),
    Case(48, 192, 5, act="FP8_STATIC"),
    Case(48, 192, 5, act="FP8_DYNAMIC"),
    Case(48, 192, 5, act="FP8_DYNAMIC", input="BF16", weight="INT8"),
    Case(48, 200, 5, act="FP8_STATIC", input="BF16", weight="BF16"),
    Case(48, 192, 2, row_stride=256),
    Case(320, 192, 5, epilogue="ROPE", heads=(3, 1, 64)),
    Case(6 * 128, 192, 3, epilogue="ROPE", heads=(4, 1, 128)),
    Case(6 * 32, 192, 8, epilogue="ROPE", heads=(2, 2, 32), kv="FP8"),
    Case(320, 192, 4, epilogue="ROPE", heads=(3, 1, 64), kv="FP8", weight="BF16", act="FP8_DYNAMIC"),
    Case(96, 192, 7, epilogue="GELU", norm_offset=1),
    Case(64, 192, 4, epilogue="GELU", weight="BF16", input="BF16", bias=1),
    Case(61, 100, 5, bias=1, weight="BF16", act="FP8_DYNAMIC"),
    Case(77, 192, 8, gather=1, weight="BF16", softcap=3.0, norm_offset=1),
    Case(320, 192, 5, epilogue="ROPE", heads=(3, 1, 64), bias=1),
    Case(61, 300, 5, scale_rows=128),
    Case(77, 384, 8, scale_rows=8, gather=1),
    Case(256, 256, 7, scale_rows=64, epilogue="SILU", act="FP8_BLOCK"),
    Case(96, 300, 3, scale_rows=32, epilogue="ADD", input="BF16", act="FP8_BLOCK"),
    Case(320, 256, 5, scale_rows=64, epilogue="ROPE", heads=(3, 1, 64), act="FP8_BLOCK"),
]


def name_of(case: Case) -> str:
    return case.variants("DECODE")[1].symbol.removesuffix("_decode") + f"_t{case.tokens}"


@pytest.fixture(scope="module", autouse=True)
def _compile(level: Level) -> None:
    level.load([variant for case in [*CASES, LONG] for form in FORMS for variant in case.variants(form)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_agrees_with_float64(level: Level, case: Case, form: str) -> None:
    out, cache = case.run(level, form, workers=2)
    check(case, out, cache)


LONG = Case(77, 192, 37, weight="FP8", gather=0)


@pytest.mark.parametrize("case", [*CASES, LONG], ids=name_of)
def test_rows_do_not_depend_on_batch_form_or_workers(level: Level, case: Case) -> None:
    out, cache = case.run(level, "PREFILL")
    for form in FORMS:
        for workers in (1, 2, 3, 5):
            again, cache_again = case.run(level, form, workers)
            assert_same_bits(again, out)
            assert_same_bits(cache_again, cache)
        for start in range(0, case.tokens, 3):
            for size in (1, 2, 3, 4):
                rows = slice(start, min(start + size, case.tokens))
                alone, _ = case.run(level, form, 1, rows)
                assert_same_bits(alone, out[rows])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weight", ["FP8", "INT8"])
def test_every_weight_code_is_exact(level: Level, weight: str, form: str) -> None:
    """A row of weights that holds each code once, and activations that pick one: no rounding is allowed."""
    codes = FINITE if weight == "FP8" else np.delete(np.arange(256), 128).astype(np.uint8)
    values = E4M3[codes] if weight == "FP8" else codes.view(np.int8).astype(np.float64)
    case = Case(16, 256, len(codes), weight=weight, input="BF16")
    case.stored[:] = np.pad(np.tile(codes, (16, 1)), ((0, 0), (0, 256 - len(codes)))).ravel()
    case.x = bf16_bits(np.eye(len(codes), 256))
    case.scale[:] = 1
    out, _ = case.run(level, form)
    assert_same_bits(out[:, 5:].copy(), np.tile(values.astype(np.float32)[:, None], (1, 16)))


def test_a_row_inside_a_full_bucket_is_the_row_alone(level: Level) -> None:
    case = Case(32, 192, 512)
    full, _ = case.run(level, "PREFILL", workers=2)
    for t in (0, 1, 255, 510, 511):
        alone, _ = case.run(level, "DECODE", rows=slice(t, t + 1))
        assert_same_bits(alone, full[t : t + 1])


def test_dynamic_quantisation_of_a_zero_row_is_zero(level: Level) -> None:
    case = Case(16, 192, 2, act="FP8_DYNAMIC", input="BF16")
    case.x[0] = 0
    out, _ = case.run(level, "DECODE")
    assert not out[0, 5:].any()
    assert out[1, 5:].all()


def test_rounding_to_e4m3_is_exact_for_every_bf16_value(level: Level) -> None:
    """With a weight that is the identity and a scale of 1, the output is the rounded activation."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    bits = bits[(bits & 0x7F80) != 0x7F80].astype(np.uint16).reshape(-1, 64)
    case = Case(64, 64, len(bits), weight="BF16", input="BF16", act="FP8_STATIC")
    case.stored[:] = bf16_bits(np.eye(64)).view(np.uint8).ravel()
    case.x = bits
    case.input_scale = 1.0
    out, _ = case.run(level, "PREFILL")
    expected = round_e4m3(bf16_values(bits))
    assert np.array_equal(out[:, 5:], expected)
