"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Lets text through up to the first stop string; what might become one is held back until it cannot any more.

    The first is the one that is complete first, whatever the pieces; of several that end together, the longest.

    Args:
        stops: texts that end it, none of them empty.
        include: the one that ends the text is part of it.

    Attributes:
        found: the stop string that ended it.
        rest: what came behind it.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._first_letters = frozenset(stop[0] for stop in stops)
        self._include = include
        self._held = ""
        self.found: str | None = None
        self.rest = ""

    def push(self, piece: str) -> str:
        """Takes the next piece and returns what can be shown; nothing more once `found` is set."""
        if self.found is not None or not self._stops:
            return "" if self.found is not None else piece
        text = self._held + piece
        matches = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            end, start, self.found = min(matches)
            self._held = ""
            self.rest = text[end:]
            return text[: end if self._include else start]
        shown = self._safe(text)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """Returns what was held back: no further piece will come."""
        rest, self._held = self._held, ""
        return rest

    def _safe(self, text: str) -> int:
        """Returns how many characters no stop string can begin in, given that none is complete."""
        longest = max(map(len, self._stops))
        for at in range(max(0, len(text) - longest + 1), len(text)):
            if text[at] in self._first_letters:
                tail = text[at:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return at
        return len(text)
