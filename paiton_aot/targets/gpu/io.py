"""The io region of a GPU target.

Three parts, in this order: inputs, which the host writes into pinned staging and the first copy of every step brings
over; what the host sends only when it changed (block tables, grammar masks, a joining request's history); and what
the device owns: results that the host reads, and state that outlives a step.
"""

from __future__ import annotations

from paiton_aot.targets.io_layout import end_of, place
from paiton_aot.targets.shape import Shape
from paiton_artifacts.layout import TENSOR_ALIGNMENT, align_up
from paiton_artifacts.schema import IoField

STOP_TOKENS = 8
"""Stop tokens of one request that the device compares with; further ones are the host's business."""

TOP_LOGPROBS = 20
"""Most probable tokens that a step can report for a row (the limit of OpenAI's interface)."""

MASK_BITS = 32


def io_fields(shape: Shape, semaphores: int) -> tuple[tuple[IoField, ...], int]:
    """Returns the io region's arrays, and the bytes of the part that the host writes before every step.

    Args:
        shape: of a rank.
        semaphores: i32 counters, zero between launches, that launches split over blocks need.
    """
    tokens, requests = shape.max_tokens, shape.max_requests
    inputs = place(
        [
            ("counts", "i32", 4),
            ("token_ids", "i32", tokens),
            ("positions", "i32", tokens),
            ("request_of", "i32", tokens),
            ("query_start", "i32", requests + 1),
            *((name, "i32", requests) for name in ("logit_rows", "slot_of", "top_k", "mask_row", "top_logprobs")),
            *((name, "f32", requests) for name in ("temperature", "top_p", "min_p")),
            *((f"{name}_penalty", "f32", requests) for name in ("repetition", "presence", "frequency")),
            ("seed", "u64", requests),
            ("draw", "u64", requests),
            ("stop_tokens", "i32", requests * STOP_TOKENS),
            ("max_position", "i32", requests),
        ]
    )
    input_bytes = align_up(end_of(inputs), TENSOR_ALIGNMENT)
    others = place(
        [
            ("block_tables", "i32", requests * shape.max_blocks),
            ("mask", "i32", requests * -(-shape.vocab // MASK_BITS)),
            *((f"history_{name}", "i32", 1) for name in ("slot", "length", "prompt_length")),
            ("history_tokens", "i32", shape.max_context),
            ("sampled", "i32", requests),
            ("sampled_logprob", "f32", requests),
            ("sampled_rank", "i32", requests),
            ("top_tokens", "i32", requests * TOP_LOGPROBS),
            ("top_values", "f32", requests * TOP_LOGPROBS),
            ("last_token", "i32", requests),
            ("finished", "i32", requests),
            ("token_counts", "i32", requests * shape.vocab),
            ("semaphores", "i32", semaphores),
        ],
        start=input_bytes,
    )
    return inputs + others, input_bytes
