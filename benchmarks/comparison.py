"""Contenders measured alternately in one run: every round runs each of them once, and begins with another one."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import summary
from benchmarks.peers import PeerError

Numbers = dict[str, float]
OURS = "paiton"


@dataclass(slots=True)
class Comparison:
    """What was measured.

    Attributes:
        samples: of each contender, one entry a round.
        absent: contenders that could not run, and why.
    """

    samples: dict[str, list[Numbers]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def median(self, contender: str, number: str) -> float:
        """Returns the median of a number over the rounds."""
        return statistics.median(sample[number] for sample in self.samples[contender])

    def _medians(self, contender: str) -> Numbers:
        return {number: self.median(contender, number) for number in self.samples[contender][0]}

    def ratios(self, ours: str, theirs: str) -> dict[str, dict[str, float]]:
        """Returns our numbers over a peer's, round by round: noise that lasts longer than a round falls on both.

        One that ran in fewer rounds is compared by its median.
        """
        pairs = list(zip(self.samples[ours], self.samples[theirs], strict=False))
        if len(self.samples[ours]) != len(self.samples[theirs]):
            pairs = [(self._medians(ours), self._medians(theirs))]
        shared = [name for name in pairs[0][0] if name in pairs[0][1]]
        return {name: summary([mine[name] / other[name] for mine, other in pairs]) for name in shared}

    def as_json(self, ours: str = OURS) -> dict[str, Any]:
        """Returns every number's least, median and most by contender, our ratios to the others, and who was absent."""
        return {
            "contenders": {
                name: {number: summary([sample[number] for sample in samples]) for number in samples[0]}
                for name, samples in self.samples.items()
            },
            "ratios": {name: self.ratios(ours, name) for name in self.samples if name != ours and ours in self.samples},
            "absent": self.absent,
        }


def compare(
    contenders: Mapping[str, Callable[[], Numbers]], rounds: int, at_most: Mapping[str, int] | None = None
) -> Comparison:
    """Measures contenders alternately; one that raises PeerError is left out from then on, and its reason reported.

    Args:
        contenders: what measures each once.
        rounds: how often; the order rotates.
        at_most: fewer rounds, for contenders that take long.
    """
    limits = {} if at_most is None else at_most
    found = Comparison({name: [] for name in contenders})
    names = list(contenders)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            if name in found.absent or number >= limits.get(name, rounds):
                continue
            try:
                numbers = contenders[name]()
            except PeerError as error:
                found.absent[name] = str(error)
                del found.samples[name]
                continue
            found.samples[name].append(numbers)
            shown = "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())
            print(f"{number + 1}/{rounds} {name}: {shown}", file=sys.stderr, flush=True)
    return found


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table, the first column to the left and the others to the right."""
    cells = [[cell if isinstance(cell, str) else f"{cell:.4g}" for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *others]))


def print_medians(found: Comparison, ours: str = OURS) -> None:
    """Prints medians by contender, and behind each our median ratio to it."""
    numbers = list(next(iter(found.samples.values()))[0]) if found.samples else []
    rows: list[list[object]] = []
    for name in found.samples:
        row: list[object] = [name]
        ratios = found.ratios(ours, name) if name != ours and ours in found.samples else {}
        for number in numbers:
            if number not in found.samples[name][0]:
                row.append("-")
                continue
            ratio = f" ({ratios[number]['median']:.2f}x)" if number in ratios else ""
            row.append(f"{found.median(name, number):.4g}{ratio}")
        rows.append(row)
    print_table(["", *numbers], rows)
    for name, reason in found.absent.items():
        print(f"{name}: absent, {reason}")
