"""Who used the processors while a scenario ran, what memory a server holds, and what its /metrics say."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.serve_client import Client

TICK = 1 / os.sysconf("SC_CLK_TCK")
CPUS = os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds so far: of the whole machine, of a process group, of this process."""

    machine: float
    server: float
    client: float

    @classmethod
    def now(cls, group: int) -> Usage:
        """Returns what was used until now."""
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        busy = sum(fields[:3]) + sum(fields[5:8])  # user, nice, system; interrupts and what the hypervisor stole
        own = os.times()
        server = sum(int(stat[11]) + int(stat[12]) for stat in _group_stats(group))  # utime, stime
        return cls(busy * TICK, server * TICK, own.user + own.system)


class Watch:
    """A context manager that learns the shares of the machine's processors within it.

    Attributes:
        shares: 1 is all processors: of the server, the client, and of others (what else ran, which disturbs).
    """

    def __init__(self, group: int) -> None:
        self.group = group
        self.shares: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.start, self.usage = time.perf_counter(), Usage.now(self.group)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = (time.perf_counter() - self.start) * CPUS
        usage = Usage.now(self.group)
        server, client = usage.server - self.usage.server, usage.client - self.usage.client
        others = usage.machine - self.usage.machine - server - client
        self.shares = {
            "server_cpu": server / whole,
            "client_cpu": client / whole,
            "others_cpu": max(others / whole, 0.0),
        }


async def wait_until_quiet(group: int, limit: float, patience: float) -> None:
    """Waits until others use less than `limit` of the processors for a second, `patience` seconds at most."""
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        with Watch(group) as watch:
            await asyncio.sleep(1.0)
        if watch.shares["others_cpu"] < limit:
            return


def memory_bytes(group: int) -> dict[str, int]:
    """Returns the resident memory of a process group: all of it, and what is not backed by files."""
    total: Counter[str] = Counter()
    for stat in _group_stats(group):
        try:
            lines = Path(f"/proc/{stat[-1]}/status").read_text().splitlines()
        except OSError:
            continue
        values = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.strip()}
        total["rss"] += int(values.get("VmRSS", 0)) * 1024
        total["anonymous"] += int(values.get("RssAnon", 0)) * 1024
    return dict(total)


def open_things(process: int) -> dict[str, int]:
    """Returns how many files and threads a process has."""
    return {
        what: len(list(Path(f"/proc/{process}/{folder}").iterdir()))
        for what, folder in (("files", "fd"), ("threads", "task"))
    }


def _group_stats(group: int) -> list[list[str]]:
    """Returns /proc/PID/stat of a group's processes, from the state on (field 3), and the process id at the end."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                stat = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if int(stat[2]) == group:
                found.append([*stat, entry.name])
    return found


async def scrape(client: Client) -> dict[str, float]:
    """Returns the samples of /metrics, summed over their labels; nothing where there are none."""
    reply = await client.get("/metrics")
    samples: dict[str, float] = {}
    if reply.status == 200:
        for line in reply.body.decode().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                family = name.partition("{")[0]
                if not family.endswith(("_bucket", "_created")):
                    samples[family] = samples.get(family, 0.0) + float(value)
    return samples
