"""Runs launches of several devices at once: every wave on its own, in a random order, with stores that take their time.

What a wave stores to watched memory (where devices exchange data) is in flight until it waits for its stores
(``s_waitcnt vmcnt(0)``) or chance delivers it, in any order: atomics of the same wave may overtake it. Caches are not
modelled, so loads are never stale. A device runs its launches one after the other, all workgroups of one together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import numpy as np

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.instruction import BARRIER, Branch
from tests.emulated.cdna.kernel import Kernel
from tests.emulated.cdna.memory import Addresses, DeviceMemory, Mask
from tests.emulated.cdna.waves import Environment, Waves

_ARGUMENT_SLACK: Final = 64
_STORES_DONE: Final = "vmcnt(0)"
_DELIVERED: Final = 0.1  # how likely a store arrives whenever its wave goes on
_QUANTA: Final = (1, 10, 100, 1000)  # instructions until another wave may go on


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with its arguments.

    Attributes:
        kernel: what runs.
        arguments: the argument block.
        blocks: workgroups.
        num_warps: waves of a workgroup.
        shared_bytes: LDS of a workgroup.
    """

    kernel: Kernel
    arguments: bytes
    blocks: int
    num_warps: int
    shared_bytes: int


@dataclass(eq=False, slots=True)
class Device:
    """A device with the launches that it still has to run.

    Attributes:
        memory: with its peers enabled.
        watched: address ranges, of this device's and its peers' memory, to which stores are delayed.
        launches: in stream order.
        weight: how much of the time its waves get, relative to other devices'.
    """

    memory: DeviceMemory
    watched: Sequence[tuple[int, int]]
    launches: list[Launch]
    weight: float = 1.0


class _InFlight:
    """A wave's view of memory, with the stores that have not arrived yet."""

    def __init__(self, device: Device, random: Random, *, delayed: bool) -> None:
        self._memory = device.memory
        self._watched = device.watched if delayed else ()
        self._random = random
        self._stores: list[tuple[Addresses, Any, int, Mask | None]] = []
        self.atomic = False  # what follows is one atomic operation: it happens at once, before stores in flight

    def store(self, addresses: Addresses, values: Any, nbytes: int, active: Mask | None = None) -> None:
        """Sends a store on its way."""
        chosen = addresses if active is None else addresses[active]
        if not self.atomic and chosen.size and any(start <= int(chosen.flat[0]) < end for start, end in self._watched):
            self._memory.check(chosen.reshape(-1), nbytes, "store", writing=True)
            self._stores.append((addresses.copy(), values.copy(), nbytes, None if active is None else active.copy()))
        else:
            self._memory.store(addresses, values, nbytes, active)

    def load(self, addresses: Addresses, nbytes: int, active: Mask | None = None) -> Any:
        """Loads what has arrived, and all that this wave itself stored."""
        if self._stores and not self.atomic:
            self.complete()
        return self._memory.load(addresses, nbytes, active)

    def check(self, addresses: Addresses, nbytes: int, what: str, *, writing: bool = False) -> None:
        """As the memory's."""
        self._memory.check(addresses, nbytes, what, writing=writing)

    def complete(self, count: int | None = None) -> None:
        """Lets stores arrive, in any order: all, or so many at most."""
        for _ in range(len(self._stores) if count is None else min(count, len(self._stores))):
            self._memory.store(*self._stores.pop(self._random.randrange(len(self._stores))))


@dataclass(eq=False, slots=True)
class _Wave:
    waves: Waves
    kernel: Kernel
    flight: _InFlight
    block: int
    weight: float  # how much of its device's time it gets, relative to others
    done: bool = False
    waiting: bool = False  # at a barrier


@dataclass(eq=False, slots=True)
class _Running:
    """The launch that a device is running."""

    waves: list[_Wave]
    arguments: int
    ready: list[_Wave] = field(default_factory=list)


