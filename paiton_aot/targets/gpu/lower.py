"""Turns a program into a GPU's launches: seven a layer, for decode and prefill alike.

norm (+ quantise), qkv (+ RoPE + KV write), attention (+ quantise), o (+ residual), norm (+ quantise), gate/up
(+ SiLU-mul + quantise), down (+ residual). Dynamic per-token scales need the largest value of a whole row, which the
blocks of one launch only have when all are done: attention and SiLU-mul collect it by atomic maxima, and the linear
layer that follows quantises as it loads; with many tokens, where that would be done over and over, a launch of its own
does it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paiton_aot.program import AllReduce, Attention, Embed, GatedMul, Linear, Op, Program, RmsNorm, RopeKvWrite
from paiton_aot.targets.draft import Bucket, Comm, Io, Kv, Reference, Scratch, Weight
from paiton_aot.targets.gpu.draft import GpuDraft
from paiton_aot.targets.shape import Shape
from paiton_artifacts.errors import UnsupportedShapeError
from paiton_artifacts.layout import DTYPE_BYTES
from paiton_artifacts.plan import Access
from paiton_artifacts.schema import Tensor
from paiton_kernels.gpu.attention import ATTENTION
from paiton_kernels.gpu.embed import EMBED
from paiton_kernels.gpu.linear import LINEAR
from paiton_kernels.gpu.norm import NORM
from paiton_kernels.gpu.quantize import QUANTIZE
from paiton_kernels.gpu.rope_table import ROPE_TABLE
from paiton_kernels.gpu.sample import SAMPLE_CHAIN, SAMPLE_SCRATCH
from paiton_kernels.gpu.sample_history import HISTORY
from paiton_kernels.gpu.schedule import SCHEDULE
from paiton_kernels.gpu.spec import Constant, GpuKernelSpec, Step

QUANTIZE_TOKENS = 64
"""Up to this many tokens a linear layer quantises its input as it loads; beyond, a launch does it once for all."""

_STORAGE = {"fp8_e4m3fn": "FP8", "int8": "INT8", "bf16": "BF16"}
_NO_HEADS: dict[str, Constant] = {"Q_HEADS": 0, "KV_HEADS": 0, "HEAD_DIM": 0, "KV": "BF16"}


@dataclass(frozen=True, slots=True)
class _Activation:
    """What enters a linear layer: its storage and how it is scaled (constants of `linear`), and its arguments."""

    storage: str  # A: "BF16" or "FP8"
    scale: str  # A_SCALE
    references: Mapping[str, Reference]


class Lowering:
    """Lowers one program for one bucket; the drafts are the same for every rank."""

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], shape: Shape, bucket: Bucket) -> None:
        self.program = program
        self.tensors = tensors
        self.shape = shape
        self.bucket = bucket
        self.step = Step(bucket.tokens, bucket.requests)
        self.rows_step = Step(bucket.requests, bucket.requests)  # of launches over the rows that want logits
        self.drafts: list[GpuDraft] = []

    def forward(self) -> list[GpuDraft]:
        """Returns the launches from token ids to logits."""
        self._prologue()
        ops = list(self.program.ops)
        while ops:
            del ops[: self._match(ops)]
        return self.drafts

    def sample(self) -> list[GpuDraft]:
        """Returns the launches from logits to sampled tokens, state advanced."""
        for spec in SAMPLE_CHAIN:
            self._by_name(spec)
        return self.drafts

    def history(self) -> list[GpuDraft]:
        """Returns the launches that load what penalties count of one request."""
        self._by_name(HISTORY)
        return self.drafts

    def _by_name(self, spec: GpuKernelSpec) -> None:
        """Emits a launch whose arguments have the names of io fields; scratch is added once its size is known."""
        shape = self.shape
        references: dict[str, Reference] = {}
        for arg in spec.args:
            if arg.name == "logits":
                references[arg.name] = self._logits(Access.READ)
            elif arg.pointer and arg.name not in SAMPLE_SCRATCH:
                references[arg.name] = Io(arg.name, Access.READ | Access.WRITE)
        known: dict[str, Constant] = {"VOCAB": shape.vocab}
        scalars = {"logits_stride": shape.logits_stride}
        taken = {arg.name: scalars[arg.name] for arg in spec.args if not arg.pointer}
        self.drafts.append(
            GpuDraft(spec, {name: known[name] for name in spec.constants}, self.rows_step, references, taken)
        )

    def _match(self, ops: list[Op]) -> int:
        """Emits the launches of the first ops and returns how many ops they cover."""
        match ops:
            case [Embed() as op, AllReduce(), *_]:
                self._embed(op)
                return 2
            case [RmsNorm() as norm, Linear() as op, RopeKvWrite() as rope, *_]:
                self._linear_rope(norm, op, rope)
                return 3
            case [Attention() as op, Linear() as projection, AllReduce(add=True), *_]:
                self._attention(op, projection)
                return 3
            case [RmsNorm() as norm, Linear() as op, GatedMul() as silu, Linear() as down, AllReduce(add=True), *_]:
                self._linear_silu(norm, op, silu, down)
                return 5
            case [RmsNorm(gather=True) as norm, Linear() as op]:
                self._head(norm, op)
                return 2
            case _:
                raise UnsupportedShapeError(
                    f"no GPU kernel covers {ops[0]} where it stands", hint="order the ops as models/llama.py does"
                )

    def _emit(
        self,
        spec: GpuKernelSpec,
        constants: Mapping[str, Constant],
        references: Mapping[str, Reference],
        scalars: Mapping[str, int | float] | None = None,
        *,
        layer: int | None = None,
        step: Step | None = None,
    ) -> None:
        bound: dict[str, Reference] = dict(references)
        if any(arg.name == "counts" for arg in spec.args):
            bound["counts"] = Io("counts")
        self.drafts.append(GpuDraft(spec, constants, step or self.step, bound, scalars or {}, layer))

    def _value(self, name: str, row_bytes: int, access: Access, rows: int | None = None) -> Scratch:
        return Scratch(name, (self.bucket.tokens if rows is None else rows) * row_bytes, access)

    def _x(self, access: Access) -> Scratch:
        return self._value("x", self.shape.hidden * 4, access)

    def _logits(self, access: Access) -> Comm:
        return Comm(self.shape.logits_offset, self.shape.max_requests * self.shape.logits_stride * 4, access, rank=0)

    def _prologue(self) -> None:
        shape = self.shape
        self._emit(
            ROPE_TABLE,
            {"HEAD_DIM": shape.head_dim},
            {
                "positions": Io("positions"),
                "inv_freq": Weight("rope.inv_freq"),
                "out": self._value("rope", shape.head_dim * 4, Access.WRITE),
            },
        )
        self._emit(
            SCHEDULE,
            {name: constant for name, constant in self._heads().items() if name in SCHEDULE.constants},
            {"query_start": Io("query_start"), "positions": Io("positions")},
        )

    def _heads(self) -> dict[str, Constant]:
        shape = self.shape
        return {
            "Q_HEADS": shape.q_heads,
            "KV_HEADS": shape.kv_heads,
            "HEAD_DIM": shape.head_dim,
            "KV": shape.kv_cache.upper(),
        }

    def _embed(self, op: Embed) -> None:
        table = self.tensors[op.weight]
        references: dict[str, Reference] = {
            "token_ids": Io("token_ids"),
            "last_token": Io("last_token"),
            "table": Weight(op.weight),
            "out": self._x(Access.WRITE),
        }
        self._emit(EMBED, {"HIDDEN": self.shape.hidden, "ROW_STRIDE": _row_elements(table)}, references)

    def _norm(self, norm: RmsNorm, consumer: Linear, *, clear: str = "") -> _Activation:
        """Emits a norm and returns what it leaves for the linear layer that consumes it."""
        scale = "NONE" if norm.gather else self._scale_of(consumer)
        rows, step = (self.bucket.requests, self.rows_step) if norm.gather else (self.bucket.tokens, self.step)
        storage = "BF16" if scale == "NONE" else "FP8"
        width = 2 if storage == "BF16" else 1
        references: dict[str, Reference] = {
            "x": self._x(Access.READ),
            "weight": Weight(norm.weight),
            "out": self._value(norm.out, self.shape.hidden * width, Access.WRITE, rows),
        }
        left: dict[str, Reference] = {"a": self._value(norm.out, self.shape.hidden * width, Access.READ, rows)}
        if norm.gather:
            references["rows"] = Io("logit_rows")
        if scale == "TENSOR":
            references["out_scale"] = left["a_scale"] = Weight(f"{consumer.weight}.input_scale")
        if scale == "ROW":
            references["row_scale"] = self._value(f"{norm.out}_scale", 4, Access.WRITE)
            left["a_scale"] = self._value(f"{norm.out}_scale", 4, Access.READ)
        if clear:
            references["clear"] = self._value(clear, 4, Access.WRITE)
        constants: dict[str, Constant] = {
            "HIDDEN": self.shape.hidden,
            "ROWS": "LOGITS" if norm.gather else "TOKENS",
            "OUT": storage,
            "SCALE": scale,
            "CLEAR": int(bool(clear)),
        }
        self._emit(NORM, constants, references, {"eps": self.shape.eps}, layer=norm.layer, step=step)
        return _Activation(storage, scale, left)

    def _scale_of(self, consumer: Linear) -> str:
        """Returns how the input of a linear layer is scaled: as the program says where its weights are FP8."""
        if self.tensors[consumer.weight].dtype != "fp8_e4m3fn":
            return "NONE"
        return {"bf16": "NONE", "fp8-static": "TENSOR", "fp8-dynamic": "ROW"}[self.program.activations]

    def _linear_rope(self, norm: RmsNorm, op: Linear, rope: RopeKvWrite) -> None:
        shape = self.shape
        layer = op.layer if op.layer is not None else 0
        source = self._norm(norm, op, clear="attention_amax" if self.program.activations == "fp8-dynamic" else "")
        references: dict[str, Reference] = {
            "out": self._value(rope.out, shape.q_heads * shape.head_dim * 2, Access.WRITE),
            "rope": self._value("rope", shape.head_dim * 4, Access.READ),
            "positions": Io("positions"),
            "request_of": Io("request_of"),
            **self._cache(layer, Access.WRITE),
        }
        self._linear(op, source, references, {**self._heads(), "EPILOGUE": "ROPE", "OUT": "BF16"}, self._strides())

    def _attention(self, op: Attention, projection: Linear) -> None:
        shape = self.shape
        width = shape.q_heads * shape.head_dim
        layer = op.layer if op.layer is not None else 0
        constants, references, left = self._produce(op.out, projection, width, "attention_amax")
        references |= {
            "q": self._value(op.q, width * 2, Access.READ),
            "positions": Io("positions"),
            **self._cache(layer, Access.READ),
        }
        scalars = {"softmax_scale": shape.head_dim**-0.5, **self._strides()}
        self._emit(ATTENTION, {**self._heads(), **constants}, references, scalars, layer=op.layer)
        self._residual(projection, self._quantized(projection, left, width))

    def _linear_silu(self, norm: RmsNorm, op: Linear, silu: GatedMul, down: Linear) -> None:
        source = self._norm(norm, op, clear="silu_amax" if self.program.activations == "fp8-dynamic" else "")
        constants, references, left = self._produce(silu.out, down, self.shape.intermediate, "silu_amax")
        self._linear(op, source, references, {**_NO_HEADS, **constants, "EPILOGUE": "SILU"}, {})
        self._residual(down, self._quantized(down, left, self.shape.intermediate))

    def _produce(
        self, out: str, consumer: Linear, width: int, amax: str
    ) -> tuple[dict[str, Constant], dict[str, Reference], _Activation]:
        """How a launch hands its result to a linear layer: constants OUT and AMAX, arguments, and what it leaves."""
        scale = self._scale_of(consumer)
        row_bytes = width if scale == "TENSOR" else 2 * width
        references: dict[str, Reference] = {"out": self._value(out, row_bytes, Access.WRITE)}
        left: dict[str, Reference] = {"a": self._value(out, row_bytes, Access.READ)}
        if scale == "TENSOR":
            references["out_scale"] = left["a_scale"] = Weight(f"{consumer.weight}.input_scale")
            return {"OUT": "FP8", "AMAX": 0}, references, _Activation("FP8", "TENSOR", left)
        if scale == "ROW":
            references["out_amax"] = self._value(amax, 4, Access.READ | Access.WRITE)
            left["a_scale"] = self._value(amax, 4, Access.READ)
            return {"OUT": "BF16", "AMAX": 1}, references, _Activation("BF16", "AMAX", left)
        return {"OUT": "BF16", "AMAX": 0}, references, _Activation("BF16", "NONE", left)

    def _quantized(self, consumer: Linear, source: _Activation, width: int) -> _Activation:
        """Quantises a value with dynamic scales by a launch of its own where there are many tokens."""
        if source.scale != "AMAX" or self.bucket.tokens <= QUANTIZE_TOKENS:
            return source
        name = f"{consumer.weight.rpartition('.')[2]}_input"
        references: dict[str, Reference] = {
            "x": source.references["a"],
            "amax": source.references["a_scale"],
            "out": self._value(name, width, Access.WRITE),
            "row_scale": self._value(f"{name}_scale", 4, Access.WRITE),
        }
        self._emit(QUANTIZE, {"K": width}, references, layer=consumer.layer)
        left: dict[str, Reference] = {
            "a": self._value(name, width, Access.READ),
            "a_scale": self._value(f"{name}_scale", 4, Access.READ),
        }
        return _Activation("FP8", "ROW", left)

    def _residual(self, op: Linear, source: _Activation) -> None:
        out = {"out": self._x(Access.READ | Access.WRITE)}
        self._linear(op, source, out, {**_NO_HEADS, "EPILOGUE": "ADD", "OUT": "FP32"}, {})

    def _head(self, norm: RmsNorm, op: Linear) -> None:
        source = self._norm(norm, op)
        constants: dict[str, Constant] = {**_NO_HEADS, "EPILOGUE": "STORE", "OUT": "FP32", "ROWS": "LOGITS"}
        scalars = {"out_stride": self.shape.logits_stride}
        self._linear(op, source, {"out": self._logits(Access.WRITE)}, constants, scalars, step=self.rows_step)

    def _linear(
        self,
        op: Linear,
        source: _Activation,
        references: Mapping[str, Reference],
        constants: Mapping[str, Constant],
        scalars: Mapping[str, int | float],
        step: Step | None = None,
    ) -> None:
        weight = self.tensors[op.weight]
        bound: dict[str, Reference] = {**source.references, **references, "weight": Weight(op.weight)}
        if weight.scale:
            bound["scale"] = Weight(weight.scale)
        full: dict[str, Constant] = {
            "N": weight.shape[0],
            "K": weight.shape[1],
            "ROW_STRIDE": _row_elements(weight),
            "ROWS": "TOKENS",
            "A": source.storage,
            "A_SCALE": source.scale,
            "WEIGHT": _STORAGE[weight.dtype],
            "AMAX": 0,
            **constants,
        }
        self._emit(LINEAR, full, bound, scalars, layer=op.layer, step=step)

    def _cache(self, layer: int, access: Access) -> dict[str, Reference]:
        references: dict[str, Reference] = {"kv": Kv(layer, access), "block_tables": Io("block_tables")}
        if self.shape.kv_cache == "fp8":
            references |= {f"{which}_scale": Weight(f"layers.{layer}.{which}_scale") for which in "kv"}
        return references

    def _strides(self) -> dict[str, int | float]:
        return {"block_table_stride": self.shape.max_blocks, "kv_block_stride": self.shape.kv_block_bytes}


def _row_elements(tensor: Tensor) -> int:
    return tensor.row_stride // DTYPE_BYTES[tensor.dtype]
