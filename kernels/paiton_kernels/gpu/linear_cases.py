"""Small launches of ``linear`` in every mode that plans use, with their results in float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paiton_kernels.gpu.case_rows import within
from paiton_kernels.gpu.devices import DEFAULT_PROFILES, PROFILES, Target
from paiton_kernels.gpu.linear_shape import OPTIONAL, SCALE_COLUMNS, workspace
from paiton_kernels.gpu.linear_space import space
from paiton_kernels.gpu.linear_tile import scale_stride
from paiton_kernels.gpu.spec import Case, Config, Constant, Step
from paiton_kernels.linear import gelu_mul, kv_slots, linear, rotate, silu_mul, soft_cap
from paiton_kernels.numeric_formats import E4M3_MAX, round_bf16, round_e4m3
from paiton_kernels.pack import activations
from paiton_kernels.spec import KV_BLOCK_TOKENS

Array = NDArray[Any]

BF16 = {"A": "BF16", "A_SCALE": "NONE", "WEIGHT": "BF16"}
INT8 = {"A": "BF16", "A_SCALE": "NONE", "WEIGHT": "INT8"}
FP8_WEIGHT = {"A": "BF16", "A_SCALE": "NONE", "WEIGHT": "FP8"}
STATIC = {"A": "FP8", "A_SCALE": "TENSOR", "WEIGHT": "FP8"}
ROW = {"A": "FP8", "A_SCALE": "ROW", "WEIGHT": "FP8"}
AMAX = {"A": "BF16", "A_SCALE": "AMAX", "WEIGHT": "FP8"}

BLOCK: dict[str, Constant] = {**FP8_WEIGHT, "SCALE_ROWS": 128}
GROUP: dict[str, Constant] = {"A": "BF16", "A_SCALE": "GROUP", "WEIGHT": "FP8", "SCALE_ROWS": 128}

STORE: dict[str, Constant] = {"EPILOGUE": "STORE", "OUT": "FP32"}
LOGITS: dict[str, Constant] = {**STORE, "ROWS": "LOGITS"}
ADD: dict[str, Constant] = {"EPILOGUE": "ADD", "OUT": "FP32"}
SILU: dict[str, Constant] = {"EPILOGUE": "SILU", "OUT": "BF16"}
SILU_AMAX: dict[str, Constant] = {**SILU, "AMAX": 1}
SILU_FP8: dict[str, Constant] = {"EPILOGUE": "SILU", "OUT": "FP8"}
ROPE: dict[str, Constant] = {"EPILOGUE": "ROPE", "OUT": "BF16", "Q_HEADS": 3, "KV_HEADS": 1, "HEAD_DIM": 32}
ROPE_FP8: dict[str, Constant] = {**ROPE, "KV": "FP8"}
CAPPED: dict[str, Constant] = {**LOGITS, "SOFTCAP": 30.0}
GELU: dict[str, Constant] = {"EPILOGUE": "GELU", "OUT": "BF16"}
GELU_FP8: dict[str, Constant] = {"EPILOGUE": "GELU", "OUT": "FP8"}
HEAD_NORM: dict[str, Constant] = {**ROPE, "HEAD_NORM": 1}

DEFAULTS: dict[str, Constant] = {
    "ROWS": "TOKENS",
    "AMAX": 0,
    "Q_HEADS": 0,
    "KV_HEADS": 0,
    "HEAD_DIM": 0,
    "KV": "BF16",
    **OPTIONAL,
}
NORM_EPS = 1e-5
_OUT_PADDING = 8
"""Elements between rows of STORE's output."""


def codes_of(values: Array) -> Array:
    """Returns the e4m3fn codes of values that e4m3fn can hold; zeros are positive, as every target writes them."""
    return np.where(values == 0, 0, values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)).astype(np.uint8)


