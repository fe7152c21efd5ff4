"""The fields of the io region that all targets have, with the same names and meaning: one engine drives them all.

`slots` below are the places of requests that the device keeps state for, as many as a step has requests.
"""

from __future__ import annotations

from paiton_aot.targets.shape import Shape
from paiton_kernels.spec import MASK_BITS, MAX_BIASES, MAX_STOP_TOKENS, MAX_TOP_LOGPROBS

Wanted = tuple[str, str, int]
"""Name, dtype and number of elements of a field, as `io_layout.place` takes them."""


def written_every_step(shape: Shape) -> list[Wanted]:
    """Returns what the host writes before every step: the batch, and how its rows are sampled."""
    tokens, requests = shape.max_tokens, shape.max_requests
    return [
        ("counts", "i32", 4),
        ("token_ids", "i32", tokens),
        ("positions", "i32", tokens),
        ("request_of", "i32", tokens),
        *((name, "i32", requests) for name in ("logit_rows", "slot_of", "top_k", "mask_row", "top_logprobs")),
        *((name, "f32", requests) for name in ("temperature", "top_p", "min_p")),
        *((f"{name}_penalty", "f32", requests) for name in ("repetition", "presence", "frequency")),
        ("seed", "u64", requests),
        ("draw", "u64", requests),
        ("stop_tokens", "i32", requests * MAX_STOP_TOKENS),
        ("max_position", "i32", requests),
        ("bias_count", "i32", requests),
    ]


def written_when_changed(shape: Shape) -> list[Wanted]:
    """Returns what the host writes now and then: block tables, masks, biases, and a joining request's history."""
    requests = shape.max_requests
    return [
        ("block_tables", "i32", requests * shape.max_blocks),
        ("mask", "i32", requests * -(-shape.vocab // MASK_BITS)),
        ("bias_tokens", "i32", requests * MAX_BIASES),
        ("bias_values", "f32", requests * MAX_BIASES),
        *((f"history_{name}", "i32", 1) for name in ("slot", "length", "prompt_length")),
        ("history_tokens", "i32", shape.max_context),
    ]


def results(shape: Shape) -> list[Wanted]:
    """Returns what the host reads after a step."""
    requests = shape.max_requests
    return [
        ("sampled", "i32", requests),
        ("sampled_logprob", "f32", requests),
        ("sampled_rank", "i32", requests),
        ("top_tokens", "i32", requests * MAX_TOP_LOGPROBS),
        ("top_values", "f32", requests * MAX_TOP_LOGPROBS),
    ]


def state(shape: Shape) -> list[Wanted]:
    """Returns what outlives a step, by slot; zero at boot."""
    slots = shape.max_requests
    return [
        ("last_token", "i32", slots),
        ("finished", "i32", slots),
        ("token_counts", "i32", slots * shape.vocab),
    ]
