"""What enters a linear layer on the cpu target, as references and as macros of the kernels that read it."""

from __future__ import annotations

from dataclasses import dataclass

from paiton_aot.program import RmsNorm
from paiton_aot.targets.draft import Io, Reference, Weight
from paiton_artifacts.errors import UnsupportedShapeError


@dataclass(frozen=True, slots=True)
class LayerInput:
    """A bf16 value, or the residual stream with the norm that is still to be applied."""

    reference: Reference
    norm: RmsNorm | None = None

    @property
    def gather(self) -> bool:
        """Only the rows that want logits enter."""
        return self.norm is not None and self.norm.gather

    @property
    def macros(self) -> dict[str, str | int]:
        """Macros of `linear` and `pack`."""
        offset = norm_offset(self.norm.offset) if self.norm else 0
        return {"INPUT": "NORM" if self.norm else "BF16", "GATHER": int(self.gather), "NORM_OFFSET": offset}

    def references(self, weight: str, act: str) -> dict[str, Reference]:
        """Returns arguments of `linear` and `pack`, in front of the bundle tensor `weight` and with macro ACT `act`."""
        references = {"x": self.reference}
        if self.norm:
            references["norm_weight"] = Weight(self.norm.weight)
        if self.gather:
            references["rows"] = Io("logit_rows")
        if act == "FP8_STATIC":
            references["input_scale"] = Weight(f"{weight}.input_scale")
        return references


def norm_offset(value: float) -> int:
    """Returns macro NORM_OFFSET of a norm that adds `value` to its weights.

    Raises:
        UnsupportedShapeError: kernels add 0 or 1.
    """
    if value not in (0.0, 1.0):
        raise UnsupportedShapeError(f"norms that add {value} to their weights have no cpu kernel", hint="use 0 or 1")
    return int(value)
