"""The executor keeps the order that a plan promises, also when threads outnumber processors."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest

from paiton_artifacts.errors import PaitonError
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Launch, LaunchFlag
from paiton_runtime.host import Group
from tests.cpu.runtime.plans import MakeDriver, launch, local, peer, plan, rank_times

GROUP, RANK0 = LaunchFlag.GROUP_BARRIER, LaunchFlag.RANK0_ONLY
TEAMS = [(1, 1), (1, 2), (1, 5), (2, 1), (3, 2), (4, 3)]
TICKETS = 64  # byte offset in io; the counter is at 0


def ticket(index: int, ranks: int, flags: LaunchFlag = LaunchFlag.NONE) -> Launch:
    """Draws tickets for launch `index`; ranks share the io region, so tickets order launches across ranks."""
    pointers = (local(0, Region.IO, 0), local(1, Region.IO, TICKETS), rank_times(3, 1))
    return launch("ticket", [0, 0, index, 0, ranks], *pointers, flags=flags)


def threads() -> set[str]:
    """Returns the ids of this process's threads."""
    return {entry.name for entry in Path("/proc/self/task").iterdir()}


def idle() -> Launch:
    """Makes some workers late."""
    return launch("idle", [0, 3000], rank_times(0, 1))


@pytest.mark.parametrize(("ranks", "workers"), TEAMS)
@pytest.mark.parametrize("flags", [LaunchFlag.NONE, GROUP])
def test_launches_are_ordered(make_driver: MakeDriver, ranks: int, workers: int, flags: LaunchFlag) -> None:
    """No worker starts a launch before its team (with the flag: before every team) has finished the one before."""
    count = 12
    driver = make_driver(ranks, workers)
    launches = [part for index in range(count) for part in (idle(), ticket(index, ranks, flags))]
    driver.run(driver.build(plan((1, launches))))
    flat = driver.view(Region.IO, TICKETS, count * ranks * workers * 8, "Q").tolist()
    assert sorted(flat) == list(range(1, count * ranks * workers + 1))
    rows = [flat[i : i + workers] for i in range(0, len(flat), workers)]  # [count * ranks] of a team's tickets
    for index, rank in itertools.product(range(count - 1), range(ranks)):
        after = rows[(index + 1) * ranks + rank]
        before = rows[index * ranks : (index + 1) * ranks] if flags else [rows[index * ranks + rank]]
        assert max(map(max, before)) < min(after)


@pytest.mark.parametrize(("ranks", "workers"), TEAMS)
def test_no_update_is_lost(make_driver: MakeDriver, ranks: int, workers: int) -> None:
    """Workers write other workers' elements in turn, without atomics; steps and repeats add up."""
    n, repeats, steps = 97, 40, 5
    driver = make_driver(ranks, workers)
    launches = [launch("increment", [0, n, shift], local(0, Region.COMM, 0)) for shift in range(workers)]
    graph = driver.build(plan((repeats, launches)))
    for _ in range(steps):
        driver.run(graph, graph)
    assert set(driver.view(Region.COMM, 0, n * 8, "Q").tolist()) == {2 * repeats * workers * steps}


@pytest.mark.parametrize(("ranks", "workers"), TEAMS)
def test_shares_begin_untaken(make_driver: MakeDriver, ranks: int, workers: int) -> None:
    """Workers take each other's units: in every launch, step and rank each unit is taken once."""
    units, repeats, steps = 13, 40, 5
    driver = make_driver(ranks, workers)
    takes = [launch("take", [0, units, 0], local(0, Region.COMM, 0), local(2, Region.COMM, 8 * units))] * 3
    graph = driver.build(plan((repeats, [*takes, launch("nothing", [0], flags=RANK0)])))
    for _ in range(steps):
        driver.run(graph, graph)
    *counts, moved = driver.view(Region.COMM, 0, (units + 1) * 8, "Q").tolist()
    assert counts == [2 * repeats * steps * len(takes)] * units
    assert (moved > 0) == (workers > 1)


