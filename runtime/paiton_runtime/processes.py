"""Counts the processes that this one starts, so that "no compiler ran" is a measurement."""

from __future__ import annotations

import sys

_STARTING = frozenset(
    {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system", "os.startfile", "pty.spawn"}
)
_count = 0
_installed = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    global _count
    if event in _STARTING:
        _count += 1


def processes_started() -> int:
    """Returns how many processes this one has started since the first call, as the interpreter's audit events tell."""
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_hook)
    return _count
