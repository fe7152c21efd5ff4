"""Decides what the next step computes. Knows neither threads nor devices.

Decoding requests come first, so that their streams flow; what is left of the step's tokens goes to prompts, in the
order of arrival. While others decode, a step takes only a part of a prompt: a whole one would stop all streams.
"""

from __future__ import annotations

from bisect import insort

from paiton_artifacts.record import dataclass, field
from paiton_runtime.engine.blocks import BlockManager
from paiton_runtime.engine.request import Request, Status


@dataclass(slots=True)
class Limits:
    """What a step may hold: tokens in all, of prompts while others decode, requests, and rows of logits."""

    tokens: int
    prompt_tokens: int
    requests: int
    rows: int


@dataclass(slots=True)
class Proposal:
    """A step that may be run next: requests, and how many positions of each. Nothing of it is settled yet."""

    rows: int  # of logits, that the step still has room for
    chunks: list[tuple[Request, int]] = field(default_factory=list)
    joined: list[Request] = field(default_factory=list)  # run for the first time, or again, since they got their slot


class Scheduler:
    """The queues.

    Attributes:
        waiting: requests without blocks, by priority and arrival.
        running: requests with a slot, in the order of admission.
        preemptions: so far.
        queries: tokens looked up in the prefix cache so far.
        hits: of them, found.
    """

    def __init__(self, blocks: BlockManager, limits: Limits) -> None:
        self.blocks = blocks
        self.limits = limits
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preemptions = 0
        self.queries = 0
        self.hits = 0
        self._slots = list(range(limits.requests - 1, -1, -1))

    def add(self, request: Request) -> None:
        """Takes a request into the queue."""
        insort(self.waiting, request, key=lambda one: one.sort_key)

    def propose(self) -> Proposal | None:
        """Returns the next step, or None if there is nothing to compute.

        Blocks and slots are given out; `settle` records what is computed once the step begins. May be called again
        before that, and then gives a step that contains what has come since.
        """
        proposal = Proposal(self.limits.rows)
        budget = self.limits.tokens
        preempted = self.preemptions
        decoding = [request for request in self.running if request.remaining == 1]
        for request in decoding:
            if budget and self._schedule(proposal, request, 1):
                budget -= 1
        share = min(budget, self.limits.prompt_tokens) if proposal.chunks else budget
        for request in [request for request in self.running if request.remaining > 1]:
            count = _fitting(request, share, proposal.rows)
            if count and self._schedule(proposal, request, count):
                share -= count
        if self.preemptions == preempted:  # a request that lost its blocks must not take those of another at once
            self._admit(proposal, share)
        # A request may have been preempted after it was put in.
        proposal.chunks = [(request, count) for request, count in proposal.chunks if request.slot is not None]
        proposal.joined = [request for request, _ in proposal.chunks if request.scheduled == request.reused]
        return proposal if proposal.chunks else None

    def settle(self, proposal: Proposal) -> None:
        """Records that the step is under way."""
        for request, count in proposal.chunks:
            if count == request.remaining:
                request.pending += 1
            request.scheduled += count

    def _schedule(self, proposal: Proposal, request: Request, count: int) -> bool:
        """Puts a running request into the step, taking the blocks of later ones where none are left."""
        while request.status is Status.RUNNING and not self._reserve(request, request.scheduled + count):
            self._preempt(max(self.running, key=lambda one: one.sort_key))
        if request.status is not Status.RUNNING:
            return False
        _put(proposal, request, count)
        return True

    def _reserve(self, request: Request, tokens: int) -> bool:
        missing = self.blocks.count_for(tokens) - len(request.blocks)
        if missing > 0:
            taken = self.blocks.take(missing)
            if taken is None:
                return False
            request.blocks.extend(taken)
        return True

    def _preempt(self, request: Request) -> None:
        """Takes everything from a request; it will be computed again, its prompt and what it has generated."""
        self.preemptions += 1
        request.preemptions += 1
        self._release(request)
        request.status = Status.WAITING
        self.add(request)

    def _release(self, request: Request) -> None:
        if request.slot is not None:
            self._slots.append(request.slot)
            self.running.remove(request)
        self.blocks.give_back(request.blocks)
        del request.blocks[:]
        request.slot = None
        request.scheduled = request.computed = request.remembered = request.reused = 0

    def _admit(self, proposal: Proposal, share: int) -> None:
        """Lets waiting requests in, in order, as far as slots, blocks and the step's tokens go."""
        for request in list(self.waiting):
            if not share or not self._slots:
                return
            if request.pending or self._follows(request):
                continue
            if not proposal.rows or not self._start(request):
                return
            count = _fitting(request, share, proposal.rows)
            self.waiting.remove(request)
            _put(proposal, request, count)
            share -= count

    def _follows(self, request: Request) -> bool:
        """Returns whether the request waits until another has computed the prompt that they share."""
        leader = request.leader
        if leader is None or not self.blocks.caching:
            return False
        return leader.status is not Status.FINISHED and leader.computed < leader.prompt_tokens

    def _start(self, request: Request) -> bool:
        """Gives a request its slot and the blocks of all its tokens, from the prefix cache where they are there."""
        blocks = self.blocks
        full = (len(request.tokens) - 1) // blocks.block_tokens  # the last token's logits are what it is for
        # What is rated must be computed: the cache keeps no logits.
        cached = blocks.caching and not request.unscored
        found = blocks.find(request.block_keys(full, blocks.block_tokens)) if cached else []
        missing = blocks.count_for(len(request.tokens)) - len(found)
        # Each running request may need a block soon; letting another in for its place to be lost at once gains nothing.
        free = blocks.free - (len(found) - blocks.held(found)) - len(self.running)
        if missing > free:
            return False
        blocks.hold(found)
        taken = blocks.take(missing)
        request.blocks.extend(found)
        request.blocks.extend(taken if taken is not None else ())
        request.scheduled = request.computed = request.reused = len(found) * blocks.block_tokens
        request.remembered = len(found)
        if request.cached_tokens is None:  # what it finds of itself after a preemption does not count
            request.cached_tokens = request.reused
            self.queries += request.prompt_tokens
            self.hits += request.cached_tokens
        request.slot = self._slots.pop()
        request.status = Status.RUNNING
        self.running.append(request)
        return True

    def advance(self, request: Request, count: int, life: int) -> None:
        """Records that a step has computed `count` more positions, and makes the blocks that are full findable.

        Args:
            request: one of the step.
            count: positions.
            life: its number of preemptions when the step began: what was computed before one is lost.
        """
        if request.slot is None or request.preemptions != life:
            return
        request.computed += count
        size = self.blocks.block_tokens
        full = min(request.computed, len(request.tokens)) // size
        if self.blocks.caching and full > request.remembered:
            keys = request.block_keys(full, size)
            for number in range(request.remembered, full):
                self.blocks.remember(request.blocks[number], keys[number])
            request.remembered = full

    def finish(self, request: Request) -> None:
        """Takes a request out, wherever it is."""
        if request.status is Status.WAITING:
            self.waiting.remove(request)
        self._release(request)
        request.status = Status.FINISHED


def _fitting(request: Request, tokens: int, rows: int) -> int:
    """Returns how many of a prompt's next positions a step takes that has room for so many tokens and rows."""
    if request.unscored:
        return min(tokens, rows, request.unscored)
    count = min(tokens, request.remaining)
    return count if rows or count < request.remaining else count - 1  # the last position needs a row


def _put(proposal: Proposal, request: Request, count: int) -> None:
    """Puts positions of a request into a step."""
    proposal.rows -= request.rows(count)
    proposal.chunks.append((request, count))
