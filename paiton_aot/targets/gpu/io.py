"""The io region of a GPU target.

Three parts, in this order: inputs, which the host writes into pinned staging and the first copy of every step brings
over; what the host sends only when it changed (block tables, masks, biases, a joining request's history); and what the
device owns: results that the host reads, and state that outlives a step.
"""

from __future__ import annotations

from paiton_aot.targets.io_fields import results, state, written_every_step, written_when_changed
from paiton_aot.targets.io_layout import end_of, place
from paiton_aot.targets.shape import Shape
from paiton_artifacts.layout import TENSOR_ALIGNMENT, align_up
from paiton_artifacts.schema import IoField


def io_fields(shape: Shape, semaphores: int) -> tuple[tuple[IoField, ...], int]:
    """Returns the io region's arrays, and the bytes of the part that the host writes before every step.

    Args:
        shape: of a rank.
        semaphores: i32 counters, zero between launches, that launches split over blocks need.
    """
    inputs = place([*written_every_step(shape), ("query_start", "i32", shape.max_requests + 1)])
    input_bytes = align_up(end_of(inputs), TENSOR_ALIGNMENT)
    others = [*written_when_changed(shape), *results(shape), *state(shape), ("semaphores", "i32", semaphores)]
    return inputs + place(others, start=input_bytes), input_bytes
