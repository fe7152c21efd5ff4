"""Compiled Triton kernels in the emulator against numpy: what the compiler makes of every kind of operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import triton.language as tl
from numpy.typing import NDArray
from triton.language.extra import libdevice

from paiton_kernels.gpu.devices import Target
from tests.emulated.cdna import EmulationError
from tests.emulated.cdna.from_triton import run_triton
from tests.emulated.harness import AMD_TARGETS, ORDERS
from tests.numerics import assert_close

by_target = pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.arch)
by_order = pytest.mark.parametrize("order", ORDERS)
BF16 = ml_dtypes.bfloat16


def normal(seed: int, *shape: int, dtype: Any = np.float32, scale: float = 1.0) -> NDArray[Any]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def float8(target: Target, kind: str) -> Any:
    names = {"fp8": ("float8_e4m3fnuz", "float8_e4m3fn"), "bf8": ("float8_e5m2fnuz", "float8_e5m2")}
    return getattr(ml_dtypes, names[kind][target.arch == "gfx950"])


# ---------------------------------------------------------------------- matrix products


def _product(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, OUT: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    out: tl.constexpr = tl.int32 if OUT == "i32" else tl.float32
    total = tl.zeros((BM, BN), out)
    for start in range(0, K, BK):
        inside = start + depth < K
        left = tl.load(a + rows[:, None] * K + (start + depth)[None, :], (rows[:, None] < M) & inside[None, :], 0.0)
        right = tl.load(
            b + (start + depth)[:, None] * N + columns[None, :], inside[:, None] & (columns[None, :] < N), 0.0
        )
        total = tl.dot(left, right, total, out_dtype=out, input_precision="ieee")
    tl.store(c + rows[:, None] * N + columns[None, :], total, (rows[:, None] < M) & (columns[None, :] < N))


@by_order
@by_target
@pytest.mark.parametrize("name", ["bf16", "f16", "f32", "i8", "fp8", "bf8", "mixed 8 bits"])
def test_matrix_products(name: str, target: Target, order: str | None) -> None:
    m, n, k = 40, 50, 72
    dtypes = {"bf16": BF16, "f16": np.float16, "f32": np.float32, "i8": np.int8}
    first = dtypes.get(name) or float8(target, "bf8" if name == "bf8" else "fp8")
    second = dtypes.get(name) or float8(target, "fp8" if name == "fp8" else "bf8")
    integer = name == "i8"
    if integer:
        random = np.random.default_rng(1)
        a, b = random.integers(-128, 128, (m, k), np.int8), random.integers(-128, 128, (k, n), np.int8)
    else:
        a, b = normal(1, m, k, dtype=first), normal(2, k, n, dtype=second)
    c = np.zeros((m, n), np.int32 if integer else np.float32)
    constants = {"BM": 32, "BN": 32, "BK": 32, "OUT": "i32" if integer else "f32"}
    arguments = {"a": a, "b": b, "c": c, "M": m, "N": n, "K": k}
    run_triton(_product, target, (2, 2), arguments, constants, order=order)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    if integer:
        np.testing.assert_array_equal(c, expected)
    else:
        assert_close(c, expected, "f32")


def _scaled_product(a, a_scale, b, b_scale, c, K: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    size: tl.constexpr = 32
    a_width: tl.constexpr = K // 2 if A == "e2m1" else K
    b_width: tl.constexpr = K // 2 if B == "e2m1" else K
    rows = tl.arange(0, size)
    groups = tl.arange(0, K // 32)
    left = tl.load(a + rows[:, None] * a_width + tl.arange(0, a_width)[None, :])
    right = tl.load(b + rows[None, :] * b_width + tl.arange(0, b_width)[:, None])
    left_scale = tl.load(a_scale + rows[:, None] * (K // 32) + groups[None, :])
    right_scale = tl.load(b_scale + rows[:, None] * (K // 32) + groups[None, :])
    total = tl.dot_scaled(left, left_scale, A, right, right_scale, B)
    tl.store(c + rows[:, None] * size + rows[None, :], total)


@by_order
@pytest.mark.parametrize(("first", "second"), [("e2m1", "e2m1"), ("e4m3", "e4m3"), ("e4m3", "e2m1")])
def test_scaled_matrix_products(first: str, second: str, order: str | None) -> None:
    (target,) = (target for target in AMD_TARGETS if target.arch == "gfx950")
    random, k = np.random.default_rng(3), 128

    def operand(kind: str) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.float64]]:
        scale = random.integers(120, 134, (32, k // 32)).astype(np.uint8)
        factor = np.repeat(np.exp2(scale.astype(np.float64) - 127), 32, axis=1)
        if kind == "e4m3":
            values = random.standard_normal((32, k)).astype(ml_dtypes.float8_e4m3fn)
            return values, scale, values.astype(np.float64) * factor
        nibbles = random.integers(0, 16, (32, k)).astype(np.uint8)
        packed = nibbles[:, ::2] | nibbles[:, 1::2] << 4
        return packed, scale, nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float64) * factor

    a, a_scale, a_values = operand(first)
    b, b_scale, b_values = operand(second)
    c = np.zeros((32, 32), np.float32)
    arguments = {"a": a, "a_scale": a_scale, "b": b, "b_scale": b_scale, "c": c}
    run_triton(_scaled_product, target, (1,), arguments, {"K": k, "A": first, "B": second}, order=order)
    assert_close(c, a_values @ b_values.T, "f32")


def _attention(q, k, v, out, scale, T, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    base = tl.program_id(1).to(tl.int64) * T * D
    columns = tl.arange(0, D)
    query = tl.load(q + base + rows[:, None] * D + columns[None, :], rows[:, None] < T, 0.0)
    largest = tl.full((BM,), -float("inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    result = tl.zeros((BM, D), tl.float32)
    end = tl.minimum((tl.program_id(0) + 1) * BM, T) if CAUSAL else T
    for start in range(0, end, BN):
        keys = start + tl.arange(0, BN)
        key = tl.load(k + base + keys[None, :] * D + columns[:, None], keys[None, :] < T, 0.0)
        seen = (keys[None, :] < T) & ((rows[:, None] >= keys[None, :]) | (not CAUSAL))
        score = tl.where(seen, tl.dot(query, key) * scale, -1e30)
        new = tl.maximum(largest, tl.max(score, 1))
        weight = tl.exp2(score - new[:, None])
        shrink = tl.exp2(largest - new)
        total = total * shrink + tl.sum(weight, 1)
        value = tl.load(v + base + keys[:, None] * D + columns[None, :], keys[:, None] < T, 0.0)
        result = tl.dot(weight.to(value.dtype), value, result * shrink[:, None])
        largest = new
    tl.store(
        out + base + rows[:, None] * D + columns[None, :], (result / total[:, None]).to(query.dtype), rows[:, None] < T
    )


@by_order
@by_target
@pytest.mark.parametrize(("dtype", "causal"), [(BF16, True), (np.float16, False)], ids=["bf16", "f16"])
def test_attention(dtype: Any, causal: bool, target: Target, order: str | None) -> None:
    heads, tokens, size = 2, 75, 64
    q, k, v = (normal(seed, heads, tokens, size, dtype=dtype) for seed in (1, 2, 3))
    out = np.zeros_like(q)
    scale = math.log2(math.e) / math.sqrt(size)
    constants = {"D": size, "BM": 64, "BN": 32, "CAUSAL": causal}
    arguments = {"q": q, "k": k, "v": v, "out": out, "scale": scale, "T": tokens}
    run_triton(_attention, target, (2, heads), arguments, constants, order=order)
    scores = q.astype(np.float64) @ k.astype(np.float64).transpose(0, 2, 1) / math.sqrt(size)
    if causal:
        scores = np.where(np.tril(np.ones((tokens, tokens), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    assert_close(out, weights / weights.sum(-1, keepdims=True) @ v.astype(np.float64), "bf16")


# ---------------------------------------------------------------------- element by element


def _elementwise(x, out, n, B: tl.constexpr, OPERATION: tl.constexpr):
    places = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + places, places < n, 1.0)
    if OPERATION == "exp":
        y = tl.exp(v)
    elif OPERATION == "log":
        y = tl.log(tl.abs(v) + 1e-3)
    elif OPERATION == "silu":
        y = v * tl.sigmoid(v)
    elif OPERATION == "tanh":
        y = libdevice.tanh(v)
    elif OPERATION == "erf":
        y = libdevice.erf(v)
    elif OPERATION == "sin":
        y = tl.sin(v)
    elif OPERATION == "roots":
        y = tl.sqrt(tl.abs(v)) + tl.rsqrt(tl.abs(v) + 1)
    elif OPERATION == "round":
        y = tl.floor(v) + tl.ceil(v * 4) + libdevice.rint(v)
    elif OPERATION == "divide":
        y = v / (v * v + 1)
    elif OPERATION == "exp2":
        y = tl.exp2(v) + tl.log2(tl.abs(v) + 1) + tl.cos(v)
    tl.store(out + places, y, places < n)


ELEMENTWISE: dict[str, Callable[[NDArray[np.float64]], Any]] = {
    "exp": np.exp,
    "log": lambda v: np.log(np.abs(v) + 1e-3),
    "silu": lambda v: v / (1 + np.exp(-v)),
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf),
    "sin": np.sin,
    "roots": lambda v: np.sqrt(np.abs(v)) + 1 / np.sqrt(np.abs(v) + 1),
    "round": lambda v: np.floor(v) + np.ceil(v * 4) + np.rint(v),
    "divide": lambda v: v / (v * v + 1),
    "exp2": lambda v: 2**v + np.log2(np.abs(v) + 1) + np.cos(v),
}


@by_target
@pytest.mark.parametrize("operation", ELEMENTWISE)
def test_mathematical_functions(operation: str, target: Target) -> None:
    x, out = normal(4, 500, scale=4), np.zeros(500, np.float32)
    run_triton(_elementwise, target, (2,), {"x": x, "out": out, "n": 500}, {"B": 256, "OPERATION": operation})
    assert_close(out, ELEMENTWISE[operation](x.astype(np.float64)), "f32")


def _integers(x, y, out, n, B: tl.constexpr):
    places = tl.program_id(0) * B + tl.arange(0, B)
    a = tl.load(x + places, places < n, 1)
    b = tl.load(y + places, places < n, 1)
    result = (a // b) * 31 + (a % b) + (a >> 3) + (a ^ b) - tl.minimum(a, b) + tl.where(a > b, a & b, a | b) + a * b
    tl.store(out + places, result, places < n)


@by_target
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers(dtype: Any, target: Target) -> None:
    random, bits = np.random.default_rng(5), np.dtype(dtype).itemsize * 8
    a = random.integers(-(1 << (bits - 1)), 1 << (bits - 1) - 1, 300, dtype)
    b = random.integers(1, 1 << 20, 300).astype(dtype)
    out = np.zeros_like(a)
    run_triton(_integers, target, (2,), {"x": a, "y": b, "out": out, "n": 300}, {"B": 256})
    for x, y, found in zip(a.tolist(), b.tolist(), out.tolist(), strict=True):
        quotient = abs(x) // y * (1 if x >= 0 else -1)  # toward zero, as in C
        logic = (x & y) if x > y else (x | y)
        exact = quotient * 31 + (x - quotient * y) + (x >> 3) + (x ^ y) - min(x, y) + logic + x * y
        assert (found - exact) % (1 << bits) == 0


def _convert(x, out, n, B: tl.constexpr):
    places = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + places, tl.load(x + places, places < n).to(out.dtype.element_ty), places < n)


CONVERSIONS = [
    ("f32", "bf16"),
    ("f32", "f16"),
    ("bf16", "f32"),
    ("f16", "bf16"),
    ("f32", "i32"),
    ("i32", "f32"),
    ("f32", "fp8"),
    ("f32", "bf8"),
    ("fp8", "f32"),
    ("bf8", "f32"),
    ("bf16", "fp8"),
    ("fp8", "bf16"),
    ("fp8", "f16"),
]


@by_target
@pytest.mark.parametrize(("source", "destination"), CONVERSIONS)
def test_conversions(source: str, destination: str, target: Target) -> None:
    dtypes: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": BF16, "i32": np.int32}
    dtypes |= {kind: float8(target, kind) for kind in ("fp8", "bf8")}
    special = [0, -0.0, 1, 239, 240, -224, 2.0**-9, 2.0**-10, 3 * 2.0**-11, 1e-9]
    x = np.concatenate([normal(6, 300, scale=10), normal(7, 190, scale=1e-3), special]).astype(np.float32)
    x = np.clip(x, -240, 240).astype(dtypes[source])
    out = np.zeros(len(x), dtypes[destination])
    run_triton(_convert, target, (2,), {"x": x, "out": out, "n": len(x)}, {"B": 256})
    np.testing.assert_array_equal(out, x.astype(np.float32).astype(dtypes[destination]))


# ---------------------------------------------------------------------- across lanes and waves


def _scan(x, sums, places, ordered, n, B: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, B)
    v = tl.load(x + row * n + column, column < n, -100.0)
    tl.store(sums + row * n + column, tl.cumsum(tl.where(column < n, v, 0.0), 0), column < n)
    tl.store(places + row, tl.argmax(v, 0))
    tl.store(ordered + row * n + column, tl.sort(v, descending=True), column < n)


@by_order
@by_target
def test_scans_and_sorts(target: Target, order: str | None) -> None:
    x = normal(8, 2, 200)
    sums, ordered, places = np.zeros_like(x), np.zeros_like(x), np.zeros(2, np.int32)
    arguments = {"x": x, "sums": sums, "places": places, "ordered": ordered, "n": 200}
    run_triton(_scan, target, (2,), arguments, {"B": 256}, order=order)
    np.testing.assert_array_equal(places, x.argmax(1))
    np.testing.assert_array_equal(ordered, -np.sort(-x, axis=1))
    assert_close(sums, np.cumsum(x.astype(np.float64), axis=1), "f32")


def _count(x, total, histogram, largest, n, B: tl.constexpr):
    places = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + places, places < n, 0)
    tl.atomic_add(histogram + v, 1, places < n)
    tl.atomic_add(total, tl.sum(v.to(tl.float32), 0))
    old = tl.atomic_max(largest, tl.max(v, 0))
    tl.atomic_add(total + 1, (old >= 0).to(tl.float32))


@by_order
@by_target
def test_atomics(target: Target, order: str | None) -> None:
    x = np.random.default_rng(9).integers(0, 17, 900).astype(np.int32)
    total, histogram, largest = np.zeros(2, np.float32), np.zeros(17, np.int32), np.zeros(1, np.int32)
    arguments = {"x": x, "total": total, "histogram": histogram, "largest": largest, "n": 900}
    run_triton(_count, target, (4,), arguments, {"B": 256}, order=order)
    np.testing.assert_array_equal(histogram, np.bincount(x, minlength=17))
    assert (total.tolist(), largest.tolist()) == ([x.sum(), 4], [x.max()])


def _collatz(x, out, B: tl.constexpr):
    value = tl.sum(tl.load(x + tl.program_id(0) * B + tl.arange(0, B)), 0)
    steps = 0
    while value > 1:
        value = tl.where(value % 2 == 0, value // 2, 3 * value + 1)
        steps += 1
    tl.store(out + tl.program_id(0), steps)


@by_order
@by_target
def test_loops_of_different_lengths(target: Target, order: str | None) -> None:
    x, out = np.random.default_rng(10).integers(0, 9, (4, 128)).astype(np.int32), np.zeros(4, np.int32)
    run_triton(_collatz, target, (4,), {"x": x, "out": out}, {"B": 128}, num_warps=2, order=order)
    for start, found in zip(x.sum(1).tolist(), out.tolist(), strict=True):
        value, steps = start, 0
        while value > 1:
            value, steps = (value // 2 if value % 2 == 0 else 3 * value + 1), steps + 1
        assert found == steps


def _transpose(x, out, M, N, B: tl.constexpr):
    rows = tl.program_id(0) * B + tl.arange(0, B)
    columns = tl.arange(0, B)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    v = tl.load(x + rows[:, None] * N + columns[None, :], inside)
    tl.store(out + columns[:, None] * M + rows[None, :], tl.trans(v), tl.trans(inside))


@by_order
@by_target
@pytest.mark.parametrize("dtype", [np.float32, BF16, np.int8], ids=["f32", "bf16", "i8"])
def test_transposition(dtype: Any, target: Target, order: str | None) -> None:
    x, out = normal(11, 70, 50, dtype=dtype, scale=20), np.zeros((50, 70), dtype)
    run_triton(_transpose, target, (2,), {"x": x, "out": out, "M": 70, "N": 50}, {"B": 64}, order=order)
    np.testing.assert_array_equal(out, x.T)


def _unmasked(x, out, B: tl.constexpr):
    places = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + tl.program_id(0), tl.sum(tl.load(x + places), 0))


@by_order
@by_target
def test_a_forgotten_mask_is_found(target: Target, order: str | None) -> None:
    arguments = {"x": normal(12, 500), "out": np.zeros(2, np.float32)}
    with pytest.raises(EmulationError, match=r"workgroup 1, .*out-of-bounds .* load .* after argument 0 of 2000 bytes"):
        run_triton(_unmasked, target, (2,), arguments, {"B": 256}, order=order)
