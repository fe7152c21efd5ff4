"""The cpu target's launches of a mixture of experts: scores, choice, gate and up, down with the sum over experts.

Four launches, and a fifth for the sum where a step has more tokens than a decode step. The router takes the normalised
rows as bf16, and leaves them for experts whose activations are bf16 too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from paiton_aot.program import ExpertLinear, GatedMul, RmsNorm, Route
from paiton_aot.targets.cpu.layer_input import LayerInput, norm_offset
from paiton_aot.targets.cpu.stored_weight import StoredWeight
from paiton_aot.targets.draft import Bucket, Draft, Io, Reference, Scratch, Weight, WorkerScratch
from paiton_aot.targets.shape import Shape
from paiton_aot.targets.words import GATES
from paiton_artifacts.plan import Access
from paiton_artifacts.schema import Tensor
from paiton_kernels.expert_sum import EXPERT_SUM
from paiton_kernels.experts import EXPERTS
from paiton_kernels.linear import DECODE_ROWS
from paiton_kernels.route import ROUTE
from paiton_kernels.router import ROUTER
from paiton_kernels.spec import KernelSpec


@dataclass(frozen=True, slots=True)
class ExpertOps:
    """The ops of a mixture of experts, but the sum and what follows."""

    norm: RmsNorm
    route: Route
    gate_up: ExpertLinear
    gated: GatedMul
    down: ExpertLinear


def written(value: Scratch) -> Scratch:
    """Returns the reference of a launch that writes a value."""
    return replace(value, access=Access.WRITE)


@dataclass(frozen=True, slots=True)
class ExpertLaunches:
    """Lowers a mixture of experts.

    Attributes:
        ops: of the block.
        activations: the program's activation mode.
        tensors: the tensor table by name.
        shape: of one rank.
        bucket: the size of the step.
    """

    ops: ExpertOps
    activations: str
    tensors: Mapping[str, Tensor]
    shape: Shape
    bucket: Bucket

    def drafts(self, x: Scratch, out: Reference, *, add: bool) -> list[Draft]:
        """Returns the launches from the residual stream `x` to `out`, which the experts' sum replaces or adds to."""
        gate_up, down = (StoredWeight(op.weight, self.tensors) for op in (self.ops.gate_up, self.ops.down))
        act = gate_up.act(self.activations)
        normed = Scratch(self.ops.norm.out, self.bucket.tokens * self.shape.hidden * 2)
        activated = Scratch(self.ops.gated.out, self._entries * down.tensor.shape[1] * 2)
        source = LayerInput(normed) if act == "BF16" else LayerInput(x, self.ops.norm)
        return [
            self._router(x, written(normed)),
            self._route(),
            self._experts(gate_up, source, GATES[self.ops.gated.activation], {"out": written(activated)}),
            *self._down(down, LayerInput(activated), out, "ADD" if add else "STORE"),
        ]

    def _down(self, weight: StoredWeight, source: LayerInput, out: Reference, mode: str) -> list[Draft]:
        probability: dict[str, Reference] = {"probability": self._probability}
        if self.bucket.tokens <= DECODE_ROWS:
            return [self._experts(weight, source, mode, {"out": out, **probability})]
        products = Scratch(self.ops.down.out, self._entries * self.shape.hidden * 4)
        references = {"product": products, "out": out, **probability}
        macros: dict[str, str | int] = {"TOP_K": self.ops.route.top_k, "N": self.shape.hidden, "MODE": mode}
        return [
            self._experts(weight, source, "ROWS", {"out": written(products)}),
            self._draft(EXPERT_SUM, macros, references),
        ]

    def _router(self, x: Scratch, normed: Scratch) -> Draft:
        norm, weight = self.ops.norm, self.tensors[self.ops.route.weight]
        references: dict[str, Reference] = {
            "x": x,
            "norm_weight": Weight(norm.weight),
            "weight": Weight(self.ops.route.weight),
            "normed": normed,
            "scores": written(self._scores),
            "worker_scratch": WorkerScratch(),
        }
        macros: dict[str, str | int] = {
            "EXPERTS": self.ops.route.experts,
            "K": weight.shape[1],
            "ROW_STRIDE": weight.row_stride,
            "NORM_OFFSET": norm_offset(norm.offset),
        }
        return self._draft(ROUTER, macros, references, {"eps": self.shape.eps})

    def _route(self) -> Draft:
        route = self.ops.route
        references: dict[str, Reference] = {
            "scores": self._scores,
            "chosen": written(self._chosen),
            "probability": written(self._probability),
        }
        return self._draft(ROUTE, {**self._choice(), "NORMALISE": int(route.normalise)}, references)

    def _experts(
        self, weight: StoredWeight, source: LayerInput, epilogue: str, references: Mapping[str, Reference]
    ) -> Draft:
        act = weight.act(self.activations)
        macros: dict[str, str | int] = {
            **self._choice(),
            "N": weight.tensor.shape[0] // self.ops.route.experts,
            "K": weight.tensor.shape[1],
            "ACT": act,
            "EPILOGUE": epilogue,
            **weight.macros,
            **source.macros,
        }
        bound = {
            **references,
            "chosen": self._chosen,
            "worker_scratch": WorkerScratch(),
            **weight.references,
            **source.references(weight.name, act),
        }
        return self._draft(EXPERTS, macros, bound, {"eps": self.shape.eps, **weight.constants})

    def _draft(
        self,
        spec: KernelSpec,
        macros: Mapping[str, str | int],
        references: Mapping[str, Reference],
        constants: Mapping[str, int | float] | None = None,
    ) -> Draft:
        bound = {"counts": Io("counts"), **references}
        return Draft(spec.variant(**macros), bound, constants or {}, self.ops.route.layer)

    @property
    def _entries(self) -> int:
        return self.bucket.tokens * self.ops.route.top_k

    @property
    def _scores(self) -> Scratch:
        return Scratch("scores", self.bucket.tokens * self.ops.route.experts * 4)

    @property
    def _chosen(self) -> Scratch:
        return Scratch(f"{self.ops.route.out}.chosen", self._entries * 4)

    @property
    def _probability(self) -> Scratch:
        return Scratch(f"{self.ops.route.out}.probability", self._entries * 4)

    def _choice(self) -> dict[str, str | int]:
        return {"EXPERTS": self.ops.route.experts, "TOP_K": self.ops.route.top_k}
