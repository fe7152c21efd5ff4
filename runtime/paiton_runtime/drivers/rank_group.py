"""All ranks of a model: given the same work in the same order, and not waited for once they have lost each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from threading import Lock
from typing import TypeVar

from paiton_artifacts.errors import DeviceFaultError, PaitonError, RankStalledError
from paiton_runtime.drivers.device_library import DeviceLibrary
from paiton_runtime.drivers.device_rank import Rank
from paiton_runtime.drivers.peers import check_peers, enable_peers
from paiton_runtime.drivers.rank_thread import RankThread, Work, results, unfinished

T = TypeVar("T")

GRACE_SECONDS = 30.0
"""How long ranks have to end a step in which another one failed: longer than those take that poll for it in vain."""


class RankGroup:
    """Ranks on devices of one backend, each with a thread and a stream, and all memory of the others in reach.

    Args:
        library: the backend's, initialised.
        ordinals: the device of each rank.

    Attributes:
        ranks: those that are not lost.
        pinned: frees host memory that copies of all ranks use, on rank 0's thread.

    Raises:
        UnsupportedHostError: not all devices reach each other's memory.
    """

    def __init__(self, library: DeviceLibrary, ordinals: Sequence[int]) -> None:
        self.ranks = [Rank(n, ordinal, RankThread(f"paiton-rank-{n}")) for n, ordinal in enumerate(ordinals)]
        self.pinned = ExitStack()
        self._library = library
        self._order = Lock()  # ranks meet in launches, so all of them need the same steps in the same order
        self._broken: PaitonError | None = None
        self._lost: list[tuple[Rank, Work[None]]] = []
        try:
            self.run(self._create_stream)
            if len(ordinals) > 1:
                check_peers(library, ordinals)
                self.run(lambda rank: enable_peers(library, rank.ordinal, ordinals))
        except BaseException:
            self.close(ExitStack())
            raise

    def _create_stream(self, rank: Rank) -> None:
        self._library.set_device(rank.ordinal)
        rank.stream = self._library.create_stream()
        rank.cleanup.callback(self._library.destroy_stream, rank.stream)

    def submit(self, work: Callable[[Rank], T]) -> list[Work[T]]:
        """Gives every rank's thread something to do."""
        with self._order:
            return [rank.thread.submit(partial(work, rank)) for rank in self.ranks]

    def run(self, work: Callable[[Rank], T]) -> list[T]:
        """Runs `work` on all ranks at once; raises the first error after all have ended."""
        return results(self.submit(work))

    def step(self, work: Callable[[Rank], None]) -> None:
        """Runs a step, in which ranks may wait for each other, on all ranks at once.

        Raises:
            PaitonError: what went wrong first. Ranks that share a model do no further steps then: each raises it again.
            RankStalledError: among others: a rank did not even end its step within `GRACE_SECONDS` of an error.
        """
        if self._broken is not None:
            raise self._broken
        works = self.submit(work)
        lost = unfinished(works, GRACE_SECONDS)
        self._lost = [(rank, work) for rank, work in zip(self.ranks, works, strict=True) if work in lost]
        errors = [error for work in works if work not in lost and (error := work.error()) is not None]
        if errors:
            self._fail(errors)

    def _fail(self, errors: Sequence[BaseException]) -> None:
        # A rank that crashed, or was refused a launch, is why the others waited in vain.
        error = next((error for error in errors if not isinstance(error, RankStalledError)), errors[0])
        if len(self.ranks) > 1 and isinstance(error, PaitonError):
            if self._lost and isinstance(error, RankStalledError):
                numbers = ", ".join(str(rank.number) for rank, _ in self._lost)
                error = RankStalledError(f"{error.message}; rank {numbers} still runs", hint="end this process")
            self._broken = error
        raise error

    def close(self, shared: ExitStack) -> None:
        """Waits for the devices and frees everything, `shared` once every rank is done.

        What a rank uses that has not ended a failed step by now goes with the process: it may never end.
        """
        lost = [rank for rank, work in self._lost if not work.wait(0)]
        self.ranks = [rank for rank in self.ranks if rank not in lost]
        with ExitStack() as stack:
            if not lost:
                stack.callback(self._library.close)
            for rank in lost:
                stack.callback(rank.thread.close, wait=False)
            for rank in self.ranks:
                stack.callback(rank.thread.close)
            stack.callback(shared.close)
            stack.callback(lambda: self.run(lambda rank: rank.cleanup.close()))
            if not lost:
                stack.callback(lambda: self.ranks[0].thread.submit(self.pinned.close).result())
            # All of them first: what one frees, kernels of another may still reach.
            stack.callback(lambda: self.run(self._settle))

    def _settle(self, rank: Rank) -> None:
        """Waits until nothing runs any more; a fault has been reported before."""
        with suppress(DeviceFaultError):
            if rank.stream:
                self._library.synchronise_stream(rank.stream)
