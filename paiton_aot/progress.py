"""Progress bars on a terminal; silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True, slots=True)
class Progress:
    """Draws one bar at a time on stderr, where that is a terminal."""

    enabled: bool

    @contextmanager
    def bar(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """Yields a function that advances the bar by a number of units."""
        silent = not (self.enabled and sys.stderr.isatty())
        with tqdm(total=total, desc=name, unit=unit, unit_scale=unit == "B", disable=silent, file=sys.stderr) as bar:
            yield bar.update
