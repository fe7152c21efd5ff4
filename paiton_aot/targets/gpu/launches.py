"""What the launches of one bucket are made of: values, norms, linear layers, and how one hands a value to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from paiton_aot.program import AllReduce, Linear, Program, RmsNorm, RmsNormAdd
from paiton_aot.targets.draft import Bucket, Io, Reference, Scratch, Weight
from paiton_aot.targets.gpu.comm import PARTIAL, Collectives, Sum
from paiton_aot.targets.gpu.draft import GpuDraft
from paiton_aot.targets.gpu.operands import Activation, input_scale, produced_constants, weight_operands
from paiton_aot.targets.shape import Shape
from paiton_artifacts.plan import Access
from paiton_artifacts.schema import Tensor
from paiton_kernels.gpu.linear import LINEAR
from paiton_kernels.gpu.linear_shape import ELEMENT_BYTES
from paiton_kernels.gpu.norm import NORM
from paiton_kernels.gpu.quantize import QUANTIZE
from paiton_kernels.gpu.spec import Constant, GpuKernelSpec, Step

QUANTIZE_TOKENS = 64
"""Up to this many tokens a linear layer quantises its input as it loads; beyond, a launch does it once for all."""

NO_HEADS: dict[str, Constant] = {"Q_HEADS": 0, "KV_HEADS": 0, "HEAD_DIM": 0, "KV": "BF16"}


class Write(Protocol):
    """Emits a block's last launch, whose result f32 [T][HIDDEN] replaces what `out` holds, or is added to it."""

    def __call__(self, out: Scratch, *, add: bool) -> None:
        """Args: out = the residual stream, partial sums, or a value of its own."""


