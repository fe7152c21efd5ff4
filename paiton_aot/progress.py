"""Progress on stderr: bars on a terminal, one line a stage elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True, slots=True)
class Progress:
    """Tells how a build gets on, unless it is to be quiet."""

    enabled: bool

    @contextmanager
    def bar(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """Yields a function that advances the bar by a number of units."""
        terminal = sys.stderr.isatty()
        if self.enabled and not terminal:
            amount = f"{total / 1e6:.1f} MB" if unit == "B" else f"{total} {unit}{'s' if total > 1 else ''}"
            print(f"{name}: {amount}", file=sys.stderr, flush=True)  # noqa: T201
        options = {"desc": name, "unit": unit, "unit_scale": unit == "B", "file": sys.stderr}
        with tqdm(total=total, disable=not (self.enabled and terminal), **options) as bar:
            yield bar.update
