"""A bundle whose blobs are still on their way from a store while it is booted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from paiton_artifacts.reader import Bundle
from paiton_artifacts.record import dataclass
from paiton_runtime.drivers.base import Part


class Arrival(Protocol):
    """What a boot sees of `paiton_artifacts.store.arrival.Arrival`, which it must not import."""

    def batches(self) -> Iterator[Sequence[Part]]:
        """Yields what has arrived and was verified, each byte once, until all has; waits in between."""

    def keep(self) -> None:
        """Makes it a bundle of the cache, in a thread of its own, once all has arrived."""

    def abandon(self) -> None:
        """Makes `batches` raise soon, and ends the transfer."""


@dataclass(frozen=True, slots=True)
class ArrivingBundle(Bundle):
    """All files but the blobs are there; the blobs have their sizes, and holes where something is yet to come."""

    arrival: Arrival
