"""What kernels read and write while they are measured: operands of a step's size, with values as a model has them.

Matrix units draw less power on zeros, so that zeros would be measured too fast: contents are random. A kernel whose
arguments are not described here cannot be measured, and keeps the choice of the static ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paiton_kernels.gpu.linear_shape import ELEMENT_BYTES
from paiton_kernels.gpu.linear_tile import scale_stride
from paiton_kernels.gpu.route_shape import tiles
from paiton_kernels.gpu.routes import list_of
from paiton_kernels.gpu.schedule import SCHEDULE, schedule_config
from paiton_kernels.gpu.spec import Constant, GpuKernelSpec, GpuVariant, Step
from paiton_kernels.gpu.tuning import Request
from paiton_kernels.spec import KV_BLOCK_TOKENS

_PATTERN_ELEMENTS = 1 << 20
"""Random elements that a large operand repeats: many rows of any matrix, quickly made."""

_EMBEDDING_ROWS = 32_000
_EPSILON = 1e-5

Values = Mapping[str, Constant]


@dataclass(frozen=True, slots=True)
class Operand:
    """Device memory that a kernel is given.

    Attributes:
        size: in bytes.
        pattern: what it holds, repeated.
        streamed: comes from memory in every step (weights, the KV cache), and so shall it when it is measured; the
            rest was written shortly before and is likely cached.
    """

    size: int
    pattern: bytes = b"\0"
    streamed: bool = False


@dataclass(slots=True)
class Operands:
    """Operands of one request.

    Attributes:
        memory: pointer arguments by name; null where there is none.
        scalars: the other arguments.
        outputs: storage ("FP32", "BF16", "FP8") of what all configurations must agree on.
    """

    memory: dict[str, Operand] = field(default_factory=dict)
    scalars: dict[str, int | float] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def array(self, name: str, values: NDArray[Any]) -> None:
        """Adds an operand with these elements."""
        self.memory[name] = Operand(values.nbytes, values.tobytes())

    def floats(self, name: str, count: int, value: float) -> None:
        """Adds an f32 operand."""
        self.memory[name] = Operand(4 * count, np.float32(value).tobytes())

    def random(self, name: str, count: int, storage: str, *, spread: float = 1.0, streamed: bool = False) -> None:
        """Adds an operand of normally distributed elements."""
        generator = np.random.default_rng(len(name))
        values = (generator.standard_normal(min(count, _PATTERN_ELEMENTS)) * spread).astype(np.float32)
        self.memory[name] = Operand(count * ELEMENT_BYTES[storage], _stored(values, storage), streamed)

    def output(self, name: str, count: int, storage: str) -> None:
        """Adds an operand that the kernel writes."""
        self.memory[name] = Operand(count * ELEMENT_BYTES[storage])
        self.outputs[name] = storage


def _stored(values: NDArray[np.float32], storage: str) -> bytes:
    if storage == "FP32":
        return values.tobytes()
    if storage == "BF16":
        return values.astype(ml_dtypes.bfloat16).tobytes()
    if storage == "INT8":
        return np.clip(values * 40, -127, 127).astype(np.int8).tobytes()
    codes = np.clip(values * 32, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return np.where(codes == 0x80, 0, codes).astype(np.uint8).tobytes()  # -0 is NaN where FP8 is e4m3fnuz


def decoded(content: bytes, storage: str) -> NDArray[np.float32]:
    """Returns the elements of an output."""
    types: dict[str, Any] = {"FP8": ml_dtypes.float8_e4m3fn, "BF16": ml_dtypes.bfloat16, "FP32": np.float32}
    return np.frombuffer(content, types[storage]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Batch:
    """A step whose requests share its tokens evenly, each with `context` positions in the end."""

    step: Step

    @property
    def requests(self) -> int:
        return min(self.step.requests, self.step.tokens)

    @property
    def counts(self) -> NDArray[np.int32]:
        return np.array([self.step.tokens, self.requests, self.requests, 0], np.int32)

    @property
    def query_start(self) -> NDArray[np.int32]:
        return np.linspace(0, self.step.tokens, self.requests + 1).astype(np.int32)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Positions of each request, its new tokens included."""
        return np.maximum(np.diff(self.query_start), self.step.context).astype(np.int32)

    @property
    def request_of(self) -> NDArray[np.int32]:
        return np.repeat(np.arange(self.requests), np.diff(self.query_start)).astype(np.int32)

    @property
    def positions(self) -> NDArray[np.int32]:
        ends = zip(np.diff(self.query_start), self.lengths, strict=True)
        return np.concatenate([np.arange(length - count, length) for count, length in ends]).astype(np.int32)

    def add_cache(self, operands: Operands, values: Values) -> None:
        """Adds one layer's KV cache, its blocks in random order as after hours of serving."""
        columns = -(-int(self.lengths.max()) // KV_BLOCK_TOKENS)
        blocks = np.random.default_rng(2).permutation(self.requests * columns).astype(np.int32)
        elements = 2 * int(values["KV_HEADS"]) * KV_BLOCK_TOKENS * int(values["HEAD_DIM"])
        operands.array("block_tables", blocks.reshape(self.requests, columns))
        operands.random("kv", blocks.size * elements, str(values["KV"]), streamed=True)
        operands.scalars["block_table_stride"] = columns
        operands.scalars["kv_block_stride"] = elements * ELEMENT_BYTES[str(values["KV"])]
        for name in ("k_scale", "v_scale") if values["KV"] == "FP8" else ():
            operands.floats(name, 1, 1 / 32)


def _embed(operands: Operands, values: Values, batch: _Batch) -> None:
    tokens, hidden = batch.step.tokens, int(values["HIDDEN"])
    rows = np.random.default_rng(1).integers(0, _EMBEDDING_ROWS, tokens)
    operands.array("token_ids", rows.astype(np.int32))
    operands.random("table", _EMBEDDING_ROWS * int(values["ROW_STRIDE"]), "BF16", streamed=True)
    operands.array("last_token", np.zeros(batch.requests, np.int32))
    operands.scalars["first_row"] = 0
    operands.output("out", tokens * hidden, "FP32")


def _rope_table(operands: Operands, values: Values, batch: _Batch) -> None:
    half = int(values["HEAD_DIM"]) // 2
    operands.array("positions", batch.positions)
    operands.array("inv_freq", (500_000.0 ** -(np.arange(half) / half)).astype(np.float32))
    operands.output("out", 2 * half * batch.step.tokens, "FP32")


def _norm(operands: Operands, values: Values, batch: _Batch) -> None:
    logits = values["ROWS"] == "LOGITS"
    rows, hidden, storage = (
        batch.step.requests if logits else batch.step.tokens,
        int(values["HIDDEN"]),
        str(values["OUT"]),
    )
    operands.random("x", max(batch.step.tokens, rows) * hidden, "FP32")
    operands.array("rows", np.arange(rows, dtype=np.int32))
    operands.random("weight", hidden, "BF16")
    if values["PART"]:
        operands.random("part", max(batch.step.tokens, rows) * hidden, "FP32")
        operands.random("part_weight", hidden, "BF16")
    operands.scalars["eps"] = _EPSILON
    operands.output("out", rows * hidden, storage)
    operands.floats("out_scale", 1, 1 / 32)
    operands.floats("row_scale", rows, 0)
    operands.floats("clear", rows, 0)


def _quantize(operands: Operands, values: Values, batch: _Batch) -> None:
    tokens, width = batch.step.tokens, int(values["K"])
    operands.random("x", tokens * width, "BF16")
    operands.floats("amax", tokens, 4)
    operands.output("out", tokens * width, "FP8")
    operands.floats("row_scale", tokens, 0)


def _product(operands: Operands, values: Values, rows: int, matrices: int = 1) -> None:
    """Adds so many rows of activations, and weights: matrices below one another."""
    width, depth, weight = matrices * int(values["N"]), int(values["K"]), str(values["WEIGHT"])
    operands.random("a", rows * depth, str(values["A"]))
    if values["A_SCALE"] not in ("NONE", "GROUP"):
        operands.floats(
            "a_scale", 1 if values["A_SCALE"] == "TENSOR" else rows, 4 if values["A_SCALE"] == "AMAX" else 1 / 32
        )
    operands.random(
        "weight", width * int(values["ROW_STRIDE"]), weight, spread=0.02 if weight == "BF16" else 1, streamed=True
    )
    if weight != "BF16":
        block_rows = int(values["SCALE_ROWS"])
        operands.floats("scale", -(-width // block_rows) * scale_stride(depth) if block_rows else width, 0.02 / 32)


def _linear(operands: Operands, values: Values, batch: _Batch) -> None:
    step, width = batch.step, int(values["N"])
    rows = step.requests if values["ROWS"] == "LOGITS" else step.tokens
    epilogue, out = str(values["EPILOGUE"]), str(values["OUT"])
    _product(operands, values, rows)
    operands.floats("bias", width, 1 / 32)
    heads = int(values["Q_HEADS"]) * int(values["HEAD_DIM"])
    columns = {"SILU": width // 2, "GELU": width // 2, "ROPE": heads}.get(epilogue, width)
    operands.output("out", rows * columns, out)
    operands.scalars |= {"out_stride": columns, "block_table_stride": 0, "kv_block_stride": 0, "norm_eps": _EPSILON}
    operands.floats("out_scale", 1, 1 / 32)
    operands.floats("out_amax", step.tokens, 0)
    if epilogue == "ROPE":
        for name in ("q_norm", "k_norm"):
            operands.random(name, int(values["HEAD_DIM"]), "BF16")
        operands.random("rope", step.tokens * int(values["HEAD_DIM"]), "FP32")
        operands.array("positions", batch.positions)
        operands.array("request_of", batch.request_of)
        batch.add_cache(operands, values)


def _choices(values: Values, step: Step) -> NDArray[np.int32]:
    """Returns the experts of every token, all equally likely: i32[T][TOP_K]."""
    order = np.random.default_rng(3).random((step.tokens, int(values["EXPERTS"]))).argsort(axis=1)
    return order[:, : int(values["TOP_K"])].astype(np.int32)


def _route(operands: Operands, values: Values, batch: _Batch) -> None:
    tokens, hidden = batch.step.tokens, int(values["HIDDEN"])
    experts, entries = int(values["EXPERTS"]), tokens * int(values["TOP_K"])
    operands.random("x", tokens * hidden, "BF16")
    operands.random("router", experts * int(values["ROW_STRIDE"]), "BF16", spread=0.02, streamed=True)
    operands.output("probability", entries, "FP32")
    operands.array("expert", np.zeros(entries, np.int32))
    operands.array("routes", list_of(_choices(values, batch.step), experts))
    operands.array("histogram", np.zeros(tiles(values, batch.step) * experts, np.int32))
    operands.floats("x_scale", 1, 1 / 32)
    operands.memory["quantised"] = Operand(tokens * hidden)
    operands.floats("amax", tokens, 0)
    operands.floats("clear", entries, 0)


def _expert_linear(operands: Operands, values: Values, batch: _Batch) -> None:
    step, experts = batch.step, int(values["EXPERTS"])
    entries = step.tokens * int(values["TOP_K"])
    _product(operands, values, step.tokens if values["INPUT"] == "TOKENS" else entries, experts)
    operands.array("routes", list_of(_choices(values, step), experts))
    columns = int(values["N"]) // (1 if values["EPILOGUE"] == "STORE" else 2)
    operands.output("out", entries * columns, str(values["OUT"]))
    operands.floats("out_scale", 1, 1 / 32)
    operands.floats("out_amax", entries, 0)


def _expert_sum(operands: Operands, values: Values, batch: _Batch) -> None:
    tokens, hidden, top_k = batch.step.tokens, int(values["HIDDEN"]), int(values["TOP_K"])
    operands.random("x", tokens * top_k * hidden, "FP32")
    operands.floats("probability", tokens * top_k, 1 / top_k)
    operands.output("out", tokens * hidden, "FP32")


def _attention(operands: Operands, values: Values, batch: _Batch) -> None:
    size = batch.step.tokens * int(values["Q_HEADS"]) * int(values["HEAD_DIM"])
    operands.random("q", size, "BF16")
    operands.array("positions", batch.positions)
    operands.array("query_start", batch.query_start)
    batch.add_cache(operands, values)
    operands.scalars["softmax_scale"] = int(values["HEAD_DIM"]) ** -0.5
    operands.output("out", size, str(values["OUT"]))
    operands.floats("out_scale", 1, 1 / 32)
    operands.floats("out_amax", batch.step.tokens, 0)


_MAKERS: dict[str, Callable[[Operands, Values, _Batch], None]] = {
    "embed": _embed,
    "rope_table": _rope_table,
    "norm": _norm,
    "quantize": _quantize,
    "linear": _linear,
    "attention": _attention,
    "route": _route,
    "expert_linear": _expert_linear,
    "expert_sum": _expert_sum,
}


def measurable(spec: GpuKernelSpec) -> bool:
    """Returns whether a family's operands are known here."""
    return spec.family in _MAKERS


def operands_of(request: Request, step: Step) -> Operands:
    """Returns the operands of a request for a step of full size; scratch is not among them."""
    operands, batch = Operands(), _Batch(step)
    operands.array("counts", batch.counts)
    _MAKERS[request.spec.family](operands, dict(request.constants), batch)
    return operands


def producer_of(variant: GpuVariant) -> GpuVariant | None:
    """Returns the kernel that must have run once before a variant is measured: what makes its work list."""
    if variant.spec.family != "attention":
        return None
    constants = dict(variant.constants)
    return SCHEDULE.variant(schedule_config(variant.config), **{name: constants[name] for name in SCHEDULE.constants})
