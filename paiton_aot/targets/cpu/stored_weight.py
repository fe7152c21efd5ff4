"""A weight matrix of the bundle, as macros, arguments and constants of the kernels that multiply with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paiton_aot.targets.draft import Reference, Weight
from paiton_aot.targets.words import STORAGE
from paiton_artifacts.schema import Tensor

_ACT_MACRO = {"bf16": "BF16", "fp8-static": "FP8_STATIC", "fp8-dynamic": "FP8_DYNAMIC"}


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """The tensor `name` of the tensor table."""

    name: str
    tensors: Mapping[str, Tensor]

    @property
    def tensor(self) -> Tensor:
        """Its entry in the table."""
        return self.tensors[self.name]

    @property
    def macros(self) -> dict[str, str | int]:
        """Macros that say how it is stored."""
        tensor = self.tensor
        macros: dict[str, str | int] = {"ROW_STRIDE": tensor.row_stride, "WEIGHT": STORAGE[tensor.dtype]}
        return macros | ({"SCALES": "BLOCK", "SCALE_ROWS": tensor.scale_block[0]} if tensor.scale_block else {})

    @property
    def references(self) -> dict[str, Reference]:
        """The matrix and its scales."""
        scale: dict[str, Reference] = {"scale": Weight(self.tensor.scale)} if self.tensor.scale else {}
        return {"weight": Weight(self.name), **scale}

    @property
    def constants(self) -> dict[str, int | float]:
        """Strides that are arguments."""
        tensor = self.tensor
        return {"scale_stride": self.tensors[tensor.scale].row_stride // 4} if tensor.scale_block else {}

    def act(self, activations: str) -> str:
        """Returns macro ACT in front of it, in a program's activation mode; scales of blocks come on both sides."""
        if self.tensor.dtype != "fp8_e4m3fn":
            return "BF16"
        in_blocks = self.tensor.scale_kind == "block" and activations == "fp8-dynamic"
        return "FP8_BLOCK" if in_blocks else _ACT_MACRO[activations]
