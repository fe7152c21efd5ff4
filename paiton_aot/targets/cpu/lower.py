"""Turns a program into the cpu target's launches, fusing neighbours that one kernel computes.

Fused here: RMSNorm and activation quantisation into the linear layer that follows (decode) or into the packing of its
input (prefill); RoPE with the KV write, SiLU-mul, and the residual addition into the linear layer before them. That
leaves five launches a layer on one rank, seven with peers. Norms of q's and k's heads take one launch more; norms
between blocks and their residual connections make it seven on any number of ranks, the ranks' sums included. A mixture
of experts takes two more than an MLP; see `expert_launches`.
"""

from __future__ import annotations

from collections.abc import Mapping

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
from paiton_aot.targets.cpu.expert_launches import ExpertLaunches, ExpertOps
from paiton_aot.targets.cpu.layer_input import LayerInput, norm_offset
from paiton_aot.targets.cpu.stored_weight import StoredWeight
from paiton_aot.targets.draft import Bucket, Comm, Draft, Io, Kv, RankTimes, Reference, Scratch, Weight, WorkerScratch
from paiton_aot.targets.shape import Shape
from paiton_aot.targets.words import GATES
from paiton_artifacts.errors import UnsupportedShapeError
from paiton_artifacts.layout import align_up
from paiton_artifacts.plan import Access, LaunchFlag
from paiton_artifacts.schema import Tensor
from paiton_kernels.all_reduce import ALL_REDUCE
from paiton_kernels.attention import ATTENTION
from paiton_kernels.embed import EMBED
from paiton_kernels.history import HISTORY
from paiton_kernels.linear import DECODE_ROWS, LINEAR
from paiton_kernels.norm_add import NORM_ADD
from paiton_kernels.pack import PACK, scale_count
from paiton_kernels.rope_kv import ROPE_KV
from paiton_kernels.rope_table import ROPE_TABLE
from paiton_kernels.sample import SAMPLE
from paiton_kernels.spec import BLOCK_ELEMENTS, PACKED_ELEMENT_BYTES, KernelSpec, Variant


