"""Counts the processes that this one starts, so that "no compiler ran" is a measurement."""

from __future__ import annotations

import functools
import sys

_STARTING = frozenset(
    {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system", "pty.spawn"}
)


class _Counter:
    """An audit hook: the interpreter reports whatever starts a process before it does it. Hooks stay for good."""

    def __init__(self) -> None:
        self.count = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, _arguments: tuple[object, ...]) -> None:
        if event in _STARTING:
            self.count += 1


_counter = functools.cache(_Counter)


def processes_started() -> int:
    """Returns how many processes this one has started since the first call."""
    return _counter().count
