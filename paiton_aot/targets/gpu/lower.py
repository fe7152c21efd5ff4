"""Turns a program into a GPU's launches: seven a layer, for decode and prefill alike.

norm (+ quantise), qkv (+ norms of heads + RoPE + KV write), attention (+ quantise), o (+ residual), norm (+ quantise),
gate/up (+ SiLU-mul + quantise), down (+ residual). Where a block's result has a norm of its own, the norm that follows
adds it to the residual stream. Dynamic per-token scales need the largest value of a whole row, which the
blocks of one launch only have when all are done: attention and SiLU-mul collect it by atomic maxima, and the linear
layer that follows quantises as it loads; with many tokens, where that would be done over and over, a launch of its own
does it once.

A block of experts has two launches more, as `experts` says.

Ranks that share the model store their partial results, and the launch of the norm that follows sums them: seven a layer
again. The head leaves each rank with the logits of its share of the vocabulary, which sampling begins with.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from paiton_aot.program import (
    AllReduce,
    Attention,
    Embed,
    ExpertLinear,
    ExpertSum,
    GatedMul,
    Linear,
    Op,
    Program,
    RmsNorm,
    RmsNormAdd,
    RopeKvWrite,
    Route,
)
from paiton_aot.targets.draft import Bucket, Io, Kv, RankTimes, Reference, Scratch, Weight
from paiton_aot.targets.gpu.comm import LOGITS_SHARE, Sum
from paiton_aot.targets.gpu.draft import GpuDraft
from paiton_aot.targets.gpu.experts import ExpertBlock, emit_experts
from paiton_aot.targets.gpu.launches import NO_HEADS, Launches
from paiton_aot.targets.gpu.operands import (
    Activation,
    head_norm_operands,
    produced_constants,
    row_elements,
    score_constants,
)
from paiton_aot.targets.shape import Shape
from paiton_aot.targets.words import GATES
from paiton_artifacts.errors import UnsupportedShapeError
from paiton_artifacts.plan import Access
from paiton_artifacts.schema import Tensor
from paiton_kernels.gpu.attention import ATTENTION
from paiton_kernels.gpu.embed import EMBED
from paiton_kernels.gpu.rope_table import ROPE_TABLE
from paiton_kernels.gpu.schedule import SCHEDULE
from paiton_kernels.gpu.spec import Constant


class Lowering(Launches):
    """Lowers one program for one bucket; the drafts are the same for every rank."""

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], shape: Shape, bucket: Bucket) -> None:
        super().__init__(program, tensors, shape, bucket)
        self.lists: dict[tuple[tuple[str, Constant], ...], str] = {}  # work lists, by constants of attention

    def forward(self) -> list[GpuDraft]:
        """Returns the launches from token ids to logits, of the rank's share of the vocabulary."""
        self._prologue()
        ops = list(self.program.ops)
        while ops:
            del ops[: self._match(ops)]
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
                self._projected(projection, self._attention(op, projection), reduce)
                return 3
            case [RmsNorm() as norm, Linear() as op, GatedMul() as gate, Linear() as down, AllReduce() as reduce, *_]:
                self._projected(down, self._gated(norm, op, gate, down), reduce)
                return 5
            case [
                RmsNorm() as norm,
                Route() as route,
                ExpertLinear() as up,
                GatedMul() as gate,
                ExpertLinear() as down,
                ExpertSum() as total,
                AllReduce() as reduce,
                *_,
            ]:
                emit_experts(self, ExpertBlock(norm, route, up, gate, down, total, reduce))
                return 7
            case [RmsNormAdd() as added, RmsNorm() as norm, *_] if added.offset == norm.offset:
                self.added = added
                return 1
            case [RmsNorm(gather=True) as norm, Linear() as op]:
                self._head(norm, op)
                return 2
            case _:
                raise UnsupportedShapeError(
                    f"no GPU kernel covers {ops[0]} where it stands", hint="order the ops as models/decoder.py does"
                )

    def _prologue(self) -> None:
        """Emits what every layer reads: tables of cosines and sines, and work lists of attention."""
        head_dim, ops = self.shape.head_dim, self.program.ops
        for inv_freq, table in self.program.rope_tables.items():
            references: dict[str, Reference] = {
                "positions": Io("positions"),
                "inv_freq": Weight(inv_freq),
                "out": self.value(table, head_dim * 4, Access.WRITE),
            }
            self.emit(ROPE_TABLE, {"HEAD_DIM": head_dim}, references)
        # A list is made for the tiles of one kernel of attention, and within the windows of its layers.
        for op, projection in pairwise(ops):
            if isinstance(op, Attention) and isinstance(projection, Linear):
                constants = self._attention_constants(op, projection)
                if self._work_list(constants) is None:
                    name = f"_{len(self.lists)}" if self.lists else ""
                    self.lists[tuple(constants.items())] = name
                    known = {name: constant for name, constant in constants.items() if name in SCHEDULE.constants}
                    steps: dict[str, Reference] = {name: Io(name) for name in ("query_start", "positions")}
                    self.emit(SCHEDULE, known, steps, work_list=name)

    def _attention_constants(self, op: Attention, projection: Linear) -> dict[str, Constant]:
        return {**self._heads(), **produced_constants(self.scale_of(projection.weight)), **score_constants(op)}

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
            "out": self.x(Access.WRITE),
        }
        constants: dict[str, Constant] = {"HIDDEN": self.shape.hidden, "ROW_STRIDE": row_elements(table)}
        if op.scale != 1.0:
            constants["SCALE"] = op.scale
        if self.collectives is not None:
            references |= {"out": self.partial(Access.WRITE), "first_row": RankTimes(table.shape[0])}
            constants["ROWS"] = table.shape[0]
            self.sum = Sum(self.x(Access.WRITE), add=False, layer=op.layer)
        self.emit(EMBED, constants, references)

    def _linear_rope(self, norm: RmsNorm, op: Linear, rope: RopeKvWrite) -> None:
        shape = self.shape
        layer = op.layer if op.layer is not None else 0
        clear = "attention_amax" if self.program.activations == "fp8-dynamic" else ""
        source = self.norm(norm, self.scale_of(op.weight), op.weight, clear=clear)
        references: dict[str, Reference] = {
            "out": self.value(rope.out, shape.q_heads * shape.head_dim * 2, Access.WRITE),
            "rope": self.value(self.program.rope_tables[rope.inv_freq], shape.head_dim * 4, Access.READ),
            "positions": Io("positions"),
            "request_of": Io("request_of"),
            **self._cache(layer, Access.WRITE),
        }
        norms, weights = head_norm_operands(rope)
        constants = {**self._heads(), "EPILOGUE": "ROPE", "OUT": "BF16", **norms}
        scalars = {**self._strides(), **({"norm_eps": shape.eps} if norms else {})}
        self.linear(op, source, {**references, **weights}, constants, scalars)

    def _attention(self, op: Attention, projection: Linear) -> Activation:
        shape = self.shape
        width = shape.q_heads * shape.head_dim
        layer = op.layer if op.layer is not None else 0
        _, references, left = self.produce(op.out, projection.weight, width, "attention_amax")
        references |= {
            "q": self.value(op.q, width * 2, Access.READ),
            "positions": Io("positions"),
            **self._cache(layer, Access.READ),
        }
        scalars = {"softmax_scale": op.scale or shape.head_dim**-0.5, **self._strides()}
        constants = self._attention_constants(op, projection)
        items = self._work_list(constants) or ""
        self.emit(ATTENTION, constants, references, scalars, layer=op.layer, work_list=items)
        return self.quantized(projection.weight, left, width, layer=projection.layer)

    def _gated(self, norm: RmsNorm, op: Linear, gate: GatedMul, down: Linear) -> Activation:
        clear = "silu_amax" if self.program.activations == "fp8-dynamic" else ""
        source = self.norm(norm, self.scale_of(op.weight), op.weight, clear=clear)
        constants, references, left = self.produce(gate.out, down.weight, self.shape.intermediate, "silu_amax")
        constants["EPILOGUE"] = GATES[gate.activation]
        self.linear(op, source, references, {**NO_HEADS, **constants}, {})
        return self.quantized(down.weight, left, self.shape.intermediate, layer=down.layer)

    def _projected(self, op: Linear, source: Activation, reduce: AllReduce) -> None:
        """Emits the row-parallel layer at the end of a block."""

        def write(out: Scratch, *, add: bool) -> None:
            constants: dict[str, Constant] = {**NO_HEADS, "EPILOGUE": "ADD" if add else "STORE", "OUT": "FP32"}
            self.linear(op, source, {"out": out}, constants, {} if add else {"out_stride": self.shape.hidden})

        self.residual(reduce, op.layer, write)

    def _head(self, norm: RmsNorm, op: Linear) -> None:
        source = self.norm(norm, "NONE")
        constants: dict[str, Constant] = {**NO_HEADS, "EPILOGUE": "STORE", "OUT": "FP32", "ROWS": "LOGITS"}
        # The share of a rank that is alone is the whole.
        out = Io("logits" if self.collectives is None else LOGITS_SHARE, Access.WRITE)
        scalars = {"out_stride": self.shape.vocab_share}
        self.linear(op, source, {"out": out}, constants, scalars, step=self.rows_step)

    def _cache(self, layer: int, access: Access) -> dict[str, Reference]:
        references: dict[str, Reference] = {"kv": Kv(layer, access), "block_tables": Io("block_tables")}
        if self.shape.kv_cache == "fp8":
            references |= {f"{which}_scale": Weight(f"layers.{layer}.{which}_scale") for which in "kv"}
        return references

    def _strides(self) -> dict[str, int | float]:
        return {"block_table_stride": self.shape.max_blocks, "kv_block_stride": self.shape.kv_block_bytes}