class Launches:
    """The launches of a program for one bucket, as far as they are drafted; they are the same for every rank."""

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], shape: Shape, bucket: Bucket) -> None:
        self.program = program
        self.tensors = tensors
        self.shape = shape
        self.bucket = bucket
        self.step = Step(bucket.tokens, bucket.requests)
        self.rows_step = Step(bucket.requests, bucket.requests)  # of launches over the rows that want logits
        self.drafts: list[GpuDraft] = []
        self.collectives = Collectives(shape, self.step) if shape.tp > 1 else None
        self.sum: Sum | None = None  # of partial results that are still to be summed over ranks
        self.added: RmsNormAdd | None = None  # what the next norm adds to the residual stream in front of it

    def emit(
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
        """Adds a launch; `counts` is the step's where it is not given."""
        bound: dict[str, Reference] = dict(references)
        if any(arg.name == "counts" for arg in spec.args):
            bound.setdefault("counts", Io("counts"))
        draft = GpuDraft(spec, constants, step or self.step, bound, scalars or {}, layer, work_list=work_list)
        self.drafts.append(draft)

    def value(self, name: str, row_bytes: int, access: Access, rows: int | None = None) -> Scratch:
        """Returns a value in scratch, with a row for every token unless `rows` says otherwise."""
        return Scratch(name, (self.bucket.tokens if rows is None else rows) * row_bytes, access)

    def x(self, access: Access) -> Scratch:
        """Returns the residual stream."""
        return self.value("x", self.shape.hidden * 4, access)

    def partial(self, access: Access) -> Scratch:
        """Returns this rank's partial sums of the residual stream."""
        return self.value(PARTIAL, self.shape.hidden * 4, access)

    def scale_of(self, weight: str) -> str:
        """Returns how the input of a linear layer is scaled (A_SCALE, but AMAX)."""
        return input_scale(self.tensors[weight], self.program.activations)

    def norm(self, norm: RmsNorm, wanted: str, weight: str = "", *, clear: str = "") -> Activation:
        """Emits a norm and returns what it leaves for the layer that consumes it.

        Args:
            norm: what it computes.
            wanted: how the consumer's input is scaled.
            weight: the consumer's, whose static scale is used with wanted = "TENSOR".
            clear: the value of largest magnitudes that it sets to zero for a later launch, "" for none.
        """
        scale = "NONE" if wanted == "GROUP" else wanted
        rows, step = (self.bucket.requests, self.rows_step) if norm.gather else (self.bucket.tokens, self.step)
        storage = "FP32" if wanted == "GROUP" else "BF16" if scale == "NONE" else "FP8"
        width = ELEMENT_BYTES[storage]
        references: dict[str, Reference] = {
            "x": self.x(Access.READ),
            "weight": Weight(norm.weight),
            "out": self.value(norm.out, self.shape.hidden * width, Access.WRITE, rows),
        }
        left: dict[str, Reference] = {"a": self.value(norm.out, self.shape.hidden * width, Access.READ, rows)}
        if norm.gather:
            references["rows"] = Io("logit_rows")
        if scale == "TENSOR":
            references["out_scale"] = left["a_scale"] = Weight(f"{weight}.input_scale")
        if scale == "ROW":
            references["row_scale"] = self.value(f"{norm.out}_scale", 4, Access.WRITE)
            left["a_scale"] = self.value(f"{norm.out}_scale", 4, Access.READ)
        if clear:
            references["clear"] = self.value(clear, 4, Access.WRITE)
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
            references["part"] = self.value(self.added.part, self.shape.hidden * 4, Access.READ)
            references["part_weight"] = Weight(self.added.weight)
            if not norm.gather:
                references["x"] = self.x(Access.READ | Access.WRITE)
            self.added = None
        self.emit(NORM, constants, references, {"eps": self.shape.eps}, layer=norm.layer, step=step)
        if self.collectives is not None and self.sum is not None:
            self.drafts[-1] = self.collectives.all_reduce_norm(self.sum, self.drafts[-1])
            self.sum = None
        return Activation(storage, wanted, left)

    def produce(
        self, out: str, weight: str, width: int, amax: str, rows: int | None = None
    ) -> tuple[dict[str, Constant], dict[str, Reference], Activation]:
        """How a launch hands its result to the linear layer of `weight`.

        Args:
            out: the result.
            weight: of the layer that follows.
            width: elements of a row.
            amax: the value that collects the rows' largest magnitudes, where scales are dynamic.
            rows: of the result, one a token unless given.

        Returns:
            The launch's constants OUT and AMAX, its arguments, and what it leaves.
        """
        scale = self.scale_of(weight)
        row_bytes = width if scale == "TENSOR" else 2 * width
        references: dict[str, Reference] = {"out": self.value(out, row_bytes, Access.WRITE, rows)}
        left: dict[str, Reference] = {"a": self.value(out, row_bytes, Access.READ, rows)}
        constants = produced_constants(scale)
        if scale == "TENSOR":
            references["out_scale"] = left["a_scale"] = Weight(f"{weight}.input_scale")
            return constants, references, Activation("FP8", "TENSOR", left)
        if scale == "ROW":
            references["out_amax"] = self.value(amax, 4, Access.READ | Access.WRITE, rows)
            left["a_scale"] = self.value(amax, 4, Access.READ, rows)
            return constants, references, Activation("BF16", "AMAX", left)
        return constants, references, Activation("BF16", scale, left)

    def quantized(
        self,
        weight: str,
        source: Activation,
        width: int,
        *,
        layer: int | None,
        rows: int | None = None,
        counts: Reference | None = None,
    ) -> Activation:
        """Quantises a value with dynamic scales by a launch of its own where there are many tokens.

        Args:
            weight: of the layer that consumes it.
            source: the value.
            width: elements of a row.
            layer: of the decoder.
            rows: of the value, one a token unless given.
            counts: where the step's rows are counted, if they are not its tokens.
        """
        if source.scale != "AMAX" or self.bucket.tokens <= QUANTIZE_TOKENS:
            return source
        name, most = f"{weight.rpartition('.')[2]}_input", self.bucket.tokens if rows is None else rows
        references: dict[str, Reference] = {
            "x": source.references["a"],
            "amax": source.references["a_scale"],
            "out": self.value(name, width, Access.WRITE, most),
            "row_scale": self.value(f"{name}_scale", 4, Access.WRITE, most),
        }
        if counts is not None:
            references["counts"] = counts
        self.emit(QUANTIZE, {"K": width}, references, layer=layer, step=Step(most, self.bucket.requests))
        left: dict[str, Reference] = {
            "a": self.value(name, width, Access.READ, most),
            "a_scale": self.value(f"{name}_scale", 4, Access.READ, most),
        }
        return Activation("FP8", "ROW", left)

    def residual(self, reduce: AllReduce, layer: int | None, write: Write) -> None:
        """Adds a block's result to the residual stream; that of all ranks with the norm that follows.

        Where it is not added yet, because it goes through a norm first, it is left as a value of its own.

        Args:
            reduce: what becomes of the result.
            layer: of the decoder.
            write: emits the launch whose result it is.
        """
        if not reduce.add:
            whole = self.value(reduce.out, self.shape.hidden * 4, Access.WRITE)
            write(whole if self.collectives is None else self.partial(Access.WRITE), add=False)
            if self.collectives is not None:
                self.drafts.append(self.collectives.all_reduce(Sum(whole, add=False, layer=layer)))
            return
        out = self.x(Access.READ | Access.WRITE)
        if self.collectives is None:
            write(out, add=True)
            return
        write(self.partial(Access.WRITE), add=False)
        self.sum = Sum(out, add=True, layer=layer)

    def linear(
        self,
        op: Linear,
        source: Activation,
        references: Mapping[str, Reference],
        constants: Mapping[str, Constant],
        scalars: Mapping[str, int | float],
        step: Step | None = None,
    ) -> None:
        """Emits a linear layer; `constants` say what its epilogue is."""
        known, weights = weight_operands(op.weight, self.tensors)
        if op.bias:
            known["BIAS"] = 1
            weights["bias"] = Weight(op.bias)
        if op.softcap:
            known["SOFTCAP"] = op.softcap
        bound: dict[str, Reference] = {**source.references, **references, **weights}
        full: dict[str, Constant] = {
            **known,
            "ROWS": "TOKENS",
            "A": source.storage,
            "A_SCALE": source.scale,
            "AMAX": 0,
            **constants,
        }
        self.emit(LINEAR, full, bound, scalars, layer=op.layer, step=step)
