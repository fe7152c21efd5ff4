"""A thread for each rank, on which everything happens that concerns the rank's device, in the order it was asked for.

What the standard library has for this imports logging, which a boot does not need, and takes longer over each piece of
work, of which every step gives one to every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import Any, Generic, TypeVar

from paiton_artifacts.errors import PaitonError

T = TypeVar("T")

_GLANCE_SECONDS = 0.25
"""How often whoever waits for one work looks whether another has failed."""


class Work(Generic[T]):
    """A piece of work that a thread was given."""

    __slots__ = ("_call", "_done", "_error", "_result")

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._result: T
        self._done = Lock()
        self._done.acquire()

    def run(self) -> None:
        """Does it, on the calling thread."""
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001 (handed to the thread that waits, which raises it)
            self._error = error
        finally:
            self._done.release()

    def error(self) -> BaseException | None:
        """Waits until it is done; returns what went wrong."""
        with self._done:
            return self._error

    def wait(self, seconds: float) -> bool:
        """Waits until it is done, but no longer than so many seconds; returns whether it is."""
        done = self._done.acquire(timeout=seconds)
        if done:
            self._done.release()
        return done

    def failed(self) -> bool:
        """Returns whether it is done and something went wrong."""
        return self.wait(0) and self._error is not None

    def result(self) -> T:
        """Waits until it is done; returns what it returned, or raises what it raised."""
        if (error := self.error()) is not None:
            raise error
        return self._result


class RankThread:
    """A thread that does what it is given, one after the other.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Work[Any] | None] = SimpleQueue()
        # A daemon: a process that ends without closing its model does not wait for it.
        self._thread = Thread(target=self._serve, name=name, daemon=True)
        self._closed = False
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> Work[T]:
        """Gives the thread something to do."""
        if self._closed:
            raise PaitonError(f"thread {self._thread.name} is closed")
        work = Work(call)
        self._queue.put(work)
        return work

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            work.run()
            del work  # it may hold what its owner expects to be freed

    def close(self, *, wait: bool = True) -> None:
        """Ends the thread once it has done everything; does not wait for that if it may never have."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            if wait:
                self._thread.join()


def unfinished(works: Sequence[Work[Any]], grace: float) -> list[Work[Any]]:
    """Waits for all works, or until so many seconds after one of them has failed; returns those that still run."""
    deadline = inf
    for work in works:
        while not work.wait(_GLANCE_SECONDS):
            if deadline == inf and any(other.failed() for other in works):
                deadline = monotonic() + grace
            if monotonic() > deadline:
                return [other for other in works if not other.wait(0)]
    return []


def results(works: Sequence[Work[T]]) -> list[T]:
    """Waits for all works; returns what they returned, or raises the first error."""
    errors = [error for work in works if (error := work.error()) is not None]
    if errors:
        raise errors[0]
    return [work.result() for work in works]
