"""Feeds a booted model a fixed token sequence and collects the logits after every prefix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.model import Chunk, Model


def logits_of(model: Model, ids: Sequence[int]) -> NDArray[np.float32]:
    """Returns logits [len(ids), vocab_size] f32, computed in steps as large as the plans are."""
    memory = model.memory
    size = min(memory.max_requests, memory.max_tokens)
    blocks = list(range(-(-len(ids) // memory.kv_block_tokens)))
    rows = []
    for start in range(0, len(ids), size):
        tokens = list(ids[start : start + size])
        result = model.step([Chunk(tokens, start, blocks, logits="all")])
        rows += [np.array(np.frombuffer(result.logits(row), np.float32)) for row in range(len(tokens))]
    return np.stack(rows)


def boot_logits(bundle: Path, ids: Sequence[int], level: str | None = None) -> NDArray[np.float32]:
    """Boots a bundle and returns the logits after every prefix of `ids`."""
    with boot(bundle, BootOptions(level=level, golden_check=False)) as model:
        return logits_of(model, ids)
