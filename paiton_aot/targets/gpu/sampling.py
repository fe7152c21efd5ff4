"""Launches of the families that begin where `forward` ends, and of `history`: arguments have the names of io fields."""

from __future__ import annotations

from paiton_aot.targets.draft import Io, Reference
from paiton_aot.targets.gpu.comm import Collectives
from paiton_aot.targets.gpu.draft import GpuDraft
from paiton_aot.targets.shape import Shape
from paiton_artifacts.plan import Access
from paiton_kernels.gpu.sample import SAMPLE_CHAIN, SAMPLE_SCRATCH
from paiton_kernels.gpu.sample_history import HISTORY
from paiton_kernels.gpu.spec import Constant, GpuKernelSpec, Step


def sample(shape: Shape, rows: Step) -> tuple[GpuDraft, ...]:
    """Returns the launches from logits to sampled tokens, state advanced; ranks gather the logits first.

    Args:
        shape: of a rank.
        rows: the bucket: as many tokens and requests as there are rows of logits.
    """
    gathering = (Collectives(shape, rows).all_gather(),) if shape.tp > 1 else ()
    return (*gathering, *(_draft_by_name(spec, shape, rows) for spec in SAMPLE_CHAIN))


def greedy(shape: Shape, rows: Step) -> tuple[GpuDraft, ...]:
    """Returns the launches that do the same for several ranks and rows that ask for the most probable token only."""
    return (Collectives(shape, rows).argmax(),)


def history(shape: Shape) -> tuple[GpuDraft, ...]:
    """Returns the launches that load what penalties count of one request."""
    return (_draft_by_name(HISTORY, shape, Step(1, 1)),)


def _draft_by_name(spec: GpuKernelSpec, shape: Shape, step: Step) -> GpuDraft:
    """Returns a launch that reads and writes io; scratch is added once its size is known."""
    references: dict[str, Reference] = {}
    for arg in spec.args:
        if arg.name == "logits":
            references[arg.name] = Io(arg.name, Access.READ)
        elif arg.pointer and arg.name not in SAMPLE_SCRATCH:
            references[arg.name] = Io(arg.name, Access.READ | Access.WRITE)
    known: dict[str, Constant] = {"VOCAB": shape.vocab}
    scalars = {"logits_stride": shape.logits_stride}
    taken = {arg.name: scalars[arg.name] for arg in spec.args if not arg.pointer}
    return GpuDraft(spec, {name: known[name] for name in spec.constants}, step, references, taken)
