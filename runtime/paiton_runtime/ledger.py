"""The ledger: what a boot did, stage by stage, from start to end since the process was executed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from paiton_artifacts.record import dataclass

STAGES = (
    "open",
    "device",
    "weights",
    "tokenizer",
    "memory profiling",
    "graph compilation",
    "warm-up",
    "golden check",
    "total",
    "first token",
)
"""Stages in the order in which they are shown. They overlap, so they do not sum; `total` is wall time."""

_START_TIME_FIELD = 19  # of /proc/self/stat after the command's closing parenthesis: field 22, starttime


def process_start() -> float:
    """Returns when this process was started, in seconds of `time.monotonic()`.

    The kernel keeps it in clock ticks, rounded down: the result may be early by one tick (10 ms), never late.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    started = int(fields[_START_TIME_FIELD]) / os.sysconf("SC_CLK_TCK")  # since boot, suspended time included
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    return time.monotonic() - age


@dataclass(slots=True)
class Row:
    """One stage: seconds since the origin, bytes that it handled (0: not that kind of stage), and a remark."""

    stage: str
    start: float
    end: float
    bytes: int = 0
    note: str = ""


class Ledger:
    """Rows of stages, measured against one origin.

    Args:
        origin: seconds of `time.monotonic()` that count as zero; by default now. The command line passes
            `process_start()`.
    """

    def __init__(self, origin: float | None = None) -> None:
        self.origin = time.monotonic() if origin is None else origin
        self.rows: dict[str, Row] = {}

    def now(self) -> float:
        """Returns seconds since the origin."""
        return time.monotonic() - self.origin

    @contextmanager
    def stage(self, name: str) -> Iterator[Row]:
        """Measures a stage; the body may set the row's `bytes` and `note`. A stage that fails leaves no row."""
        row = Row(name, self.now(), 0.0)
        yield row
        row.end = self.now()
        self.rows[name] = row

    def mark(self, name: str, note: str = "") -> None:
        """Records that `name`, which began at the origin, ends now; only the first call counts."""
        if name not in self.rows:
            self.rows[name] = Row(name, 0.0, self.now(), note=note)

    def in_order(self) -> list[Row]:
        """Returns the rows in the order of `STAGES`; those that did not happen are absent."""
        return [self.rows[name] for name in STAGES if name in self.rows]

    def as_list(self) -> list[dict[str, object]]:
        """Returns the rows for `--json`: seconds since the origin, bytes and note."""
        return [
            {"stage": r.stage, "start": round(r.start, 6), "end": round(r.end, 6), "bytes": r.bytes, "note": r.note}
            for r in self.in_order()
        ]

    def table(self) -> str:
        """Returns the rows as a table for people, one line per stage."""
        lines = [f"{'stage':<18}{'start s':>9}{'end s':>9}{'seconds':>9}{'MiB':>9}  note"]
        for row in self.in_order():
            size = f"{row.bytes / 2**20:.1f}" if row.bytes else ""
            line = f"{row.stage:<18}{row.start:>9.3f}{row.end:>9.3f}{row.end - row.start:>9.3f}{size:>9}  {row.note}"
            lines.append(line.rstrip())
        return "\n".join(lines)
