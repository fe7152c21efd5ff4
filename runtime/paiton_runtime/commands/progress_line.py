"""A line on stderr that shows how far something long has got; nothing where stderr is no terminal."""

from __future__ import annotations

import sys
import time

_INTERVAL = 0.1


class ProgressLine:
    """A function to call with the bytes done so far and the total.

    Args:
        verb: what is being done, such as "pulling".
    """

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._start = self._shown = time.monotonic()
        self._first: int | None = None
        self._ended = False

    def __call__(self, done: int, total: int) -> None:
        """Shows it, ten times a second at most."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._start = done, now
        if self._ended or (done < total and now - self._shown < _INTERVAL):
            return
        self._shown, self._ended = now, done >= total
        percent = 100 * done // max(1, total)
        rate = (done - self._first) / max(now - self._start, 1e-3)
        left = "" if self._ended or rate < 1 else f", {(total - done) / rate:.0f} s left"
        text = f"{self._verb} {done >> 20} of {total >> 20} MiB ({percent} %), {rate / 1e6:.0f} MB/s{left}"
        print(f"\r{text:<79}", end="\n" if self._ended else "", file=sys.stderr, flush=True)


def progress_line(verb: str, *, quiet: bool = False) -> ProgressLine | None:
    """Returns a progress line if stderr is a terminal and nobody wants it quiet."""
    return ProgressLine(verb) if sys.stderr.isatty() and not quiet else None


def remark(text: str) -> None:
    """Tells a person something on stderr."""
    print(f"paiton-run: {text}", file=sys.stderr, flush=True)
