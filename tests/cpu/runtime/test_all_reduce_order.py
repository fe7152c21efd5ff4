"""Thousands of all-reduces whose ranks arrive in random order: none hangs, and none has a wrong bit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Launch, LaunchFlag
from paiton_kernels.all_reduce import ALL_REDUCE, MAX_RANKS
from paiton_kernels.cpu.compile import compile_level
from tests.cpu.runtime.plans import MakeDriver, launch, local, peer, plan, rank_times

COUNT = int(os.environ.get("PAITON_ALL_REDUCES", "10000"))
"""All-reduces of each number of ranks."""

WIDTH = 48
STEPS = 10
SUM, HISTORY, STATES = 0, 1024, 4096  # byte offsets in scratch; counts are at the start of io
SLOTS = 0, 1024  # in comm


def all_reduce(symbol: str, ranks: int, slot: int) -> list[Launch]:
    """A rank's part of a sum, some time, the sum as a plan has it, some time, and a note of what it was."""
    width = WIDTH
    late = launch("stray", [0, 0], local(0, Region.SCRATCH, STATES), rank_times(1, 1))
    own = (local(0, Region.SCRATCH, SUM), local(1, Region.COMM, SLOTS[slot]), rank_times(2, 1))
    parts = (peer(1 + rank, rank, SLOTS[slot]) for rank in range(ranks))
    bound = (local(0, Region.IO, 0), *parts, local(1 + MAX_RANKS, Region.SCRATCH, SUM))
    noted = (local(0, Region.SCRATCH, SUM), local(1, Region.SCRATCH, HISTORY))
    return [
        launch("part", [0, 0, 0, width], *own),
        late,
        launch(symbol, [0] * (2 + MAX_RANKS), *bound, flags=LaunchFlag.GROUP_BARRIER),
        late,
        launch("follow", [0, 0, width], *noted),
    ]


def expected(ranks: int, count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Returns the last sum and the history of all, of every rank alike."""
    total, history = np.zeros(WIDTH, np.uint64), np.zeros(WIDTH, np.uint64)
    numbers = np.arange(ranks, dtype=np.uint64)[:, None] * np.uint64(17) + np.arange(WIDTH, dtype=np.uint64)
    for _ in range(count):
        total = np.bitwise_and(total * np.uint64(31) + numbers, 0xFFFF).sum(0, dtype=np.uint64)
        history = history * np.uint64(31) + total
    return total, history


@pytest.mark.parametrize(("ranks", "workers"), [(2, 2), (4, 1), (8, 1)])
def test_ranks_may_arrive_in_any_order(make_driver: MakeDriver, tmp_path: Path, ranks: int, workers: int) -> None:
    variant = ALL_REDUCE.variant(RANKS=ranks, HIDDEN=WIDTH, MODE="STORE")
    driver = make_driver(ranks, workers)
    driver.load_code("all_reduce", compile_level("generic", [variant], tmp_path), [variant.symbol])
    driver.view(Region.IO, 0, 16, "i")[0] = 1  # tokens
    pair = [part for slot in (0, 1) for part in all_reduce(variant.symbol, ranks, slot)]
    repeats = COUNT // (2 * STEPS)
    graph = driver.build(plan((repeats, pair)))
    for _ in range(STEPS):
        driver.run(graph)
    total, history = expected(ranks, 2 * STEPS * repeats)
    for regions in driver._regions:
        scratch = regions[Region.SCRATCH]
        assert scratch.view(SUM, 4 * WIDTH, "f").tolist() == total.tolist()
        assert scratch.view(HISTORY, 8 * WIDTH, "Q").tolist() == history.tolist()
