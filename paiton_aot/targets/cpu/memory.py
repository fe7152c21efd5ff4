"""The io region of the cpu target, shared by all ranks: what the host writes, what it reads, and what kernels keep."""

from __future__ import annotations

from paiton_aot.targets.io_fields import results, state, written_every_step, written_when_changed
from paiton_aot.targets.io_layout import end_of, place
from paiton_aot.targets.shape import Shape
from paiton_artifacts.layout import TENSOR_ALIGNMENT, align_up
from paiton_artifacts.schema import IoField


def io_fields(shape: Shape) -> tuple[tuple[IoField, ...], int]:
    """Returns the io region's arrays, and the bytes of the part that the host writes before every step."""
    inputs = place(written_every_step(shape))
    input_bytes = align_up(end_of(inputs), TENSOR_ALIGNMENT)
    others = [*written_when_changed(shape), *results(shape), *state(shape)]
    return inputs + place(others, start=input_bytes), input_bytes
