"""Launches of the families that sample: their arguments have the names of io fields."""

from __future__ import annotations

from paiton_aot.targets.draft import Io, Reference
from paiton_aot.targets.gpu.draft import GpuDraft
from paiton_aot.targets.shape import Shape
from paiton_artifacts.plan import Access
from paiton_kernels.gpu.sample import SAMPLE_SCRATCH
from paiton_kernels.gpu.spec import Constant, GpuKernelSpec, Step


def draft_by_name(spec: GpuKernelSpec, shape: Shape, step: Step) -> GpuDraft:
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
