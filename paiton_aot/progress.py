"""Progress on stderr: bars on a terminal, one line a stage elsewhere, or one JSON object a line for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from tqdm import tqdm

_INTERVAL = 0.5
"""Seconds between two events of the same bar."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Tells how a build gets on, unless it is to be quiet.

    Attributes:
        enabled: tell anything at all.
        events: as JSON objects, one a line, whatever stderr is.
    """

    enabled: bool
    events: bool = False

    @contextmanager
    def bar(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """Yields a function that advances the bar by a number of units; any thread may call it."""
        if self.enabled and self.events:
            yield from self._counted(name, total, unit)
            return
        terminal = sys.stderr.isatty()
        if self.enabled and not terminal:
            amount = f"{total / 1e6:.1f} MB" if unit == "B" else f"{total} {unit}{'s' if total > 1 else ''}"
            print(f"{name}: {amount}", file=sys.stderr, flush=True)  # noqa: T201
        options = {"desc": name, "unit": unit, "unit_scale": unit == "B", "file": sys.stderr}
        with tqdm(total=total, disable=not (self.enabled and terminal), **options) as bar:
            yield bar.update

    def event(self, kind: str, text: str, **fields: object) -> None:
        """Tells something that is not a matter of degree: `text` for people, the fields for programs."""
        if self.enabled and self.events:
            _write({"event": kind, **fields})
        elif self.enabled:
            tqdm.write(text, file=sys.stderr)

    def _counted(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        lock = Lock()
        done, told = 0, time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, told
            with lock:
                done += count
                if (now := time.monotonic()) - told >= _INTERVAL:
                    told = now
                    _write({"event": "progress", "stage": name, "done": done, "total": total, "unit": unit})

        _write({"event": "begin", "stage": name, "total": total, "unit": unit})
        start = time.monotonic()
        yield advance
        seconds = round(time.monotonic() - start, 3)
        _write({"event": "end", "stage": name, "done": done, "total": total, "unit": unit, "seconds": seconds})


def _write(event: dict[str, object]) -> None:
    print(json.dumps(event), file=sys.stderr, flush=True)  # noqa: T201
