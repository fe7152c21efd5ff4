"""A GPU launch before its configuration is chosen and its addresses are settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paiton_aot.targets.draft import Reference
from paiton_artifacts.plan import LaunchFlag
from paiton_kernels.gpu.spec import Config, Constant, GpuKernelSpec, GpuVariant, Step


@dataclass(frozen=True, slots=True)
class GpuDraft:
    """One launch of a plan under construction.

    Attributes:
        spec: the kernel family.
        constants: its compile-time shape.
        step: the bucket that it must cover.
        references: pointer arguments by name; those left out are null.
        scalars: the other arguments by name.
        layer: of the decoder; None outside of them.
        flags: how it is ordered with the other ranks.
        work_list: which list of attention's work it writes or reads, where a step has several; it ends the names of
            scratch that several launches share.
        config: how it is computed; None until tuning has chosen.
    """

    spec: GpuKernelSpec
    constants: Mapping[str, Constant]
    step: Step
    references: Mapping[str, Reference]
    scalars: Mapping[str, int | float]
    layer: int | None = None
    flags: LaunchFlag = LaunchFlag.NONE
    work_list: str = ""
    config: Config | None = None

    @property
    def variant(self) -> GpuVariant:
        """The kernel that it launches, once its configuration is chosen."""
        if self.config is None:
            raise TypeError(f"{self.spec.family} has no configuration yet")
        return self.spec.variant(self.config, **self.constants)
