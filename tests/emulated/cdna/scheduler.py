"""Runs waves: all together until they diverge, or one at a time in a chosen order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import numpy as np

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.instruction import BARRIER, Branch
from tests.emulated.cdna.memory import LaneFaultError
from tests.emulated.cdna.program import Program
from tests.emulated.cdna.waves import Waves

ORDERS: Final = (None, "fwd", "rev")


class Execution:
    """One launch's progress.

    Attributes:
        program: what runs.
        limit: instructions after which a launch counts as endless.
        on_poll: called at every turn of a loop that has an atomic in it, such as one that waits for another device.
        count: instructions executed, one for all waves that execute it together.
        wave_count: instructions executed, counted for every wave.
    """

    def __init__(self, program: Program, limit: int, on_poll: Callable[[], None] | None = None) -> None:
        self.program = program
        self.limit = limit
        self.on_poll = on_poll
        self.count = 0
        self.wave_count = 0

    def run_together(self, waves: Waves) -> None:
        """Runs waves in lockstep.

        At a divergent branch they split; groups meet again at the same instruction, since the one that is furthest
        behind always goes first. A barrier waits for all waves.

        Raises:
            EmulationError: a fault, or too many instructions.
        """
        ready, waiting = [waves], list[Waves]()
        while ready or waiting:
            if not ready:  # every live wave is at a barrier
                ready, waiting = _merge_equal(waiting), []
            pc = min(group.pc for group in ready)
            group = Waves.merge([group for group in ready if group.pc == pc])
            ready = [group for group in ready if group.pc != pc]
            stop = min((other.pc for other in ready), default=len(self.program.texts))
            outcome = self._run(group, stop)
            if outcome == BARRIER:
                waiting.append(group)
            elif isinstance(outcome, Branch) and outcome.taken is not None:
                ready.append(group.select(outcome.taken, outcome.target))
                ready.append(group.select(~outcome.taken, group.pc))
            elif outcome is None:
                ready.append(group)

    def run_one_by_one(self, waves: Waves, *, reverse: bool) -> None:
        """Runs each wave alone up to the next barrier, the first or (reverse) the last one first.

        A kernel whose result depends on the order has a race, such as a missing barrier.

        Raises:
            EmulationError: a fault, or too many instructions.
        """
        live = [waves.select(np.array([number]), 0) for number in range(waves.count)]
        if reverse:
            live.reverse()
        while live:
            live = [wave for wave in live if self._run(wave, len(self.program.texts)) == BARRIER]

    def _run(self, waves: Waves, stop: int) -> str | Branch | None:
        """Runs waves until they end, reach a barrier, diverge (a Branch), or reach or pass `stop` (None)."""
        program = self.program
        steps, pc, executed, count = program.steps, waves.pc, 0, waves.count
        left = self.limit - self.count
        try:
            while True:
                action, reads, writes, flows = steps[pc] or program.decode(pc)
                undefined = waves.undefined
                if undefined:
                    if undefined & reads:
                        self._refuse_undefined(undefined & reads)
                    waves.undefined = undefined & ~writes
                    for target, source in flows:
                        if undefined & source == source:
                            waves.undefined |= target
                executed += 1
                if executed > left:
                    self._refuse_endless()
                outcome = action(waves)
                pc += 1
                if outcome is not None:
                    if isinstance(outcome, str):
                        waves.pc = pc
                        return outcome
                    taken = outcome.taken
                    if self.on_poll and outcome.target < pc and program.polls(outcome.target, pc):
                        self.on_poll()
                    if taken is None or taken.all():
                        pc = outcome.target
                    elif taken.any():
                        waves.pc = pc
                        return outcome
                if pc >= stop:
                    waves.pc = pc
                    return None
        except EmulationError as error:
            raise self._named(error, waves, pc) from None
        except (ArithmeticError, ValueError, IndexError, TypeError) as error:
            raise EmulationError(f"{program.where(pc)}: {type(error).__name__}: {error}") from error
        finally:
            self.count += executed
            self.wave_count += executed * count

    def _refuse_undefined(self, registers: int) -> NoReturn:
        raise EmulationError(f"reads {self.program.names_of(registers)}, never written")

    def _refuse_endless(self) -> NoReturn:
        raise EmulationError(f"more than {self.limit} instructions, an endless loop?")

    def _named(self, error: EmulationError, waves: Waves, pc: int) -> EmulationError:
        """Adds what a fault's message lacks: the instruction and the lane."""
        where = self.program.where(pc)
        if str(error).startswith(where):
            return error
        if isinstance(error, LaneFaultError):
            return EmulationError(f"{where}: {waves.name_of(error.lane)}: {error}")
        return EmulationError(f"{where}: workgroup {waves.place[0, 0]}, wave {waves.place[1, 0]}: {error}")


def _merge_equal(groups: list[Waves]) -> list[Waves]:
    by_pc: dict[int, list[Waves]] = {}
    for group in groups:
        by_pc.setdefault(group.pc, []).append(group)
    return [Waves.merge(same) for same in by_pc.values()]
