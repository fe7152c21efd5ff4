"""Turns a program into a GPU's launches: seven a layer, for decode and prefill alike.

norm (+ quantise), qkv (+ norms of heads + RoPE + KV write), attention (+ quantise), o (+ residual), norm (+ quantise),
gate/up (+ SiLU-mul + quantise), down (+ residual). Where a block's result has a norm of its own, the norm that follows
adds it to the residual stream. Dynamic per-token scales need the largest value of a whole row, which the
blocks of one launch only have when all are done: attention and SiLU-mul collect it by atomic maxima, and the linear
layer that follows quantises as it loads; with many tokens, where that would be done over and over, a launch of its own
does it once.

Ranks that share the model store their partial results, and the launch of the norm that follows sums them: seven a layer
again. The head's logits are gathered, so that all ranks sample the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from paiton_aot.program import (
    AllReduce,
    Attention,
    Embed,
    GatedMul,
    Linear,
    Op,
    Program,
    RmsNorm,
    RmsNormAdd,
    RopeKvWrite,
)
from paiton_aot.targets.draft import Bucket, Io, Kv, RankTimes, Reference, Scratch, Weight
from paiton_aot.targets.gpu.comm import PARTIAL, Collectives, Sum
from paiton_aot.targets.gpu.draft import GpuDraft
from paiton_aot.targets.gpu.operands import (
    Activation,
    head_norm_operands,
    input_scale,
    rope_value,
    row_elements,
    score_constants,
    weight_operands,
)
from paiton_aot.targets.gpu.sampling import draft_by_name
from paiton_aot.targets.shape import Shape
from paiton_artifacts.errors import UnsupportedShapeError
from paiton_artifacts.plan import Access
from paiton_artifacts.schema import Tensor
from paiton_kernels.gpu.attention import ATTENTION
from paiton_kernels.gpu.embed import EMBED
from paiton_kernels.gpu.linear import LINEAR
from paiton_kernels.gpu.linear_shape import ELEMENT_BYTES
from paiton_kernels.gpu.norm import NORM
from paiton_kernels.gpu.quantize import QUANTIZE
from paiton_kernels.gpu.rope_table import ROPE_TABLE
from paiton_kernels.gpu.sample import SAMPLE_CHAIN
from paiton_kernels.gpu.sample_history import HISTORY
from paiton_kernels.gpu.schedule import SCHEDULE
from paiton_kernels.gpu.spec import Constant, GpuKernelSpec, Step

QUANTIZE_TOKENS = 64
"""Up to this many tokens a linear layer quantises its input as it loads; beyond, a launch does it once for all."""

_GATES = {"silu": "SILU", "gelu_tanh": "GELU"}
_NO_HEADS: dict[str, Constant] = {"Q_HEADS": 0, "KV_HEADS": 0, "HEAD_DIM": 0, "KV": "BF16"}


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
        self.lists: dict[tuple[tuple[str, Constant], ...], str] = {}  # work lists, by constants of attention
        self.collectives = Collectives(shape, self.step) if shape.tp > 1 else None
        self.sum: Sum | None = None  # of partial results that are still to be summed over ranks
        self.added: RmsNormAdd | None = None  # what the next norm adds to the residual stream in front of it

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
            self.drafts.append(draft_by_name(spec, self.shape, self.rows_step))
        return self.drafts

    def history(self) -> list[GpuDraft]:
        """Returns the launches that load what penalties count of one request."""
        self.drafts.append(draft_by_name(HISTORY, self.shape, self.rows_step))
        return self.drafts

    def _match(self, ops: list[Op]) -> int:
        """Emits the launches of the first ops and returns how many ops they cover."""
        match ops:
            case [Embed() as op, AllReduce(), *_]:
                self._embed(op)
                return 2
            case [RmsNorm() as norm, Linear() as op, RopeKvWrite() as rope, *_]:
                self._linear_rope(norm, op, rope)
                return 3
            case [Attention() as op, Linear() as projection, AllReduce() as reduce, *_]:
                self._residual(projection, self._attention(op, projection), reduce)
                return 3
            case [RmsNorm() as norm, Linear() as op, GatedMul() as gate, Linear() as down, AllReduce() as reduce, *_]:
                self._residual(down, self._gated(norm, op, gate, down), reduce)
                return 5
            case [RmsNormAdd() as added, RmsNorm() as norm, *_] if added.offset == norm.offset:
                self.added = added
                return 1
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
        work_list: str = "",
    ) -> None:
        bound: dict[str, Reference] = dict(references)
        if any(arg.name == "counts" for arg in spec.args):
            bound["counts"] = Io("counts")
        draft = GpuDraft(spec, constants, step or self.step, bound, scalars or {}, layer, work_list=work_list)
        self.drafts.append(draft)

    def _value(self, name: str, row_bytes: int, access: Access, rows: int | None = None) -> Scratch:
        return Scratch(name, (self.bucket.tokens if rows is None else rows) * row_bytes, access)

    def _x(self, access: Access) -> Scratch:
        return self._value("x", self.shape.hidden * 4, access)

    def _logits(self, access: Access) -> Io:
        return Io("logits", access)

    def _prologue(self) -> None:
        """Emits what every layer reads: tables of cosines and sines, and work lists of attention."""
        head_dim, ops = self.shape.head_dim, self.program.ops
        for name in dict.fromkeys(op.inv_freq for op in ops if isinstance(op, RopeKvWrite)):
            references: dict[str, Reference] = {
                "positions": Io("positions"),
                "inv_freq": Weight(name),
                "out": self._value(rope_value(name), head_dim * 4, Access.WRITE),
            }
            self._emit(ROPE_TABLE, {"HEAD_DIM": head_dim}, references)
        # A list is made for the tiles of one kernel of attention, and within the windows of its layers.
        for op, projection in pairwise(ops):
            if isinstance(op, Attention) and isinstance(projection, Linear):
                constants = self._attention_constants(op, projection)
                if self._work_list(constants) is None:
                    name = f"_{len(self.lists)}" if self.lists else ""
                    self.lists[tuple(constants.items())] = name
                    known = {name: constant for name, constant in constants.items() if name in SCHEDULE.constants}
                    steps: dict[str, Reference] = {name: Io(name) for name in ("query_start", "positions")}
                    self._emit(SCHEDULE, known, steps, work_list=name)

    def _attention_constants(self, op: Attention, projection: Linear) -> dict[str, Constant]:
        constants, _, _ = self._produce(op.out, projection, self.shape.q_heads * self.shape.head_dim, "")
        return {**self._heads(), **constants, **score_constants(op)}

    def _work_list(self, constants: Mapping[str, Constant]) -> str | None:
        """Returns which work list an attention with these constants reads; None if none was made yet."""
        return self.lists.get(tuple(constants.items()))

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
        constants: dict[str, Constant] = {"HIDDEN": self.shape.hidden, "ROW_STRIDE": row_elements(table)}
        if op.scale != 1.0:
            constants["SCALE"] = op.scale
        if self.collectives is not None:
            references |= {"out": self._partial(Access.WRITE), "first_row": RankTimes(table.shape[0])}
            constants["ROWS"] = table.shape[0]
            self.sum = Sum(self._x(Access.WRITE), add=False, layer=op.layer)
        self._emit(EMBED, constants, references)

    def _norm(self, norm: RmsNorm, consumer: Linear, *, clear: str = "") -> Activation:
        """Emits a norm and returns what it leaves for the linear layer that consumes it."""
        wanted = "NONE" if norm.gather else self._scale_of(consumer)
        scale = "NONE" if wanted == "GROUP" else wanted
        rows, step = (self.bucket.requests, self.rows_step) if norm.gather else (self.bucket.tokens, self.step)
        storage = "FP32" if wanted == "GROUP" else "BF16" if scale == "NONE" else "FP8"
        width = ELEMENT_BYTES[storage]
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
        if norm.offset:
            constants["OFFSET"] = norm.offset
        if self.added is not None:
            constants["PART"] = 1
            references["part"] = self._value(self.added.part, self.shape.hidden * 4, Access.READ)
            references["part_weight"] = Weight(self.added.weight)
            if not norm.gather:
                references["x"] = self._x(Access.READ | Access.WRITE)
            self.added = None
        self._emit(NORM, constants, references, {"eps": self.shape.eps}, layer=norm.layer, step=step)
        if self.collectives is not None and self.sum is not None:
            self.drafts[-1] = self.collectives.all_reduce_norm(self.sum, self.drafts[-1])
            self.sum = None
        return Activation(storage, wanted, left)

    def _scale_of(self, consumer: Linear) -> str:
        return input_scale(self.tensors[consumer.weight], self.program.activations)

    def _linear_rope(self, norm: RmsNorm, op: Linear, rope: RopeKvWrite) -> None:
        shape = self.shape
        layer = op.layer if op.layer is not None else 0
        source = self._norm(norm, op, clear="attention_amax" if self.program.activations == "fp8-dynamic" else "")
        references: dict[str, Reference] = {
            "out": self._value(rope.out, shape.q_heads * shape.head_dim * 2, Access.WRITE),
            "rope": self._value(rope_value(rope.inv_freq), shape.head_dim * 4, Access.READ),
            "positions": Io("positions"),
            "request_of": Io("request_of"),
            **self._cache(layer, Access.WRITE),
        }
        norms, weights = head_norm_operands(rope)
        constants = {**self._heads(), "EPILOGUE": "ROPE", "OUT": "BF16", **norms}
        scalars = {**self._strides(), **({"norm_eps": shape.eps} if norms else {})}
        self._linear(op, source, {**references, **weights}, constants, scalars)

    def _attention(self, op: Attention, projection: Linear) -> Activation:
        shape = self.shape
        width = shape.q_heads * shape.head_dim
        layer = op.layer if op.layer is not None else 0
        _, references, left = self._produce(op.out, projection, width, "attention_amax")
        references |= {
            "q": self._value(op.q, width * 2, Access.READ),
            "positions": Io("positions"),
            **self._cache(layer, Access.READ),
        }
        scalars = {"softmax_scale": op.scale or shape.head_dim**-0.5, **self._strides()}
        constants = self._attention_constants(op, projection)
        items = self._work_list(constants) or ""
        self._emit(ATTENTION, constants, references, scalars, layer=op.layer, work_list=items)
        return self._quantized(projection, left, width)

    def _gated(self, norm: RmsNorm, op: Linear, gate: GatedMul, down: Linear) -> Activation:
        source = self._norm(norm, op, clear="silu_amax" if self.program.activations == "fp8-dynamic" else "")
        constants, references, left = self._produce(gate.out, down, self.shape.intermediate, "silu_amax")
        constants["EPILOGUE"] = _GATES[gate.activation]
        self._linear(op, source, references, {**_NO_HEADS, **constants}, {})
        return self._quantized(down, left, self.shape.intermediate)

    def _produce(
        self, out: str, consumer: Linear, width: int, amax: str
    ) -> tuple[dict[str, Constant], dict[str, Reference], Activation]:
        """How a launch hands its result to a linear layer: constants OUT and AMAX, arguments, and what it leaves."""
        scale = self._scale_of(consumer)
        row_bytes = width if scale == "TENSOR" else 2 * width
        references: dict[str, Reference] = {"out": self._value(out, row_bytes, Access.WRITE)}
        left: dict[str, Reference] = {"a": self._value(out, row_bytes, Access.READ)}
        if scale == "TENSOR":
            references["out_scale"] = left["a_scale"] = Weight(f"{consumer.weight}.input_scale")
            return {"OUT": "FP8", "AMAX": 0}, references, Activation("FP8", "TENSOR", left)
        if scale == "ROW":
            references["out_amax"] = self._value(amax, 4, Access.READ | Access.WRITE)
            left["a_scale"] = self._value(amax, 4, Access.READ)
            return {"OUT": "BF16", "AMAX": 1}, references, Activation("BF16", "AMAX", left)
        return {"OUT": "BF16", "AMAX": 0}, references, Activation("BF16", scale, left)

    def _quantized(self, consumer: Linear, source: Activation, width: int) -> Activation:
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
        return Activation("FP8", "ROW", left)

    def _residual(self, op: Linear, source: Activation, reduce: AllReduce) -> None:
        """Adds a row-parallel layer's result to the residual stream; that of all ranks with the norm that follows.

        Where it is not added yet, because it goes through a norm first, it is left as a value of its own.
        """
        if not reduce.add:
            whole = self._value(reduce.out, self.shape.hidden * 4, Access.WRITE)
            self._store_f32(op, source, whole if self.collectives is None else self._partial(Access.WRITE))
            if self.collectives is not None:
                self.drafts.append(self.collectives.all_reduce(Sum(whole, add=False, layer=op.layer)))
            return
        out = self._x(Access.READ | Access.WRITE)
        if self.collectives is None:
            self._linear(op, source, {"out": out}, {**_NO_HEADS, "EPILOGUE": "ADD", "OUT": "FP32"}, {})
            return
        self._store_f32(op, source, self._partial(Access.WRITE))
        self.sum = Sum(out, add=True, layer=op.layer)

    def _partial(self, access: Access) -> Scratch:
        return self._value(PARTIAL, self.shape.hidden * 4, access)

    def _store_f32(self, op: Linear, source: Activation, out: Scratch) -> None:
        constants: dict[str, Constant] = {**_NO_HEADS, "EPILOGUE": "STORE", "OUT": "FP32"}
        self._linear(op, source, {"out": out}, constants, {"out_stride": self.shape.hidden})

    def _head(self, norm: RmsNorm, op: Linear) -> None:
        source = self._norm(norm, op)
        constants: dict[str, Constant] = {**_NO_HEADS, "EPILOGUE": "STORE", "OUT": "FP32", "ROWS": "LOGITS"}
        if self.collectives is None:
            scalars = {"out_stride": self.shape.logits_stride}
            self._linear(op, source, {"out": self._logits(Access.WRITE)}, constants, scalars, step=self.rows_step)
            return
        share = self.shape.vocab_share
        out = self._value("logits_share", share * 4, Access.WRITE, self.bucket.requests)
        self._linear(op, source, {"out": out}, constants, {"out_stride": share}, step=self.rows_step)
        part = self._value("logits_share", share * 4, Access.READ, self.bucket.requests)
        self.drafts.append(self.collectives.all_gather(part, self._logits(Access.WRITE), self.rows_step))

    def _linear(
        self,
        op: Linear,
        source: Activation,
        references: Mapping[str, Reference],
        constants: Mapping[str, Constant],
        scalars: Mapping[str, int | float],
        step: Step | None = None,
    ) -> None:
        known, weights = weight_operands(op, self.tensors)
        bound: dict[str, Reference] = {**source.references, **references, **weights}
        full: dict[str, Constant] = {
            **known,
            "ROWS": "TOKENS",
            "A": source.storage,
            "A_SCALE": source.scale,
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