class Lowering:
    """Lowers one program for one bucket; the drafts are the same for every rank."""

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], shape: Shape, bucket: Bucket) -> None:
        self.program = program
        self.tensors = tensors
        self.shape = shape
        self.bucket = bucket
        self.drafts: list[Draft] = []
        self.slot = 0

    def forward(self) -> list[Draft]:
        """Returns the launches from token ids to logits."""
        for inv_freq in self.program.rope_tables:
            self._rope_table(inv_freq)
        ops = list(self.program.ops)
        while ops:
            del ops[: self._match(ops)]
        return self.drafts

    def sample(self) -> list[Draft]:
        """Returns the launches from logits to sampled tokens, state advanced; rank 0 computes them."""
        references: dict[str, Reference] = {"logits": self._logits(Access.READ), "worker_scratch": WorkerScratch()}
        flags = LaunchFlag.GROUP_BARRIER if self.shape.tp > 1 else LaunchFlag.NONE
        self._on_rank_0(SAMPLE, references, {"logits_stride": self.shape.logits_stride}, flags)
        return self.drafts

    def history(self) -> list[Draft]:
        """Returns the launches that count the tokens of a request that takes a slot, for rank 0's sampling."""
        self._on_rank_0(HISTORY, {}, {}, LaunchFlag.NONE)
        return self.drafts

    def _on_rank_0(
        self, spec: KernelSpec, references: Mapping[str, Reference], constants: Mapping[str, int], flags: LaunchFlag
    ) -> None:
        """Emits a launch whose other pointers are io fields of the same name."""
        bound = dict(references)
        for arg in spec.args:
            if arg.ctype.endswith("*") and arg.name not in bound:
                written = Access.READ | Access.WRITE if arg.ctype.startswith("mut") else Access.READ
                bound[arg.name] = Io(arg.name, written)
        variant = spec.variant(VOCAB=self.shape.vocab)
        self._emit(variant, bound, constants, flags=flags | LaunchFlag.RANK0_ONLY)

    def _match(self, ops: list[Op]) -> int:
        """Emits the launches of the first ops and returns how many ops they cover."""
        match ops:
            case [Embed() as op, AllReduce(), *_]:
                self._embed(op)
                return 2
            case [RmsNorm() as norm, Linear() as op, RopeKvWrite(q_norm="") as rope, *_]:
                self._linear_rope(norm, op, rope)
                return 3
            case [RmsNorm() as norm, Linear() as op, RopeKvWrite() as rope, *_]:
                self._linear_norm_rope(norm, op, rope)
                return 3
            case [RmsNorm() as norm, Linear() as op, GatedMul() as gated, *_]:
                self._linear_gated(norm, op, gated)
                return 3
            case [
                RmsNorm() as norm,
                Route() as route,
                ExpertLinear() as gate_up,
                GatedMul() as gated,
                ExpertLinear() as down,
                ExpertSum(),
                AllReduce(add=True) as reduce,
                *_,
            ]:
                self._experts(ExpertOps(norm, route, gate_up, gated, down), reduce)
                return 7
            case [Linear() as op, AllReduce(add=False), RmsNormAdd() as norm, *_]:
                self._linear_norm_add(op, norm)
                return 3
            case [Linear() as op, AllReduce(add=True) as reduce, *_]:
                self._linear_residual(op, reduce)
                return 2
            case [Attention() as op, *_]:
                self._attention(op)
                return 1
            case [RmsNorm(gather=True) as norm, Linear() as op]:
                self._head(norm, op)
                return 2
            case _:
                raise UnsupportedShapeError(
                    f"no cpu kernel covers {ops[0]} where it stands", hint="order the ops as models/decoder.py does"
                )

    def _emit(
        self,
        variant: Variant,
        references: Mapping[str, Reference],
        constants: Mapping[str, int | float] | None = None,
        layer: int | None = None,
        flags: LaunchFlag = LaunchFlag.NONE,
    ) -> None:
        self.drafts.append(Draft(variant, references, constants or {}, layer, flags))

    def _x(self, access: Access) -> Scratch:
        return self._f32("x", self.shape.hidden, access)

    def _rope(self, inv_freq: str, access: Access) -> Scratch:
        return Scratch(self.program.rope_tables[inv_freq], self.bucket.tokens * self.shape.head_dim * 4, access)

    def _f32(self, value: str, cols: int, access: Access) -> Scratch:
        return Scratch(value, self.bucket.tokens * cols * 4, access)

    def _bf16(self, value: str, cols: int, access: Access) -> Scratch:
        return Scratch(value, self.bucket.tokens * cols * 2, access)

    def _logits(self, access: Access) -> Comm:
        size = self.shape.max_requests * self.shape.logits_stride * 4
        return Comm(self.shape.logits_offset, size, access, rank=0)

    def _rope_table(self, inv_freq: str) -> None:
        self._emit(
            ROPE_TABLE.variant(HEAD_DIM=self.shape.head_dim),
            {
                "counts": Io("counts"),
                "positions": Io("positions"),
                "inv_freq": Weight(inv_freq),
                "out": self._rope(inv_freq, Access.WRITE),
            },
        )

    def _embed(self, op: Embed) -> None:
        table = self.tensors[op.weight]
        scaled = int(op.scale != 1.0)
        variant = EMBED.variant(
            HIDDEN=self.shape.hidden, ROWS=table.shape[0], ROW_STRIDE=table.row_stride, SCALED=scaled
        )
        out = self._x(Access.WRITE) if self.shape.tp == 1 else self._next_partial()
        references: dict[str, Reference] = {
            "counts": Io("counts"),
            "token_ids": Io("token_ids"),
            "last_token": Io("last_token"),
            "table": Weight(op.weight),
            "first_token": RankTimes(table.shape[0]),
            "out": out,
        }
        self._emit(variant, references, {"scale": op.scale} if scaled else None)
        if isinstance(out, Comm):
            self._all_reduce(out, None, add=False)

    def _next_partial(self) -> Comm:
        size = self.bucket.tokens * self.shape.hidden * 4
        offset = self.slot * self.shape.partial_bytes
        self.slot = 1 - self.slot
        return Comm(offset, size, Access.WRITE)

    def _all_reduce(self, part: Comm, layer: int | None, *, add: bool) -> None:
        tp = self.shape.tp
        mode = "ADD" if add else "STORE"
        access = Access.READ | Access.WRITE if add else Access.WRITE
        references: dict[str, Reference] = {"counts": Io("counts"), "out": self._x(access)}
        for rank in range(tp):
            references[f"part{rank}"] = Comm(part.offset, part.size, Access.READ, rank=rank)
        variant = ALL_REDUCE.variant(RANKS=tp, HIDDEN=self.shape.hidden, MODE=mode)
        self._emit(variant, references, layer=layer, flags=LaunchFlag.GROUP_BARRIER)

    def _linear_rope(self, norm: RmsNorm, op: Linear, rope: RopeKvWrite) -> None:
        shape = self.shape
        layer = op.layer if op.layer is not None else 0
        references: dict[str, Reference] = {
            "out": self._bf16(rope.out, shape.q_heads * shape.head_dim, Access.WRITE),
            "rope": self._rope(rope.inv_freq, Access.READ),
            "positions": Io("positions"),
            **self._cache(layer, Access.WRITE),
        }
        macros = {"EPILOGUE": "ROPE", **self._heads()}
        self._linear(op, LayerInput(self._x(Access.READ), norm), macros, references, self._cache_strides())

    def _linear_norm_rope(self, norm: RmsNorm, op: Linear, rope: RopeKvWrite) -> None:
        """With norms of heads, which no worker has whole, the linear layer only stores."""
        shape = self.shape
        layer = op.layer if op.layer is not None else 0
        width = self.tensors[op.weight].shape[0]
        source = LayerInput(self._x(Access.READ), norm)
        stored = {"out": self._f32(op.out, width, Access.WRITE)}
        self._linear(op, source, {"EPILOGUE": "STORE"}, stored, {"out_stride": width})
        references: dict[str, Reference] = {
            "counts": Io("counts"),
            "qkv": self._f32(op.out, width, Access.READ),
            "q_norm": Weight(rope.q_norm),
            "k_norm": Weight(rope.k_norm),
            "rope": self._rope(rope.inv_freq, Access.READ),
            "positions": Io("positions"),
            "out": self._bf16(rope.out, shape.q_heads * shape.head_dim, Access.WRITE),
            "worker_scratch": WorkerScratch(),
            **self._cache(layer, Access.WRITE),
        }
        variant = ROPE_KV.variant(NORM_OFFSET=norm_offset(rope.norm_offset), **self._heads())
        self._emit(variant, references, {"eps": shape.eps, **self._cache_strides()}, op.layer)

    def _heads(self) -> dict[str, str | int]:
        """Macros that say how many heads there are and how the cache holds them."""
        shape = self.shape
        return {
            "Q_HEADS": shape.q_heads,
            "KV_HEADS": shape.kv_heads,
            "HEAD_DIM": shape.head_dim,
            "KV": shape.kv_cache.upper(),
        }

    def _linear_gated(self, norm: RmsNorm, op: Linear, gated: GatedMul) -> None:
        width = self.shape.intermediate
        references = {"out": self._bf16(gated.out, width, Access.WRITE)}
        source = LayerInput(self._x(Access.READ), norm)
        self._linear(op, source, {"EPILOGUE": GATES[gated.activation]}, references, {"out_stride": width})

    def _linear_norm_add(self, op: Linear, norm: RmsNormAdd) -> None:
        """A block with a norm between it and its residual connection; that launch sums the ranks' parts too."""
        shape = self.shape
        source = LayerInput(self._bf16(op.x, self.tensors[op.weight].shape[1], Access.READ))
        references: dict[str, Reference] = {
            "counts": Io("counts"),
            "norm_weight": Weight(norm.weight),
            "out": self._x(Access.READ | Access.WRITE),
            "worker_scratch": WorkerScratch(),
        }
        part: Reference
        if shape.tp == 1:
            part = self._f32(norm.part, shape.hidden, Access.WRITE)
            references["part0"] = self._f32(norm.part, shape.hidden, Access.READ)
        else:
            part = self._next_partial()
            references |= {
                f"part{rank}": Comm(part.offset, part.size, Access.READ, rank=rank) for rank in range(shape.tp)
            }
        self._linear(op, source, {"EPILOGUE": "STORE"}, {"out": part}, {"out_stride": shape.hidden})
        variant = NORM_ADD.variant(RANKS=shape.tp, HIDDEN=shape.hidden, NORM_OFFSET=norm_offset(norm.offset))
        flags = LaunchFlag.GROUP_BARRIER if shape.tp > 1 else LaunchFlag.NONE
        self._emit(variant, references, {"eps": shape.eps}, norm.layer, flags)

    def _linear_residual(self, op: Linear, reduce: AllReduce) -> None:
        source = LayerInput(self._bf16(op.x, self.tensors[op.weight].shape[1], Access.READ))
        constants = {"out_stride": self.shape.hidden}
        if self.shape.tp == 1:
            references = {"out": self._x(Access.READ | Access.WRITE)}
            self._linear(op, source, {"EPILOGUE": "ADD"}, references, constants)
            return
        part = self._next_partial()
        self._linear(op, source, {"EPILOGUE": "STORE"}, {"out": part}, constants)
        self._all_reduce(part, reduce.layer, add=True)

    def _experts(self, ops: ExpertOps, reduce: AllReduce) -> None:
        launches = ExpertLaunches(ops, self.program.activations, self.tensors, self.shape, self.bucket)
        if self.shape.tp == 1:
            self.drafts += launches.drafts(self._x(Access.READ), self._x(Access.READ | Access.WRITE), add=True)
            return
        part = self._next_partial()
        self.drafts += launches.drafts(self._x(Access.READ), part, add=False)
        self._all_reduce(part, reduce.layer, add=True)

    def _head(self, norm: RmsNorm, op: Linear) -> None:
        share = self.shape.vocab_share
        source = LayerInput(self._x(Access.READ), norm)
        references: dict[str, Reference] = {"out": self._logits(Access.WRITE), "out_col": RankTimes(share)}
        constants = {"out_stride": self.shape.logits_stride}
        self._linear(op, source, {"EPILOGUE": "STORE"}, references, constants)

    def _linear(
        self,
        op: Linear,
        source: LayerInput,
        macros: Mapping[str, str | int],
        references: Mapping[str, Reference],
        constants: Mapping[str, int | float],
    ) -> None:
        weight = StoredWeight(op.weight, self.tensors)
        rows = self.bucket.requests if source.gather else self.bucket.tokens
        act = "BF16" if source.gather else weight.act(self.program.activations)
        form = "DECODE" if rows <= DECODE_ROWS else "PREFILL"
        common: dict[str, str | int] = {"K": weight.tensor.shape[1], "ACT": act, **source.macros}
        bound = dict(references)
        if form == "PREFILL":
            bound |= self._pack(op, source, common, rows)
        else:
            bound |= source.references(op.weight, act)
        bound |= {"counts": Io("counts"), "worker_scratch": WorkerScratch(), **weight.references}
        if op.bias:
            bound["bias"] = Weight(op.bias)
        shapes: dict[str, str | int] = {
            "N": weight.tensor.shape[0],
            "BIAS": int(op.bias != ""),
            "SOFTCAP": int(op.softcap > 0),
            **weight.macros,
        }
        variant = LINEAR.variant(FORM=form, **common, **shapes, **macros)
        scalars = {"eps": self.shape.eps, **constants, **weight.constants}
        if op.softcap:
            scalars["softcap"] = op.softcap
        self._emit(variant, bound, scalars, op.layer)

    def _pack(self, op: Linear, source: LayerInput, macros: Mapping[str, str | int], rows: int) -> dict[str, Reference]:
        """Emits the packing of a linear layer's input, and returns the references to what it leaves."""
        row_bytes = align_up(int(macros["K"]), BLOCK_ELEMENTS) * PACKED_ELEMENT_BYTES
        packed = Scratch("packed", rows * row_bytes, Access.WRITE)
        variant = PACK.variant(**macros)
        scales = Scratch("packed_scale", rows * scale_count(variant.macros) * 4, Access.WRITE)
        references = {
            "counts": Io("counts"),
            "packed": packed,
            "packed_scale": scales,
            "worker_scratch": WorkerScratch(),
            **source.references(op.weight, str(macros["ACT"])),
        }
        self._emit(variant, references, {"eps": self.shape.eps}, op.layer)
        return {
            "packed": Scratch("packed", packed.size, Access.READ),
            "packed_scale": Scratch("packed_scale", scales.size, Access.READ),
        }

    def _attention(self, op: Attention) -> None:
        shape = self.shape
        layer = op.layer if op.layer is not None else 0
        width = shape.q_heads * shape.head_dim
        variant = ATTENTION.variant(WINDOW=int(op.window > 0), SOFTCAP=int(op.softcap > 0), **self._heads())
        references: dict[str, Reference] = {
            "counts": Io("counts"),
            "q": self._bf16(op.q, width, Access.READ),
            "out": self._bf16(op.out, width, Access.WRITE),
            "positions": Io("positions"),
            "worker_scratch": WorkerScratch(),
            **self._cache(layer, Access.READ),
        }
        constants = {"softmax_scale": op.scale or shape.head_dim**-0.5, **self._cache_strides()}
        constants |= {"window": op.window} if op.window else {}
        constants |= {"softcap": op.softcap} if op.softcap else {}
        self._emit(variant, references, constants, op.layer)

    def _cache(self, layer: int, access: Access) -> dict[str, Reference]:
        references: dict[str, Reference] = {
            "kv": Kv(layer, access),
            "request_of": Io("request_of"),
            "block_tables": Io("block_tables"),
        }
        if self.shape.kv_cache == "fp8":
            references |= {f"{which}_scale": Weight(f"layers.{layer}.{which}_scale") for which in "kv"}
        return references

    def _cache_strides(self) -> dict[str, int | float]:
        return {"block_table_stride": self.shape.max_blocks, "kv_block_stride": self.shape.kv_block_bytes}
