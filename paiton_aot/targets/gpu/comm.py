"""Launches of a GPU plan in which all ranks meet, and the comm region that they talk through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paiton_aot.targets.draft import Comm, Io, RankTimes, Reference, Scratch
from paiton_aot.targets.gpu.draft import GpuDraft
from paiton_aot.targets.shape import Shape
from paiton_artifacts.plan import Access, LaunchFlag
from paiton_kernels.gpu.all_gather import ALL_GATHER
from paiton_kernels.gpu.all_reduce import ALL_REDUCE
from paiton_kernels.gpu.argmax import ARGMAX, STATE
from paiton_kernels.gpu.argmax_cases import RESULTS
from paiton_kernels.gpu.comm import MAX_POLLS, CommLayout, comm_layout, wire_of
from paiton_kernels.gpu.spec import Constant, GpuKernelSpec, Step

_BOTH = Access.READ | Access.WRITE

PARTIAL = "partial"
"""The scratch value that holds a rank's partial sums of the residual stream, f32 [T][HIDDEN]."""

LOGITS_SHARE = "logits_share"
"""The io field that holds the logits of a rank's share of the vocabulary, f32 [R][vocab_share]: all that `forward`
leaves where several ranks share a model."""

_NO_NORM: dict[str, Constant] = {"NORM": 0, "ROWS": "TOKENS", "OUT": "BF16", "SCALE": "NONE", "CLEAR": 0}


def layout_of(shape: Shape) -> CommLayout | None:
    """Returns the layout of the comm region, the same on every rank; None where a rank is alone."""
    return comm_layout(shape.tp, shape.hidden, shape.max_tokens, shape.max_requests) if shape.tp > 1 else None


@dataclass(frozen=True, slots=True)
class Sum:
    """What becomes of partial sums once all ranks have them.

    Attributes:
        out: the scratch value, f32 [T][HIDDEN].
        add: add the sum to it instead of replacing it.
        layer: of the decoder; None outside of them.
    """

    out: Scratch
    add: bool
    layer: int | None


class Collectives:
    """Drafts collective launches for one bucket.

    Args:
        shape: of a rank, one of several.
        step: the bucket; for launches over rows of logits one of as many requests.
    """

    def __init__(self, shape: Shape, step: Step) -> None:
        layout = layout_of(shape)
        if layout is None:
            raise TypeError("a rank that is alone meets nobody")
        self._layout = layout
        self._shape = shape
        self._step = step

    def all_reduce(self, total: Sum) -> GpuDraft:
        """Sums the ranks' partial results, and nothing more."""
        return self._all_reduce(total, _NO_NORM, {}, {}, total.layer)

    def all_reduce_norm(self, total: Sum, norm: GpuDraft) -> GpuDraft:
        """Sums the ranks' partial results and does what a launch of `norm` would do with the sum."""
        taken = {name: reference for name, reference in norm.references.items() if name != "x"}
        return self._all_reduce(total, {"NORM": 1, **norm.constants}, taken, norm.scalars, norm.layer)

    def _all_reduce(
        self,
        total: Sum,
        constants: Mapping[str, Constant],
        references: Mapping[str, Reference],
        scalars: Mapping[str, int | float],
        layer: int | None,
    ) -> GpuDraft:
        shape = self._shape
        wire = wire_of(shape.hidden, self._step.tokens)
        bound: dict[str, Reference] = {
            **references,
            "part": Scratch(PARTIAL, self._step.tokens * shape.hidden * 4, Access.READ),
            "x": Scratch(total.out.value, total.out.size, _BOTH if total.add else Access.WRITE),
        }
        full = {**constants, "HIDDEN": shape.hidden, "WIRE": wire, "MODE": "ADD" if total.add else "STORE"}
        return self._draft(ALL_REDUCE, full, bound, scalars, layer)

    def all_gather(self) -> GpuDraft:
        """Gives every rank the logits of all of them: rows of `vocab_share` columns each, in rank order."""
        shape = self._shape
        bound: dict[str, Reference] = {"part": Io(LOGITS_SHARE), "out": Io("logits", Access.WRITE)}
        scalars = {"part_stride": shape.vocab_share, "out_stride": shape.logits_stride}
        return self._draft(ALL_GATHER, {"SHARE": shape.vocab_share}, bound, scalars, None)

    def argmax(self) -> GpuDraft:
        """Samples greedy rows on every rank, by the best token of each rank's share; what it needs has io's names."""
        shape = self._shape
        bound: dict[str, Reference] = {"part": Io(LOGITS_SHARE)}
        bound |= {name: Io(name) for name in STATE} | {name: Io(name, _BOTH) for name in RESULTS}
        constants: dict[str, Constant] = {"VOCAB": shape.vocab, "SHARE": shape.vocab_share}
        return self._draft(ARGMAX, constants, bound, {"part_stride": shape.vocab_share}, None)

    def _draft(
        self,
        spec: GpuKernelSpec,
        constants: Mapping[str, Constant],
        references: Mapping[str, Reference],
        scalars: Mapping[str, int | float],
        layer: int | None,
    ) -> GpuDraft:
        layout = self._layout
        own: dict[str, Reference] = {
            "counts": Io("counts"),
            "comm": Comm(0, layout.bytes, _BOTH),
            "comm_peers": Io("comm_peers"),
            "comm_error": Io("comm_error", _BOTH),
            "rank": RankTimes(1),
        }
        return GpuDraft(
            spec,
            {"TP": layout.tp, "BLOCKS": layout.blocks, **constants},
            self._step,
            {**references, **own},
            {**scalars, "max_polls": MAX_POLLS, "channel_bytes": layout.channel_bytes},
            layer,
            LaunchFlag.GROUP_BARRIER,
        )
