"""Launches of a block of experts: five, and one or three more where a step has many tokens.

norm, route (router, best experts, + quantise), gate/up of all experts (+ SiLU-mul + quantise), down of all experts, and
their weighted sum (+ residual). Where `route` has several tiles of tokens, one more makes the list of entries that the
launches over experts share. Values with dynamic scales are quantised by launches of their own, as in other blocks.

The norm always leaves bf16, which the router reads in every mode; `route` passes over it anyway, and rounds it or finds
its rows' largest magnitudes for the experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paiton_aot.program import AllReduce, ExpertLinear, ExpertSum, GatedMul, RmsNorm, Route
from paiton_aot.targets.draft import Reference, Scratch, Weight
from paiton_aot.targets.gpu.launches import Launches
from paiton_aot.targets.gpu.operands import Activation, row_elements, weight_operands
from paiton_aot.targets.words import GATES
from paiton_artifacts.errors import UnsupportedShapeError
from paiton_artifacts.plan import Access
from paiton_kernels.gpu.expert_linear import EXPERT_LINEAR
from paiton_kernels.gpu.expert_shape import row_limit
from paiton_kernels.gpu.expert_sum import EXPERT_SUM
from paiton_kernels.gpu.route import ROUTE
from paiton_kernels.gpu.route_order import ROUTE_ORDER
from paiton_kernels.gpu.route_shape import tile_tokens, tiles
from paiton_kernels.gpu.routes import list_bytes
from paiton_kernels.gpu.spec import Constant

_AMAX = "expert_amax"
"""The value that collects the largest magnitudes of what experts have activated."""


@dataclass(frozen=True, slots=True)
class ExpertBlock:
    """The ops of a block of experts, in order."""

    norm: RmsNorm
    route: Route
    up: ExpertLinear
    gate: GatedMul
    down: ExpertLinear
    total: ExpertSum
    reduce: AllReduce


def emit_experts(launches: Launches, block: ExpertBlock) -> None:
    """Emits the launches of a block.

    Raises:
        UnsupportedShapeError: a step has more rows than the kernels' offsets reach.
    """
    _Experts(launches, block).emit()


class _Experts:
    """The launches of one block."""

    def __init__(self, launches: Launches, block: ExpertBlock) -> None:
        self.launches = launches
        self.block = block
        self.layer = block.route.layer
        self.entries = launches.bucket.tokens * block.route.top_k

    def emit(self) -> None:
        launches, block = self.launches, self.block
        source = self._route()
        rows, _ = launches.tensors[block.up.weight].shape
        width = rows // (2 * block.up.experts)
        constants, references, left = launches.produce(block.gate.out, block.down.weight, width, _AMAX, self.entries)
        constants["EPILOGUE"] = GATES[block.gate.activation]
        self._linear(block.up, "TOKENS", source, references, constants)
        activated = launches.quantized(
            block.down.weight, left, width, layer=self.layer, rows=self.entries, counts=self._list(Access.READ)
        )
        hidden = 4 * launches.shape.hidden
        result = launches.value(block.down.out, hidden, Access.WRITE, self.entries)
        self._linear(block.down, "ENTRIES", activated, {"out": result}, {"EPILOGUE": "STORE", "OUT": "FP32", "AMAX": 0})

        def write(out: Scratch, *, add: bool) -> None:
            launches.emit(
                EXPERT_SUM,
                {"HIDDEN": launches.shape.hidden, "TOP_K": block.route.top_k, "MODE": "ADD" if add else "STORE"},
                {
                    "x": launches.value(block.down.out, hidden, Access.READ, self.entries),
                    "probability": self._per_entry("probability", Access.READ),
                    "out": out,
                },
                layer=self.layer,
            )

        launches.residual(block.reduce, self.layer, write)

    def _list(self, access: Access) -> Scratch:
        """Returns the list of entries."""
        return Scratch(self.block.route.out, list_bytes(self.block.route.experts, self.entries), access)

    def _per_entry(self, name: str, access: Access) -> Scratch:
        """Returns a value of four bytes for each entry."""
        return self.launches.value(f"{self.block.route.out}_{name}", 4, access, self.entries)

    def _route(self) -> Activation:
        """Emits norm and routing, and returns what the experts read."""
        launches, op = self.launches, self.block.route
        hidden, tile = launches.shape.hidden, tile_tokens(launches.bucket.tokens, op.experts)
        wanted, one_tile = launches.scale_of(self.block.up.weight), launches.bucket.tokens <= tile
        amax = f"{op.x}_amax" if wanted == "ROW" else ""
        source = launches.norm(self.block.norm, "NONE", clear=amax)
        choice: dict[str, Constant] = {"EXPERTS": op.experts, "TOP_K": op.top_k, "TILE": tile}
        constants: dict[str, Constant] = {
            **choice,
            "HIDDEN": hidden,
            "ROW_STRIDE": row_elements(launches.tensors[op.weight]),
            "NORMALISE": int(op.normalise),
            "OUT": "FP8" if wanted == "TENSOR" else "BF16",
            "AMAX": int(wanted == "ROW"),
            "CLEAR": 0,
            "ORDER": int(one_tile),
        }
        rounded, left = self._rounded(source, wanted, amax)
        references: dict[str, Reference] = {
            "x": source.references["a"],
            "router": Weight(op.weight),
            "probability": self._per_entry("probability", Access.WRITE),
            "expert": self._per_entry("expert", Access.WRITE),
            **rounded,
        }
        if launches.scale_of(self.block.down.weight) == "ROW":
            constants["CLEAR"] = 1
            references["clear"] = launches.value(_AMAX, 4, Access.WRITE, self.entries)
        counted = f"{op.out}_histogram", 4 * tiles(choice, launches.step) * op.experts
        if one_tile:
            references["routes"] = self._list(Access.WRITE)
            launches.emit(ROUTE, constants, references, layer=self.layer)
        else:
            references["histogram"] = Scratch(*counted, Access.WRITE)
            launches.emit(ROUTE, constants, references, layer=self.layer)
            lists: dict[str, Reference] = {
                "expert": self._per_entry("expert", Access.READ),
                "histogram": Scratch(*counted, Access.READ),
                "routes": self._list(Access.WRITE),
            }
            launches.emit(ROUTE_ORDER, choice, lists, layer=self.layer)
        return launches.quantized(self.block.up.weight, left, hidden, layer=self.layer)

    def _rounded(self, source: Activation, wanted: str, amax: str) -> tuple[dict[str, Reference], Activation]:
        """Returns the arguments with which `route` rounds its input as the experts want it, and what they then read."""
        launches, hidden = self.launches, self.launches.shape.hidden
        if wanted == "TENSOR":
            name, scale = f"{self.block.route.x}_codes", Weight(f"{self.block.up.weight}.input_scale")
            codes = {access: launches.value(name, hidden, access) for access in (Access.READ, Access.WRITE)}
            left = Activation("FP8", "TENSOR", {"a": codes[Access.READ], "a_scale": scale})
            return {"x_scale": scale, "quantised": codes[Access.WRITE]}, left
        if wanted == "ROW":
            found = {**source.references, "a_scale": launches.value(amax, 4, Access.READ)}
            return {"amax": launches.value(amax, 4, Access.READ | Access.WRITE)}, Activation("BF16", "AMAX", found)
        return {}, Activation("BF16", wanted, source.references)

    def _linear(
        self,
        op: ExpertLinear,
        rows_of: str,
        source: Activation,
        references: Mapping[str, Reference],
        constants: Mapping[str, Constant],
    ) -> None:
        launches = self.launches
        known, weights = weight_operands(op.weight, launches.tensors, op.experts)
        most = row_limit(known["K"], source.storage)
        if (rows := launches.bucket.tokens if rows_of == "TOKENS" else self.entries) > most:
            raise UnsupportedShapeError(
                f"{op.weight}: {rows} rows of {known['K']} elements are more than the {most} that offsets reach",
                hint="build with a smaller --max-num-batched-tokens",
            )
        full: dict[str, Constant] = {
            **known,
            "EXPERTS": op.experts,
            "TOP_K": self.block.route.top_k,
            "INPUT": rows_of,
            "A": source.storage,
            "A_SCALE": source.scale,
            **constants,
        }
        bound: dict[str, Reference] = {"routes": self._list(Access.READ), **source.references, **references, **weights}
        launches.emit(EXPERT_LINEAR, full, bound, layer=self.layer)
