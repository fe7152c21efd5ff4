"""A stream for the log that never lets its writer wait: whoever reads stderr may stand still, the server must not."""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

MAX_WAITING = 4096
"""Texts that wait for the reader at most; further ones are dropped, and counted."""


class Stream(Protocol):
    """What a log writes to."""

    def write(self, text: str, /) -> object:
        """Takes text."""

    def flush(self) -> object:
        """Passes on what was taken."""


class LogStream:
    """Passes texts on to another stream from a thread, which starts with the first of them.

    Where the other stream takes nothing for so long that `MAX_WAITING` texts wait, texts are lost; a line says how many
    as soon as it takes some again.

    Args:
        stream: to write to; what it raises is ignored, as a closed pipe must not end a request.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Takes a text without waiting."""
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self._dropped += 1
                return
            self._waiting.append(text)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="paiton-log", daemon=True)
                self._thread.start()
            self._changed.notify()

    def flush(self) -> None:
        """Does nothing: the thread flushes."""

    def close(self, timeout: float = 1.0) -> None:
        """Waits until all is written, at most `timeout` seconds; no text may follow."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while text := self._next():
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                continue

    def _next(self) -> str:
        """Returns all that waits, which is "" only once the stream was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            texts, self._waiting = self._waiting, deque()
            lost, self._dropped = self._dropped, 0
        note = f"{lost} lines of the log were dropped: nobody read it\n" if lost else ""
        return "".join(texts) + note
