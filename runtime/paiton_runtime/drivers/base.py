"""The driver protocol: the few things that differ between devices."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Plan
from paiton_runtime.budget import RegionSizes

Part = tuple[int, int, int]
"""Bytes of a rank's weights: the rank, the offset of the first, and how many."""


class Graph(Protocol):
    """A plan made ready for launch on every rank."""

    launches: int


class Driver(Protocol):
    """A device with all ranks of one model. Methods are called in this order; `close` may be called at any time."""

    def open_weights(self, descriptor: int, size: int, name: str) -> None:
        """Gives the next rank's weights an address: the first `size` bytes of an open file; `name` is for messages."""

    def load_weights(self, arriving: Iterable[Sequence[Part]] | None = None) -> None:
        """Makes the weights resident; blocks, and is called from a thread of its own.

        Args:
            arriving: yields what is in the files already, until everything is. None: everything is.
        """

    def stop_loading(self) -> None:
        """Makes a `load_weights` that runs in another thread return soon: the boot has failed."""

    def allocate(self, sizes: RegionSizes) -> None:
        """Reserves the other regions of every rank, zero-filled."""

    def load_code(self, name: str, code: bytes, symbols: Collection[str]) -> None:
        """Loads a code object from memory and resolves its symbols."""

    def build(self, plan: Plan) -> Graph:
        """Unrolls and relocates a plan whose bounds have been checked."""

    def run(self, *graphs: Graph, changed: Collection[str] = ()) -> None:
        """Runs graphs one after the other on all ranks, and returns when they are done.

        Args:
            graphs: of this driver.
            changed: io fields outside the inputs that the host has written since they last ran: a device with memory
                of its own gets them first.
        """

    def view(self, region: Region, offset: int, size: int, letter: str) -> memoryview[Any]:
        """Returns rank 0's bytes of a host-visible region (io, comm, kv) as elements of a native struct letter."""

    def fetch(self, region: Region, offset: int, size: int) -> None:
        """Brings bytes of rank 0 to where `view` shows them, if that is not the device's own memory."""

    def close(self) -> None:
        """Frees everything."""
