"""A model of the flag protocol of collective kernels (docs/tensor-parallelism.md): one channel, stores that take time.

Every rank runs the same exchanges one after the other. In each it stores into every rank's staging memory, waits for
its stores, raises its flag at every rank, waits for all flags at home, and reads. Data is the number of the exchange:
reading anything else is an error. Stores and what ranks do happen in any order that the rules allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

PUSH, FLAG, WAIT, READ, DONE = range(5)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the protocol does. The defaults are the real ones; each other value is a mistake that must be found.

    Attributes:
        halves: of the staging memory, which exchanges take turns in.
        waits_for_stores: whether stores have arrived before the flag is raised.
        exact: whether a flag must equal the number that is waited for, instead of having reached it.
        replay: exchanges of a captured graph whose numbers are baked into it; 0 where they are counted in memory.
        baked: what is baked: "half" (which half of the memory to use) or "number".
    """

    halves: int = 2
    waits_for_stores: bool = True
    exact: bool = False
    replay: int = 0
    baked: str = "half"

    def number(self, exchange: int) -> int:
        """Returns what flag and data of the exchange are, from 1."""
        return exchange % self.replay + 1 if self.replay and self.baked == "number" else exchange + 1

    def half(self, exchange: int) -> int:
        """Returns where its data lies."""
        return (exchange % self.replay if self.replay else exchange) % self.halves

    def arrived(self, flag: int, number: int) -> bool:
        """Returns whether a flag is up."""
        return flag == number if self.exact else flag >= number


class Rank(NamedTuple):
    """What a rank is about to do: (exchange, PUSH ... DONE, to whom the next flag goes)."""

    exchange: int
    phase: int
    peer: int


class State(NamedTuple):
    """Everything.

    Attributes:
        ranks: what each is about to do.
        stores: under way: (from, to, half, data).
        staging: (to, half, from) -> data, flattened.
        flags: (to, from) -> number, flattened.
    """

    ranks: tuple[Rank, ...]
    stores: frozenset[tuple[int, int, int, int]]
    staging: tuple[int, ...]
    flags: tuple[int, ...]


class ProtocolError(Exception):
    """A rank read what it must not read, or all wait for ever."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """The protocol for a number of ranks and exchanges."""

    ranks: int
    exchanges: int
    rules: Rules = Rules()

    def start(self) -> State:
        """Returns the first state."""
        count = self.ranks
        zeros = (0,) * (count * self.rules.halves * count)
        return State((Rank(0, PUSH, 0),) * count, frozenset(), zeros, (0,) * (count * count))

    def deliver(self, state: State, store: tuple[int, int, int, int]) -> State:
        """Returns the state in which a store has arrived."""
        sender, to, half, data = store
        place = (to * self.rules.halves + half) * self.ranks + sender
        return state._replace(stores=state.stores - {store}, staging=_with(state.staging, place, data))

    def advance(self, state: State, number: int) -> State | None:
        """Returns the state after a rank's next step; None if it has to wait, or is done.

        Raises:
            ProtocolError: it read data of another exchange.
        """
        rank, rules = state.ranks[number], self.rules
        wanted, half = rules.number(rank.exchange), rules.half(rank.exchange)
        if rank.phase == PUSH:
            sent = {(number, to, half, wanted) for to in range(self.ranks)}
            return _moved(state, number, Rank(rank.exchange, FLAG, 0))._replace(stores=state.stores | sent)
        if rank.phase == FLAG:
            if rules.waits_for_stores and any(store[0] == number for store in state.stores):
                return None
            last = rank.peer + 1 == self.ranks
            then = Rank(rank.exchange, WAIT, 0) if last else rank._replace(peer=rank.peer + 1)
            return _moved(state, number, then)._replace(
                flags=_with(state.flags, rank.peer * self.ranks + number, wanted)
            )
        if rank.phase == WAIT:
            own = state.flags[number * self.ranks : (number + 1) * self.ranks]
            if not all(rules.arrived(flag, wanted) for flag in own):
                return None
            return _moved(state, number, Rank(rank.exchange, READ, 0))
        if rank.phase == READ:
            start = (number * rules.halves + half) * self.ranks
            found = state.staging[start : start + self.ranks]
            if any(data != wanted for data in found):
                raise ProtocolError(f"rank {number} reads {found} in exchange {wanted}")
            following = rank.exchange + 1
            return _moved(state, number, Rank(following, PUSH if following < self.exchanges else DONE, 0))
        return None

    def following(self, state: State) -> Iterator[State]:
        """Yields every state that can come next."""
        for store in state.stores:
            yield self.deliver(state, store)
        for number in range(self.ranks):
            after = self.advance(state, number)
            if after is not None:
                yield after

    def finished(self, state: State) -> bool:
        """Returns whether all ranks are done."""
        return all(rank.phase == DONE for rank in state.ranks)

    def explore(self) -> int:
        """Visits every state that can be reached and returns how many there are.

        Raises:
            ProtocolError: one of them is wrong, or leads nowhere.
        """
        seen = {self.start()}
        waiting = list(seen)
        while waiting:
            state = waiting.pop()
            any_after = False
            for after in self.following(state):
                any_after = True
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)
            if not any_after and not self.finished(state):
                raise ProtocolError(f"all wait for ever: {state.ranks}")
        return len(seen)

    def wander(self, random: Random) -> int:
        """Takes one random way through all exchanges, some ranks and stores slower than others; returns its steps.

        Raises:
            ProtocolError: it ends where it must not.
        """
        state = self.start()
        steps = 0
        eager: list[float] = []
        while not self.finished(state):
            if steps % 50 == 0:
                eager = [0.01 + random.random() ** 2 for _ in range(self.ranks)]
            steps += 1
            (number,) = random.choices(range(self.ranks), eager)
            after = self.advance(state, number)
            if after is None or random.random() < 0.3:
                if state.stores:
                    state = self.deliver(state, random.choice(tuple(state.stores)))
                elif after is None and not any(self.advance(state, other) for other in range(self.ranks)):
                    raise ProtocolError(f"all wait for ever: {state.ranks}")
                continue
            state = after
        return steps


def _moved(state: State, number: int, rank: Rank) -> State:
    return state._replace(ranks=(*state.ranks[:number], rank, *state.ranks[number + 1 :]))


def _with(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    return (*values[:place], value, *values[place + 1 :])
