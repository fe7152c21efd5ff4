"""Kernels at the sizes of real models, against PyTorch on the same device."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from paiton_kernels.gpu.attention import ATTENTION
from paiton_kernels.gpu.linear import LINEAR
from paiton_kernels.gpu.norm import NORM
from paiton_kernels.gpu.schedule import SCHEDULE, schedule_config
from paiton_kernels.gpu.spec import Constant, Step
from paiton_kernels.numeric_formats import e4m3_values
from tests.gpu.harness import Call, best, run_chain, tolerance_on
from tests.gpu.launcher import Gpu
from tests.numerics import assert_close

N, K = 4096, 4096
MAX_CODE = 0x7E
NO_ROPE: dict[str, Constant] = {"AMAX": 0, "Q_HEADS": 0, "KV_HEADS": 0, "HEAD_DIM": 0, "KV": "BF16"}
by_rows = pytest.mark.parametrize("rows", [1, 5, 16, 100, 300])


def codes(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Returns e4m3fn codes of any sign and exponent, without NaN and without the negative zero."""
    magnitude = random.integers(1, MAX_CODE + 1, shape)
    return (magnitude | random.integers(0, 2, shape) << 7).astype(np.uint8)


def on_device(torch: ModuleType, array: NDArray[Any]) -> Any:
    """Returns an array's values as a float64 tensor; codes of e4m3fn are decoded."""
    values = e4m3_values()[array] if array.dtype == np.uint8 else array.astype(np.float64)
    return torch.from_numpy(np.ascontiguousarray(values)).cuda()


def counts(tokens: int, requests: int = 1) -> NDArray[np.int32]:
    return np.array([tokens, requests, requests, 0], np.int32)


def stored(random: np.random.Generator, weight: str) -> NDArray[Any]:
    """Returns weights [N][K] of a storage type."""
    if weight == "FP8":
        return codes(random, (N, K))
    if weight == "INT8":
        return random.integers(-127, 128, (N, K)).astype(np.int8)
    return random.standard_normal((N, K)).astype(ml_dtypes.bfloat16)


@by_rows
@pytest.mark.parametrize("weight", ["BF16", "INT8", "FP8"])
def test_linear_with_bf16_activations_is_torch_matmul(gpu: Gpu, torch: ModuleType, weight: str, rows: int) -> None:
    if weight == "FP8" and not gpu.target.fp8:
        pytest.skip(f"{gpu.target.name} has no FP8")
    random = np.random.default_rng(rows)
    a, w = random.standard_normal((rows, K)).astype(ml_dtypes.bfloat16), stored(random, weight)
    scale = random.uniform(0.5, 2, N).astype(np.float32)
    out = np.zeros((rows, N), np.float32)
    arrays: dict[str, NDArray[Any]] = {"counts": counts(rows), "a": a, "weight": w, "out": out}
    if weight != "BF16":
        arrays["scale"] = scale
    constants: dict[str, Constant] = {
        "A": "BF16",
        "A_SCALE": "NONE",
        "WEIGHT": weight,
        "EPILOGUE": "STORE",
        "OUT": "FP32",
    }
    step = Step(rows, 1)
    call = best(LINEAR, gpu.target, step, N=N, K=K, ROW_STRIDE=K, ROWS="TOKENS", **constants, **NO_ROPE)
    found = run_chain(gpu, [call], step, arrays, linear_scalars(N))["out"]
    expected = on_device(torch, a) @ on_device(torch, w).T
    if weight != "BF16":
        expected *= on_device(torch, scale)
    assert_close(found, expected.cpu().numpy(), tolerance_on(gpu.target, LINEAR, "f32"))


def linear_scalars(stride: int) -> dict[str, int | float]:
    return {"out_stride": stride, "block_table_stride": 0, "kv_block_stride": 0, "norm_eps": 0.0}


