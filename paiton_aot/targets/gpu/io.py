"""The io region of a GPU target.

Three parts, in this order: inputs, which the host writes into pinned staging and the first copy of every step brings
over; what the host sends only when it changed (block tables, masks, biases, a joining request's history); and what the
device owns: results that the host reads, state that outlives a step, and logits, which `forward` leaves for `sample`:
of ranks that share a model each its share, which sampling gathers where it needs them whole.
"""

from __future__ import annotations

from paiton_aot.targets.gpu.comm import LOGITS_SHARE
from paiton_aot.targets.io_fields import results, state, written_every_step, written_when_changed
from paiton_aot.targets.io_layout import end_of, place
from paiton_aot.targets.shape import Shape
from paiton_artifacts.layout import TENSOR_ALIGNMENT, align_up
from paiton_artifacts.schema import IoField

ERROR_WORDS = 16
"""What a launch that waited in vain for another rank may note (`paiton_kernels.gpu.comm`)."""


def io_fields(shape: Shape, semaphores: int) -> tuple[tuple[IoField, ...], int]:
    """Returns the io region's arrays, and the bytes of the part that the host writes before every step.

    Args:
        shape: of a rank.
        semaphores: i32 counters, zero between launches, that launches split over blocks need.
    """
    inputs = place([*written_every_step(shape), ("query_start", "i32", shape.max_requests + 1)])
    input_bytes = align_up(end_of(inputs), TENSOR_ALIGNMENT)
    own = [*state(shape), ("semaphores", "i32", semaphores)]
    if shape.tp > 1:
        own += [("comm_peers", "u64", shape.tp), ("comm_error", "i32", ERROR_WORDS)]
        own.append((LOGITS_SHARE, "f32", shape.max_requests * shape.vocab_share))
    own.append(("logits", "f32", shape.max_requests * shape.logits_stride))
    others = [*written_when_changed(shape), *results(shape), *own]
    return inputs + place(others, start=input_bytes), input_bytes