class Interleaving:
    """Runs devices until all have run their launches.

    Args:
        devices: that run at the same time.
        random: decides who goes on, for how long, and when stores arrive.
        delayed: whether stores to watched memory take their time.
        max_instructions: of all waves together, after which the run counts as hanging.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        random: Random,
        *,
        delayed: bool = True,
        max_instructions: int = 20_000_000,
    ) -> None:
        self.devices = devices
        self.random = random
        self.delayed = delayed
        self.left = max_instructions

    def run(self) -> None:
        """Runs.

        Raises:
            EmulationError: a fault, or a group that hangs.
        """
        running = {number: self._start(device) for number, device in enumerate(self.devices) if device.launches}
        while running:
            numbers = list(running)
            (number,) = self.random.choices(numbers, [self.devices[number].weight for number in numbers])
            now = running[number]
            (wave,) = self.random.choices(now.ready, [wave.weight for wave in now.ready])
            self._advance(wave)
            self._refresh(now)
            if not now.ready:
                device = self.devices[number]
                for wave in now.waves:
                    wave.flight.complete()
                device.memory.free(now.arguments)
                del running[number]
                if device.launches:
                    running[number] = self._start(device)

    def _start(self, device: Device) -> _Running:
        launch = device.launches.pop(0)
        block = np.frombuffer(launch.arguments + bytes(_ARGUMENT_SLACK), np.uint8)
        arguments = device.memory.map(block, name="kernel arguments")
        found = _Running(list(self._waves(device, launch, arguments)), arguments)
        found.ready = list(found.waves)
        return found

    def _waves(self, device: Device, launch: Launch, arguments: int) -> Iterator[_Wave]:
        for block in range(launch.blocks):
            together = launch.kernel.new_waves(
                device.memory, arguments, np.array([block]), (launch.blocks, 1), launch.num_warps, launch.shared_bytes
            )
            shared = together.environment
            for number in range(launch.num_warps):
                flight = _InFlight(device, self.random, delayed=self.delayed)
                wave = together.select(np.array([number]), 0)
                wave.environment = Environment(flight, shared.shared, shared.shared_bytes)  # type: ignore[arg-type]
                yield _Wave(wave, launch.kernel, flight, block, 0.02 + self.random.random() ** 3)

    def _refresh(self, running: _Running) -> None:
        """Opens barriers that all live waves of a block have reached, and finds who can go on."""
        blocks: dict[int, list[_Wave]] = {}
        for wave in running.waves:
            if not wave.done:
                blocks.setdefault(wave.block, []).append(wave)
        for waves in blocks.values():
            if all(wave.waiting for wave in waves):
                for wave in waves:
                    wave.waiting = False
        running.ready = [wave for waves in blocks.values() for wave in waves if not wave.waiting]

    def _advance(self, wave: _Wave) -> None:
        """Runs a wave for a while, at most up to its next barrier or atomic."""
        budget = self.random.choice(_QUANTA)
        program, waves = wave.kernel.program, wave.waves
        if self.random.random() < _DELIVERED:
            wave.flight.complete(1)
        pc = waves.pc
        try:
            with np.errstate(all="ignore"):
                for _ in range(budget):
                    self.left -= 1
                    text = program.texts[pc]
                    if text.startswith("s_waitcnt") and _STORES_DONE in text:
                        wave.flight.complete()
                    wave.flight.atomic = "_atomic_" in text
                    outcome = (program.steps[pc] or program.decode(pc))[0](waves)
                    pc += 1
                    if wave.flight.atomic:
                        break
                    if isinstance(outcome, Branch):
                        if outcome.taken is None or outcome.taken.all():
                            pc = outcome.target
                    elif outcome is not None:
                        wave.waiting, wave.done = outcome == BARRIER, outcome != BARRIER
                        break
        except EmulationError as error:
            raise EmulationError(f"{program.where(pc)}: block {wave.block}: {error}") from None
        waves.pc = pc
        if self.left < 0:
            raise EmulationError("the devices wait for each other for ever")