@by_rows
def test_linear_with_fp8_activations_is_torch_scaled_mm(gpu: Gpu, torch: ModuleType, rows: int) -> None:
    if not gpu.target.fp8 or gpu.target.fp8_unit != 1:
        pytest.skip(f"PyTorch does not multiply e4m3fn on {gpu.target.name}")
    random = np.random.default_rng(rows)
    a, w = codes(random, (rows, K)), codes(random, (N, K))
    row_scale, scale = (random.uniform(0.5, 2, size).astype(np.float32) for size in (rows, N))
    out = np.zeros((rows, N), np.float32)
    arrays: dict[str, NDArray[Any]] = {
        "counts": counts(rows),
        "a": a,
        "a_scale": row_scale,
        "weight": w,
        "scale": scale,
        "out": out,
    }
    constants: dict[str, Constant] = {"A": "FP8", "A_SCALE": "ROW", "WEIGHT": "FP8", "EPILOGUE": "STORE", "OUT": "FP32"}
    step = Step(rows, 1)
    call = best(LINEAR, gpu.target, step, N=N, K=K, ROW_STRIDE=K, ROWS="TOKENS", **constants, **NO_ROPE)
    found = run_chain(gpu, [call], step, arrays, linear_scalars(N))["out"]

    def e4m3(array: NDArray[np.uint8]) -> Any:
        return torch.from_numpy(array).cuda().view(torch.float8_e4m3fn)

    expected = torch._scaled_mm(
        e4m3(a),
        e4m3(w).T,
        scale_a=torch.from_numpy(row_scale.reshape(-1, 1)).cuda(),
        scale_b=torch.from_numpy(scale.reshape(1, -1)).cuda(),
        out_dtype=torch.bfloat16,
    )
    assert_close(found, expected.double().cpu().numpy(), "bf16")


