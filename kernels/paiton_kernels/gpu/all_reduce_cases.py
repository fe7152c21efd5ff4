"""Cases of ``all_reduce`` for a group of one rank, and what any group must compute, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paiton_kernels.gpu.case_rows import within
from paiton_kernels.gpu.comm import comm_layout
from paiton_kernels.gpu.norm_cases import EPS, add_scales, normed
from paiton_kernels.gpu.spec import Case, Config, Constant, Step

TOKENS, LOGITS = 5, (3, 0)
"""Rows of a case's step, and those of them that want logits."""


def reduced(parts: Sequence[NDArray[np.float32]], x: NDArray[np.float32] | None, wire: str) -> NDArray[np.float64]:
    """Returns the sum of the parts as they travel, plus x if there is one."""
    sent = [part.astype(ml_dtypes.bfloat16) if wire == "BF16" else part for part in parts]
    total = np.sum([part.astype(np.float64) for part in sent], axis=0)
    return np.asarray(total if x is None else total + x)


def all_reduce_case(
    name: Callable[[Mapping[str, Constant]], str],
    configs: Sequence[Config],
    *,
    hidden: int,
    wire: str,
    mode: str,
    norm: int = 1,
    rows: str = "TOKENS",
    scale: str = "NONE",
    clear: int = 0,
    offset: float = 0.0,
    blocks: int = 2,
) -> Case:
    """Returns a case of a step of 5 tokens in a bucket of 6, with 2 rows of logits in a bucket of 3."""
    random = np.random.default_rng(hidden)
    step = Step(TOKENS + 1, 3)
    layout = comm_layout(1, hidden, step.tokens, step.requests)
    channel_bytes = layout.channel_bytes
    part, x = (random.standard_normal((step.tokens, hidden)).astype(np.float32) for _ in range(2))
    weight = random.uniform(0.5, 2, hidden).astype(ml_dtypes.bfloat16)
    outputs = step.requests if rows == "LOGITS" else step.tokens
    constants: dict[str, Constant] = {
        "TP": 1,
        "BLOCKS": blocks,
        "HIDDEN": hidden,
        "WIRE": wire,
        "MODE": mode,
        "NORM": norm,
        "ROWS": rows,
        "OUT": "BF16" if scale == "NONE" else "FP8",
        "SCALE": scale,
        "CLEAR": clear,
        "OFFSET": offset,
    }
    arrays: dict[str, Any] = {
        "counts": np.array([TOKENS, 3, len(LOGITS), 0], np.int32),
        "part": part,
        "x": x,
        "comm": np.zeros(2 * blocks * (64 + channel_bytes), np.int8),
        "comm_peers": np.zeros(1, np.int64),
        "comm_error": np.zeros(4, np.int32),
        "semaphores": np.zeros(step.tokens, np.int32),
    }
    stream = reduced([part], x if mode == "ADD" else None, wire)
    expected = {"x": within(step.tokens, stream[:TOKENS]), "comm_error": np.zeros(4), "semaphores": np.zeros(6)}
    if norm:
        arrays["weight"] = weight
        arrays["out"] = np.zeros((outputs, hidden), ml_dtypes.bfloat16 if scale == "NONE" else np.uint8)
        source = list(LOGITS) if rows == "LOGITS" else list(range(TOKENS))
        values, scales = normed(stream[source], weight, scale, offset)
        expected["out"] = within(outputs, values)
        if rows == "LOGITS":
            arrays["rows"] = np.array([*LOGITS, 0], np.int32)
        add_scales(arrays, expected, outputs, scales, scale=scale, clear=clear)
    tolerance = {"x": "f32", "out": "bf16" if scale == "NONE" else "fp8", "row_scale": "f32"}
    tolerance |= dict.fromkeys(("clear", "comm_error", "semaphores"), "exact")
    scalars = {"eps": EPS, "rank": 0, "max_polls": 10, "channel_bytes": channel_bytes}
    return Case(name(constants), constants, step, arrays, scalars, expected, tolerance, tuple(configs))
