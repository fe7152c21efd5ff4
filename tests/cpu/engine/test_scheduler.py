"""The scheduler under random loads: a plain simulation checks what every step must keep."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paiton_runtime.engine.blocks import BlockManager
from paiton_runtime.engine.params import SamplingParams
from paiton_runtime.engine.request import Request, Status, make_sampling
from paiton_runtime.engine.scheduler import Limits, Proposal, Scheduler

BLOCK = 4


def make_request(
    order: int, prompt: list[int], limit: int, priority: int = 0, leader: Request | None = None, *, rated: bool = False
) -> Request:
    params = SamplingParams(temperature=0, max_tokens=limit, prompt_logprobs=0 if rated else None)
    return Request(
        request_id=str(order),
        params=params,
        prompt_tokens=len(prompt),
        limit=limit,
        eos=frozenset(),
        deliver=lambda _: None,
        priority=priority,
        constraint=None,
        leader=leader,
        order=order,
        arrived=0.0,
        tokens=list(prompt),
        sampling=make_sampling(params, 0, ()),
    )


@dataclass
class Simulation:
    """Runs proposals one step late, as the engine does, and checks each against the rules."""

    scheduler: Scheduler
    cells: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)  # block, offset -> tokens up to there
    flight: list[tuple[Proposal, list[int], list[Request]]] = field(default_factory=list)
    finished: list[Request] = field(default_factory=list)
    rated: set[tuple[int, int]] = field(default_factory=set)  # order and position
    steps: int = 0

    def begin(self) -> bool:
        """Begins the next step, unless there is nothing to compute."""
        proposal = self.scheduler.propose()
        if proposal is None:
            return False
        self._check(proposal)
        chunks = [request.chunk(count) for request, count in proposal.chunks]
        self.scheduler.settle(proposal)
        assert sum(chunk.rows for chunk in chunks) <= self.scheduler.limits.rows
        rows = []
        for (request, _), chunk in zip(proposal.chunks, chunks, strict=True):
            if chunk.targets is not None:
                assert list(chunk.targets) == request.tokens[chunk.start + 1 : chunk.start + 1 + len(chunk.tokens)]
                self.rated |= {(request.order, chunk.start + i) for i in range(len(chunk.tokens))}
            elif chunk.rows:
                rows.append(request)
        self.flight.append((proposal, [request.preemptions for request, _ in proposal.chunks], rows))
        self.steps += 1
        return True

    def _check(self, proposal: Proposal) -> None:
        limits = self.scheduler.limits
        requests = [request for request, _ in proposal.chunks]
        assert len({id(request) for request in requests}) == len(requests) <= limits.requests
        assert 0 < sum(count for _, count in proposal.chunks) <= limits.tokens
        slots = [request.slot for request in self.scheduler.running]
        assert None not in slots
        assert len(set(slots)) == len(slots)
        for request, count in proposal.chunks:
            assert request.status is Status.RUNNING
            assert 0 < count <= request.remaining
            assert len(request.blocks) * BLOCK >= request.scheduled + count
        last_positions = [r for r in requests if r.remaining == 1 and r not in proposal.joined]
        if last_positions:
            rest = sum(count for request, count in proposal.chunks if request not in last_positions)
            assert rest <= limits.prompt_tokens

    def end(self) -> None:
        """Ends the oldest step: writes keys and values, reads what attention would read, samples."""
        proposal, lives, rows = self.flight.pop(0)
        for (request, count), life in zip(proposal.chunks, lives, strict=True):
            if request.slot is not None and request.preemptions == life:
                self._compute(request, count)
            self.scheduler.advance(request, count, life)
        for request in rows:
            request.pending -= 1
            if request.status is not Status.FINISHED:
                request.tokens.append(len(request.tokens) * 31 % 97)
                if request.generated == request.limit:
                    self.scheduler.finish(request)
                    self.finished.append(request)

    def _compute(self, request: Request, count: int) -> None:
        for position in range(request.computed, request.computed + count):
            block, offset = request.blocks[position // BLOCK], position % BLOCK
            self.cells[block, offset] = tuple(request.tokens[: position + 1])
        for position in range(request.computed + count):
            block, offset = request.blocks[position // BLOCK], position % BLOCK
            assert self.cells[block, offset] == tuple(request.tokens[: position + 1]), "read what another has written"


arrivals = st.lists(
    st.tuples(
        st.integers(0, 6),  # steps until it comes
        st.lists(st.integers(0, 1), min_size=1, max_size=18),  # prompt; few token ids, so that prefixes are shared
        st.integers(1, 12),  # tokens to generate
        st.integers(0, 2),  # priority
        st.booleans(),  # its prompt is rated
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(arrivals, st.integers(8, 20), st.booleans(), st.booleans())
def test_every_request_ends_and_reads_only_its_own_past(
    wanted: list[tuple[int, list[int], int, int, bool]], blocks: int, caching: bool, ahead: bool
) -> None:
    manager = BlockManager(blocks, BLOCK, caching=caching)
    simulation = Simulation(Scheduler(manager, Limits(8, 4, 3, 3)))
    todo = [
        (delay, make_request(i, prompt, limit, priority, rated=rated))
        for i, (delay, prompt, limit, priority, rated) in enumerate(wanted)
    ]
    requests = [request for _, request in todo]
    step = 0
    while len(simulation.finished) < len(requests):
        while todo and todo[0][0] <= step:
            simulation.scheduler.add(todo.pop(0)[1])
            step = 0
        began = simulation.begin()
        while simulation.flight and (len(simulation.flight) > ahead or not began):
            simulation.end()
        step += 1
        assert simulation.steps < 5000, "no progress"
    while simulation.flight:
        simulation.end()
    assert manager.free == blocks
    assert all(request.generated == request.limit for request in requests)
    rated = [request for request in requests if request.params.prompt_logprobs is not None]
    assert simulation.rated == {(request.order, i) for request in rated for i in range(request.prompt_tokens - 1)}


def prepared(tokens: int = 8, prompt_tokens: int = 4, requests: int = 3, blocks: int = 64) -> Scheduler:
    return Scheduler(BlockManager(blocks, BLOCK), Limits(tokens, prompt_tokens, requests, requests))


def run(simulation: Simulation, steps: int) -> None:
    for _ in range(steps):
        simulation.begin()
        while simulation.flight:
            simulation.end()


def test_first_come_first_served_within_a_priority() -> None:
    scheduler = prepared(requests=1)
    requests = [make_request(i, [i], 1, priority) for i, priority in enumerate((1, 0, 1, 0))]
    for request in requests:
        scheduler.add(request)
    simulation = Simulation(scheduler)
    run(simulation, 4)
    assert [request.order for request in simulation.finished] == [1, 3, 0, 2]


def test_a_low_priority_waits_for_later_requests_for_a_limited_time() -> None:
    scheduler = prepared(requests=1)
    low = make_request(0, [1], 1, priority=2)
    later = [make_request(1 + i, [1], 1) for i in range(6)]
    for i, request in enumerate(later):
        request.arrived = 20.0 * i
    for request in (low, *later):
        scheduler.add(request)
    simulation = Simulation(scheduler)
    run(simulation, 7)
    assert [request.order for request in simulation.finished] == [1, 2, 3, 0, 4, 5, 6]  # two levels count as 60 seconds


def test_decoding_goes_on_while_a_long_prompt_is_computed() -> None:
    scheduler = prepared()
    short, long = make_request(0, [1], 20), make_request(1, [2] * 24, 1)
    simulation = Simulation(scheduler)
    scheduler.add(short)
    run(simulation, 1)
    scheduler.add(long)
    run(simulation, 5)
    assert (short.generated, long.computed) == (6, 20)  # a token and 4 positions a step
    run(simulation, 1)
    assert (short.generated, long.generated) == (7, 1)


def test_a_repeated_prompt_is_found_up_to_its_last_full_block() -> None:
    scheduler = prepared(tokens=32)
    simulation = Simulation(scheduler)
    first, again = make_request(0, list(range(12)), 1), make_request(1, list(range(12)), 1)
    scheduler.add(first)
    run(simulation, 1)
    scheduler.add(again)
    run(simulation, 1)
    assert (first.cached_tokens, simulation.finished) == (0, [first, again])
    assert (scheduler.queries, scheduler.hits) == (24, 8)  # the third block's last token must be computed


def test_followers_wait_for_their_leader_and_share_its_prompt() -> None:
    scheduler = prepared(tokens=4, requests=3)
    simulation = Simulation(scheduler)
    leader = make_request(0, list(range(10)), 4)
    follower = make_request(1, list(range(10)), 4, leader=leader)
    scheduler.add(leader)
    scheduler.add(follower)
    run(simulation, 2)
    assert follower.status is Status.WAITING
    run(simulation, 2)
    assert follower.cached_tokens == 8


def test_the_latest_request_of_the_least_priority_gives_way() -> None:
    scheduler = prepared(tokens=16, prompt_tokens=16, blocks=5)
    first, second = make_request(0, [1] * 4, 16), make_request(1, [2] * 4, 4)
    simulation = Simulation(scheduler)
    scheduler.add(first)
    scheduler.add(second)
    run(simulation, 40)
    assert (first.preemptions, first.generated, second.generated) == (0, 16, 4)


@pytest.mark.parametrize("reason", ["waiting", "running"])
def test_a_finished_request_leaves_nothing(reason: str) -> None:
    scheduler = prepared()
    request = make_request(0, [1, 2, 3], 5)
    scheduler.add(request)
    if reason == "running":
        run(Simulation(scheduler), 1)
    scheduler.finish(request)
    assert scheduler.blocks.free == scheduler.blocks.blocks
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.propose() is None