def test_silu_is_torch_silu(gpu: Gpu, torch: ModuleType) -> None:
    rows, random = 33, np.random.default_rng(0)
    a, w = random.standard_normal((rows, K)).astype(ml_dtypes.bfloat16), stored(random, "BF16")
    w = (w.astype(np.float32) / 64).astype(ml_dtypes.bfloat16)
    out = np.zeros((rows, N // 2), ml_dtypes.bfloat16)
    arrays = {"counts": counts(rows), "a": a, "weight": w, "out": out}
    constants: dict[str, Constant] = {
        "A": "BF16",
        "A_SCALE": "NONE",
        "WEIGHT": "BF16",
        "EPILOGUE": "SILU",
        "OUT": "BF16",
    }
    step = Step(rows, 1)
    call = best(LINEAR, gpu.target, step, N=N, K=K, ROW_STRIDE=K, ROWS="TOKENS", **constants, **NO_ROPE)
    found = run_chain(gpu, [call], step, arrays, linear_scalars(N // 2))["out"]
    gate, up = (on_device(torch, a) @ on_device(torch, w).T).chunk(2, dim=1)
    expected = torch.nn.functional.silu(gate) * up
    assert_close(found.astype(np.float64), expected.cpu().numpy(), "bf16")


@pytest.mark.parametrize("hidden", [576, 4096, 16384])
def test_norm_is_torch_rms_norm(gpu: Gpu, torch: ModuleType, hidden: int) -> None:
    rows, random = 70, np.random.default_rng(hidden)
    x = (random.standard_normal((rows, hidden)) * 30).astype(np.float32)
    weight = random.uniform(0.5, 2, hidden).astype(ml_dtypes.bfloat16)
    out = np.zeros((rows, hidden), ml_dtypes.bfloat16)
    step = Step(rows, 1)
    call = best(NORM, gpu.target, step, HIDDEN=hidden, ROWS="TOKENS", OUT="BF16", SCALE="NONE", CLEAR=0)
    arrays = {"counts": counts(rows), "x": x, "weight": weight, "out": out}
    found = run_chain(gpu, [call], step, arrays, {"eps": 1e-5})["out"]
    expected = torch.nn.functional.rms_norm(on_device(torch, x), (hidden,), on_device(torch, weight), 1e-5)
    assert_close(found.astype(np.float64), expected.cpu().numpy(), "bf16")


def paged(
    random: np.random.Generator, keys: list[NDArray[Any]], values: list[NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Lays histories [positions][heads][D] out in blocks of 16 positions, in random order.

    Returns:
        The cache [blocks][K and V][heads][16][D], and the block tables.
    """
    heads, head_dim = keys[0].shape[1:]
    blocks = [-(-len(history) // 16) for history in keys]
    order = random.permutation(sum(blocks))
    cache = np.zeros((sum(blocks), 2, heads, 16, head_dim), keys[0].dtype)
    tables = np.zeros((len(keys), max(blocks)), np.int32)
    for request, count in enumerate(blocks):
        mine, order = order[:count], order[count:]
        tables[request, :count] = mine
        for part, history in enumerate((keys[request], values[request])):
            whole = np.zeros((count * 16, heads, head_dim), history.dtype)
            whole[: len(history)] = history
            cache[mine, part] = whole.reshape(count, 16, heads, head_dim).swapaxes(1, 2)
    return cache, tables


@pytest.mark.parametrize("kv", ["BF16", "FP8"])
@pytest.mark.parametrize(("q_heads", "kv_heads", "head_dim"), [(9, 3, 64), (32, 8, 128), (16, 1, 128)])
@pytest.mark.parametrize(
    ("tokens", "before"),
    [((1, 1, 1), (0, 700, 5000)), ((1, 37, 1, 256), (2047, 0, 16, 500)), ((1,), (20000,))],
    ids=["decode", "mixed", "long"],
)
def test_attention_is_torch_sdpa(
    gpu: Gpu,
    torch: ModuleType,
    tokens: tuple[int, ...],
    before: tuple[int, ...],
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    kv: str,
) -> None:
    if kv == "FP8" and not gpu.target.fp8:
        pytest.skip(f"{gpu.target.name} has no FP8")
    random = np.random.default_rng(len(tokens))
    shapes = [(count + start, kv_heads, head_dim) for count, start in zip(tokens, before, strict=True)]

    def history() -> list[NDArray[Any]]:
        if kv == "FP8":
            return [random.choice(np.array([*range(0x20, 0x48), *range(0xA0, 0xC8)], np.uint8), s) for s in shapes]
        return [random.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in shapes]

    keys, values = history(), history()
    cache, tables = paged(random, keys, values)
    total, softmax_scale = sum(tokens), head_dim**-0.5
    q = random.standard_normal((total, q_heads * head_dim)).astype(ml_dtypes.bfloat16)
    k_scale, v_scale = (0.7, 1.3) if kv == "FP8" else (1.0, 1.0)
    step = Step(total, len(tokens))
    heads: dict[str, Constant] = {"Q_HEADS": q_heads, "KV_HEADS": kv_heads}
    attend = best(ATTENTION, gpu.target, step, **heads, HEAD_DIM=head_dim, KV=kv, OUT="BF16", AMAX=0)
    arrays = {
        "counts": counts(total, len(tokens)),
        "query_start": np.cumsum([0, *tokens]).astype(np.int32),
        "positions": np.concatenate(
            [start + np.arange(n) for n, start in zip(tokens, before, strict=True)], dtype=np.int32
        ),
        "q": q,
        "kv": cache,
        "block_tables": tables,
        "out": np.zeros_like(q),
        "k_scale": np.array([k_scale], np.float32),
        "v_scale": np.array([v_scale], np.float32),
    }
    scalars = {
        "kv_block_stride": cache.strides[0],
        "block_table_stride": tables.shape[1],
        "softmax_scale": softmax_scale,
    }
    chain = [Call(SCHEDULE, heads, schedule_config(attend.config)), attend]
    found = run_chain(gpu, chain, step, arrays, scalars)["out"].astype(np.float64)
    end = 0
    for request, count in enumerate(tokens):
        begin, end = end, end + count
        visible = torch.from_numpy(np.arange(len(keys[request])) <= before[request] + np.arange(count)[:, None]).cuda()
        group = q_heads // kv_heads
        expected = torch.nn.functional.scaled_dot_product_attention(
            on_device(torch, q[begin:end].reshape(count, q_heads, head_dim)).transpose(0, 1),
            on_device(torch, keys[request]).mul(k_scale).transpose(0, 1).repeat_interleave(group, dim=0),
            on_device(torch, values[request]).mul(v_scale).transpose(0, 1).repeat_interleave(group, dim=0),
            attn_mask=visible,
            scale=softmax_scale,
        )
        assert_close(found[begin:end], expected.transpose(0, 1).reshape(count, -1).cpu().numpy(), "bf16")
