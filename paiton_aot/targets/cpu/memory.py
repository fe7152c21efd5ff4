"""The io region of the cpu target: what the host writes before a step and reads after it."""

from __future__ import annotations

from paiton_aot.targets.io_layout import place
from paiton_aot.targets.shape import Shape
from paiton_artifacts.schema import IoField


def io_fields(shape: Shape) -> tuple[IoField, ...]:
    """Returns the io region's arrays, in order."""
    tokens, requests = shape.max_tokens, shape.max_requests
    wanted = [
        ("counts", "i32", 4),
        ("token_ids", "i32", tokens),
        ("positions", "i32", tokens),
        ("request_of", "i32", tokens),
        ("block_tables", "i32", requests * shape.max_blocks),
        ("logit_rows", "i32", requests),
        ("temperature", "f32", requests),
        ("top_k", "i32", requests),
        ("top_p", "f32", requests),
        ("seed", "u64", requests),
        ("draw", "u64", requests),
        ("sampled", "i32", requests),
    ]
    return place(wanted)