class Inputs:
    """Operands of a product, and what it is in float64.

    Args:
        constants: all constants of `linear` but those of heads and epilogues.
        count: real rows of activations.
        bucket: rows of activations.
        seed: of the random values.

    Attributes:
        arrays: by argument name.
        product: f64[count][N].
    """

    def __init__(self, constants: Mapping[str, Constant], count: int, bucket: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.arrays: dict[str, Array] = {}
        n, k, stride = (int(constants[name]) for name in ("N", "K", "ROW_STRIDE"))
        weight, scale = self._weight(str(constants["WEIGHT"]), n, stride)
        if constants["SCALE_ROWS"]:
            weight, scale = self._scaled_blocks(weight[:, :k], int(constants["SCALE_ROWS"])), None
        x, x_scale = self._activations(str(constants["A"]), str(constants["A_SCALE"]), bucket, k)
        self.product = linear(x[:count], x_scale[:count], weight[:, :k], scale)
        if constants["BIAS"]:
            self.arrays["bias"] = (self.random.standard_normal(n) * 2).astype(np.float32)
            self.product += self.arrays["bias"]

    def _scaled_blocks(self, weight: Array, rows: int) -> Array:
        """Gives every block of weights a scale, and returns the weights that they make."""
        n, k = weight.shape
        scale = (self.random.uniform(0.2, 2, (-(-n // rows), scale_stride(k))) / 64).astype(np.float32)
        self.arrays["scale"] = scale
        spread = np.repeat(np.repeat(scale.astype(np.float64), rows, 0), SCALE_COLUMNS, 1)
        return np.asarray(weight * spread[: weight.shape[0], : weight.shape[1]])

    def _weight(self, storage: str, n: int, stride: int) -> tuple[Array, Array | None]:
        """Makes the weights, padding included: the padding must not matter, so it is large."""
        values = self.random.standard_normal((n, stride))
        if storage == "BF16":
            self.arrays["weight"] = (values / 8).astype(ml_dtypes.bfloat16)
            return self.arrays["weight"].astype(np.float64), None
        scale = (self.random.uniform(0.5, 1.5, n) / 64).astype(np.float32)
        self.arrays["scale"] = scale
        if storage == "INT8":
            stored = np.clip(np.rint(values * 40), -127, 127)
            self.arrays["weight"] = stored.astype(np.int8)
        else:
            stored = round_e4m3(values * 20)
            self.arrays["weight"] = codes_of(stored)
        return stored, scale.astype(np.float64)

    def _activations(self, storage: str, a_scale: str, bucket: int, k: int) -> tuple[Array, Array]:
        values = round_bf16(self.random.standard_normal((bucket, k)) * self.random.uniform(0.1, 4, (bucket, 1)))
        if a_scale in ("NONE", "AMAX", "GROUP"):
            self.arrays["a"] = values.astype(np.float32 if storage == "FP32" else ml_dtypes.bfloat16)
        if a_scale == "NONE":
            return values, np.ones(bucket)
        if a_scale == "GROUP":
            groups = np.zeros((bucket, -(-k // SCALE_COLUMNS) * SCALE_COLUMNS))
            groups[:, :k] = values
            x, scale, _ = _quantized(groups.reshape(-1, SCALE_COLUMNS))
            return (x * scale[:, None]).reshape(bucket, -1)[:, :k], np.ones(bucket)
        if a_scale == "AMAX":
            x, x_scale, self.arrays["a_scale"] = _quantized(values)
            return x, x_scale
        if a_scale == "TENSOR":
            static = np.float32(1 / 60)
            x, x_scale = activations(values, act="FP8_STATIC", input_scale=float(static))
            self.arrays["a_scale"] = np.array([static])
        else:
            x, x_scale = activations(values, act="FP8_DYNAMIC")
            x_scale = x_scale.astype(np.float32).astype(np.float64)
            self.arrays["a_scale"] = x_scale.astype(np.float32)
        self.arrays["a"] = codes_of(x)
        return x, x_scale


def _quantized(values: Array) -> tuple[Array, Array, Array]:
    """Returns rows in e4m3, what they are multiplied by, and their largest magnitudes.

    In the kernel's f32 arithmetic: a sum shows every tie that is rounded the other way.
    """
    largest: Array = np.abs(values).max(axis=1).astype(np.float32)
    scale = largest / np.float32(E4M3_MAX)
    return round_e4m3(values.astype(np.float32) * (1 / scale)[:, None]), scale.astype(np.float64), largest


def expected_of_gate(
    inputs: Inputs, constants: Mapping[str, Constant], bucket: int
) -> tuple[dict[str, Array], dict[str, str]]:
    """Adds the outputs of a gate to the arrays, and returns what must come out and how exactly."""
    value = round_bf16((silu_mul if constants["EPILOGUE"] == "SILU" else gelu_mul)(inputs.product))
    if constants["OUT"] == "FP8":
        scale = np.float32(np.abs(value).max() / 300)  # some values are beyond 448
        inputs.arrays |= {"out": np.zeros((bucket, value.shape[1]), np.uint8), "out_scale": np.array([scale])}
        return {"out": within(bucket, round_e4m3(value / float(scale)))}, {"out": "fp8"}
    inputs.arrays["out"] = np.zeros((bucket, value.shape[1]), ml_dtypes.bfloat16)
    expected, tolerance = {"out": within(bucket, value)}, {"out": "bf16"}
    if constants["AMAX"]:
        largest = np.abs(value).max(axis=1)
        before = np.zeros(bucket, np.float32)
        before[0] = 2 * largest[0]  # an earlier launch's, which is larger
        inputs.arrays["out_amax"] = before
        expected["out_amax"], tolerance["out_amax"] = within(bucket, np.maximum(largest, before[: len(value)])), "bf16"
    return expected, tolerance


def add_scratch(
    arrays: dict[str, Array], expected: dict[str, Array], tolerance: dict[str, str], needed: Mapping[str, int]
) -> None:
    """Adds the scratch of a launch: what is there before is no number, and semaphores are zero again behind it."""
    if not needed:
        return
    arrays["workspace"] = np.full(needed["workspace"] // 4, np.nan, np.float32)
    arrays["semaphores"] = np.zeros(needed["semaphores"], np.int32)
    expected["semaphores"], tolerance["semaphores"] = np.zeros(needed["semaphores"], np.int64), "exact"


def _norm_heads(inputs: Inputs, name: str, heads: Array, offset: float) -> Array:
    """Returns heads [tokens, heads, D] after an RMSNorm of each, with a weight that is added to the inputs."""
    weight: Array = inputs.random.uniform(0.5, 2, (int(heads.shape[-1]),)).astype(ml_dtypes.bfloat16)
    inputs.arrays[f"{name}_norm"] = weight
    root = np.sqrt(np.mean(heads**2, axis=-1, keepdims=True) + NORM_EPS)
    return np.asarray(heads / root * (weight.astype(np.float64) + offset))


def _rope(
    inputs: Inputs, constants: Mapping[str, Constant], bucket: int
) -> tuple[dict[str, Array], dict[str, str], dict[str, int]]:
    q_heads, kv_heads, dim = (int(constants[name]) for name in ("Q_HEADS", "KV_HEADS", "HEAD_DIM"))
    random, tokens, blocks = inputs.random, len(inputs.product), 9
    angle = random.uniform(-3, 3, (bucket, dim // 2))
    rope = np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    # Two requests: the second one's tokens lie in the middle of a block and go on into the next one.
    request_of = (np.arange(bucket) >= tokens // 2).astype(np.int32)
    positions = (np.where(request_of, 11 - tokens // 2, 40) + np.arange(bucket)).astype(np.int32)
    block_tables = random.permutation(blocks)[:8].reshape(2, 4).astype(np.int32)
    heads = inputs.product.reshape(tokens, q_heads + 2 * kv_heads, dim)
    q, k, v = np.split(heads, [q_heads, q_heads + kv_heads], axis=1)
    if constants["HEAD_NORM"]:
        q, k = (_norm_heads(inputs, name, x, float(constants["NORM_OFFSET"])) for name, x in (("q", q), ("k", k)))
    q, k = rotate(q, rope[:tokens].astype(np.float64)), rotate(k, rope[:tokens].astype(np.float64))
    # A block of this layer is followed by those of other layers.
    element = 2 if constants["KV"] == "BF16" else 1
    stride = (2 * kv_heads * KV_BLOCK_TOKENS * dim + 64) * element
    cache = np.full((blocks, stride // element), np.nan)
    tiles = cache[:, : 2 * kv_heads * KV_BLOCK_TOKENS * dim].reshape(blocks, 2 * kv_heads, KV_BLOCK_TOKENS, dim)
    block, place = kv_slots(positions[:tokens], request_of[:tokens], block_tables)
    if element == 1:
        k_scale, v_scale = np.float32(np.abs(k).max() / 300), np.float32(np.abs(v).max() / 500)
        inputs.arrays |= {"k_scale": np.array([k_scale]), "v_scale": np.array([v_scale])}
        k, v = round_e4m3(k / float(k_scale)), round_e4m3(v / float(v_scale))
    tiles[block, :, place] = np.concatenate([k, v], axis=1)
    storage = np.uint8 if element == 1 else ml_dtypes.bfloat16
    inputs.arrays |= {
        "out": np.zeros((bucket, q_heads * dim), ml_dtypes.bfloat16),
        "kv": np.zeros(cache.shape, storage),
        "rope": rope,
        "positions": positions,
        "request_of": request_of,
        "block_tables": block_tables,
    }
    expected = {"out": within(bucket, q.reshape(tokens, -1)), "kv": cache}
    tolerance = {"out": "bf16", "kv": "bf16" if element == 2 else "fp8"}
    return expected, tolerance, {"block_table_stride": 4, "kv_block_stride": stride}


def linear_case(
    target: Target, title: str, constants: Mapping[str, Constant], count: int, bucket: int, config: Config | None
) -> Case:
    """Returns a launch with `count` real rows in a bucket of `bucket`."""
    full: dict[str, Constant] = {**DEFAULTS, "ROW_STRIDE": constants["K"], **constants}
    inputs = Inputs(full, count, bucket, seed=sum(map(ord, title)))
    logits = full["ROWS"] == "LOGITS"
    step = Step(3 * bucket, bucket) if logits else Step(bucket, 2)
    counts = [bucket, 2, count, 0] if logits else [count, 2, 2, 0]
    inputs.arrays["counts"] = np.array(counts, np.int32)
    n = int(full["N"])
    scalars: dict[str, int | float] = {"out_stride": n + _OUT_PADDING, "block_table_stride": 0, "kv_block_stride": 0}
    scalars["norm_eps"] = NORM_EPS
    if full["EPILOGUE"] in ("SILU", "GELU"):
        expected, tolerance = expected_of_gate(inputs, full, bucket)
    elif full["EPILOGUE"] == "ROPE":
        expected, tolerance, strides = _rope(inputs, full, bucket)
        scalars |= strides
    elif full["EPILOGUE"] == "ADD":
        before = inputs.random.standard_normal((bucket, n)).astype(np.float32)
        inputs.arrays["out"] = before
        expected, tolerance = {"out": within(bucket, inputs.product + before[:count])}, {"out": "f32"}
    else:
        inputs.arrays["out"] = np.zeros((bucket, n + _OUT_PADDING), np.float32)
        cap = float(full["SOFTCAP"])
        product = soft_cap(inputs.product, cap) if cap else inputs.product
        padded = np.pad(product, ((0, 0), (0, _OUT_PADDING)), constant_values=np.nan)
        expected, tolerance = {"out": within(bucket, padded)}, {"out": "f32"}
    profile = PROFILES[DEFAULT_PROFILES[target.name]]
    chosen = config or space(full, step, profile)[0]
    add_scratch(inputs.arrays, expected, tolerance, workspace({**full, **dict(chosen.values)}, step, profile))
    return Case(title, full, step, inputs.arrays, scalars, expected, tolerance, (chosen,))


def small_config(
    target: Target,
    m: int,
    n: int,
    k: int,
    *,
    split: int = 1,
    dies: int = 1,
    group: int = 1,
    warps: int = 2,
    swap: bool = False,
) -> Config:
    """Returns a small configuration in the form that tuning chooses on a target."""
    groups = target.backend == "cuda" and int(target.arch) >= 90
    swap = groups and (swap or m < 64)
    values = {"BLOCK_M": m, "BLOCK_N": max(n, 64) if swap else n, "BLOCK_K": k, "SPLIT_K": split}
    options = {"matrix_instr_nonkdim": 16 if min(m, n) < 32 else 32} if target.backend == "hip" else {}
    return Config.of(4 if groups else warps, 2, options, GROUP_M=group, DIES=dies, SWAP=int(swap), **values)


def cases(target: Target) -> Iterator[Case]:
    """Yields every combination of input, epilogue and split of K, and the shapes that leave a tile or a loop early."""
    modes = {"bf16": BF16, "int8": INT8}
    if target.fp8:
        modes |= {"fp8_weight": FP8_WEIGHT, "static": STATIC, "row": ROW, "amax": AMAX}
    epilogues = {"store": STORE, "add": ADD, "silu": SILU, "silu_amax": SILU_AMAX, "rope": ROPE}
    if target.fp8:
        epilogues |= {"silu_fp8": SILU_FP8, "rope_fp8": ROPE_FP8}
    for number, ((mode, inputs), (epilogue, outputs)) in enumerate(itertools.product(modes.items(), epilogues.items())):
        shape: dict[str, Constant] = {"N": 160, "K": 192, **inputs, **outputs}
        if number % 2:  # 192 = 3 passes of 64, in two splits of 2 and 1; 5 of 8 tokens
            yield linear_case(
                target, f"{mode}_{epilogue}_split", shape, 5, 8, small_config(target, 16, 32, 64, split=2, dies=8)
            )
        else:
            yield linear_case(target, f"{mode}_{epilogue}", shape, 5, 8, None)
    for mode, inputs in modes.items():
        # Row padding, a tail of K in the last split, columns beyond N, more tiles than one in both directions.
        ragged: dict[str, Constant] = {"N": 104, "K": 208, "ROW_STRIDE": 224, **inputs}
        config = small_config(target, 16, 32, 64, split=3, dies=3, group=2)
        yield linear_case(target, f"{mode}_ragged_split", {**ragged, **STORE}, 35, 40, config)
        yield linear_case(
            target, f"{mode}_ragged_silu", {**ragged, **SILU}, 35, 40, small_config(target, 16, 64, 64, group=2)
        )
        yield linear_case(target, f"{mode}_logits", {**ragged, **LOGITS}, 3, 4, None)
    yield from _large_tiles(target)
    yield from _variations(target)


def _large_tiles(target: Target) -> Iterator[Case]:
    """Yields tiles of prefill's size, at least one mode of each kind, and heads of several sizes."""
    wide: dict[str, Constant] = {"N": 192, "K": 320}
    heads: dict[str, Constant] = {**ROPE, "Q_HEADS": 1, "HEAD_DIM": 64}
    modes = {"bf16": BF16, **({"static": STATIC, "amax": AMAX} if target.fp8 else {})}
    for mode, inputs in modes.items():
        large = small_config(target, 64, 128, 128, group=2, warps=4, swap=mode == "amax")
        yield linear_case(target, f"{mode}_large_add", {**wide, **inputs, **ADD}, 70, 80, large)
        large = small_config(target, 64, 128, 64, dies=8, warps=4, swap=mode == "amax")
        yield linear_case(target, f"{mode}_large_silu", {**wide, **inputs, **SILU}, 70, 80, large)
        yield linear_case(
            target,
            f"{mode}_large_rope",
            {**wide, **inputs, **heads},
            33,
            40,
            small_config(target, 32, 256, 64, warps=4),
        )
        yield linear_case(
            target, f"{mode}_one_row", {**wide, **inputs, **ADD}, 1, 1, small_config(target, 16, 64, 128, split=2)
        )
    yield linear_case(
        target, "bf16_no_rows", {**wide, **BF16, **STORE}, 0, 4, small_config(target, 16, 64, 128, split=2)
    )


def _variations(target: Target) -> Iterator[Case]:
    """Yields what architectures beyond Llama need: biases, caps, GELU, norms of heads, scales of blocks."""
    shape: dict[str, Constant] = {"N": 160, "K": 192, **BF16, "BIAS": 1}
    small = small_config(target, 16, 32, 64, split=2, dies=8)
    epilogues = {"store": STORE, "silu": SILU, "rope": ROPE, "capped": CAPPED}
    for title, outputs in epilogues.items():
        yield linear_case(target, f"bias_{title}", {**shape, **outputs}, 5, 8, small)
    yield linear_case(target, "capped", {"N": 104, "K": 208, **BF16, **CAPPED}, 3, 4, None)
    yield linear_case(target, "gelu", {"N": 160, "K": 192, **BF16, **GELU}, 5, 8, None)
    heads: dict[str, Constant] = {"K": 192, **BF16, **HEAD_NORM}
    yield linear_case(target, "head_norm", {**heads, "N": 160}, 5, 8, small)
    wide: dict[str, Constant] = {**heads, "Q_HEADS": 2, "KV_HEADS": 1, "BIAS": 1, "NORM_OFFSET": 1.0}
    tile = small_config(target, 16, 128, 64, warps=4)
    yield linear_case(target, "head_norm_wide", {**wide, "N": 256, "HEAD_DIM": 64, "BIAS": 1}, 5, 8, tile)
    yield linear_case(target, "head_norm_256", {**wide, "N": 1024, "HEAD_DIM": 256}, 3, 4, None)
    odd: dict[str, Constant] = {"K": 192, **BF16, **ROPE, "Q_HEADS": 2, "KV_HEADS": 1, "HEAD_DIM": 96, "N": 384}
    yield linear_case(target, "heads_of_96", odd, 5, 8, small_config(target, 16, 64, 64, split=2))
    yield linear_case(target, "heads_of_96_wide", odd, 33, 40, small_config(target, 32, 256, 64, warps=4))
    if not target.fp8:
        return
    yield linear_case(target, "gelu_fp8", {"N": 160, "K": 192, **STATIC, **GELU_FP8, "BIAS": 1}, 5, 8, small)
    for title, inputs in {"block": BLOCK, "group": GROUP, "group_f32": {**GROUP, "A": "FP32"}}.items():
        blocks: dict[str, Constant] = {"N": 320, "K": 400, "ROW_STRIDE": 416, **inputs}
        depth = 64 if title == "block" else 128
        split = small_config(target, 16, 32, depth, split=2, dies=3)
        yield linear_case(target, f"{title}_store", {**blocks, **STORE}, 5, 8, split)
        deep = small_config(target, 16, 64, 128, warps=2)
        yield linear_case(target, f"{title}_silu", {**blocks, **SILU, "N": 416}, 5, 8, deep)
        yield linear_case(target, f"{title}_rope", {**blocks, **ROPE, "Q_HEADS": 8, "SCALE_ROWS": 32}, 5, 8, None)
        large = small_config(target, 64, 128, 128, group=2, warps=4, swap=title != "block")
        yield linear_case(target, f"{title}_large", {**blocks, **ADD}, 70, 80, large)