def test_an_oversubscribed_group_finishes_in_time(make_driver: MakeDriver) -> None:
    """Twelve threads, thousands of barriers: pure spinning would need a scheduler's time slice for each."""
    driver = make_driver(4, 3)
    chain = [launch("nothing", [0]), launch("nothing", [0], flags=GROUP)]
    graph = driver.build(plan((2000, chain)))
    started = time.monotonic()
    driver.run(graph)
    assert time.monotonic() - started < 10


def test_ranks_sum_what_their_peers_hold(make_driver: MakeDriver) -> None:
    """An all-reduce by hand: every rank adds three peers' values, with a group barrier before and after."""
    repeats = 10
    driver = make_driver(3, 2)
    start = launch("copy", [0, 0, 0], local(0, Region.WEIGHTS, 0), local(1, Region.COMM, 0), rank_times(2, 5))
    parts = tuple(peer(rank, rank, 0) for rank in range(3))
    reduce = launch("sum", [0, 0, 0, 0], *parts, local(3, Region.SCRATCH, 0), flags=GROUP)
    back = launch(
        "copy", [0, 0, 0], local(0, Region.SCRATCH, 0), local(1, Region.COMM, 0), rank_times(2, 1), flags=GROUP
    )
    driver.run(driver.build(plan((1, [start]), (repeats, [reduce, back]))))
    base = int.from_bytes(bytes(range(8)), "little")  # the blob's first word
    values = [base + 5 * rank for rank in range(3)]
    for _ in range(repeats):
        values = [sum(values) + rank for rank in range(3)]
    assert driver.view(Region.COMM, 0, 8, "Q")[0] == values[0] % 2**64


@pytest.mark.parametrize("flags", [RANK0, RANK0 | GROUP])
def test_rank0_only_runs_once(make_driver: MakeDriver, flags: LaunchFlag) -> None:
    """All ranks share io: a launch of every rank would count three times."""
    driver = make_driver(3, 1)
    count = launch("increment", [0, 1, 0], local(0, Region.IO, 0), flags=flags)
    driver.run(driver.build(plan((1000, [count, launch("nothing", [0], flags=GROUP)]))))
    assert driver.view(Region.IO, 0, 8, "Q")[0] == 1000


def test_steps_of_different_length_alternate(make_driver: MakeDriver) -> None:
    """A worker that leaves one step late must not take part in the next with the old step's programs."""
    driver = make_driver(2, 2)
    one = driver.build(plan((1, [launch("increment", [0, 1, 0], local(0, Region.COMM, 0))])))
    for step in range(3000):
        driver.run(*[one] * (step % 3))
    assert driver.view(Region.COMM, 0, 8, "Q")[0] == 3000


def test_threads_end_with_the_driver(make_driver: MakeDriver) -> None:
    before = len(threads())
    driver = make_driver(2, 3)
    assert len(threads()) == before + 5  # the caller is the sixth
    driver.close()
    assert len(threads()) == before
    with pytest.raises(PaitonError, match="closed"):
        driver.run()


def test_threads_go_where_they_are_pinned() -> None:
    cpu = min(os.sched_getaffinity(0))
    before = threads()
    group = Group(1, 3, spin_nanoseconds=0, cpus=[-1, cpu, -1])
    try:
        started = threads() - before
        allowed = [os.sched_getaffinity(int(thread)) for thread in started]
        assert sorted(map(len, allowed)) == sorted([1, len(os.sched_getaffinity(0))])
        assert {cpu} in allowed
    finally:
        group.close()


def test_a_graph_of_another_group_is_refused(make_driver: MakeDriver) -> None:
    graph = make_driver(2, 1).build(plan((1, [launch("nothing", [0])])))
    with pytest.raises(PaitonError, match="another number of ranks"):
        make_driver(1, 1).run(graph)
