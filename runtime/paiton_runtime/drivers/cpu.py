"""The cpu driver: blobs mapped in place, code objects through memfd, and a thread team per rank."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from paiton_artifacts.errors import FileSizeError, PaitonError
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Plan
from paiton_runtime.budget import RegionSizes
from paiton_runtime.drivers.base import Graph, Part
from paiton_runtime.drivers.template import pack_template
from paiton_runtime.host import Code, Group, Mapping, Program, Stop

SPIN_NANOSECONDS = 500
"""How long a thread polls at a barrier before it begins to yield, where every thread has a processor. Longer spins gain
nothing measurable on an idle machine, and cost a quarter of the decode rate on a busy one (20 us against 2 us)."""

POPULATE_THREADS = 4
"""Readers over all blobs: enough to keep a disk busy, and page-cache faults scale no further on one file."""


def processors() -> int:
    """Returns how many processors this process may run on."""
    return len(os.sched_getaffinity(0))


def team_size(tp: int, threads: int | None) -> int:
    """Returns the threads of each rank's team: the ranks share `threads` (default: one per processor), at least one."""
    return max(1, (processors() if threads is None else threads) // tp)


class CpuDriver:
    """All ranks of a model in this process (see `drivers.base.Driver`).

    Args:
        tp: number of ranks.
        workers: threads per rank.
        pin: bind each thread but the caller to a processor; ignored where threads outnumber processors.
    """

    def __init__(self, tp: int, workers: int, *, pin: bool = False) -> None:
        self.tp = tp
        self.workers = workers
        self._cleanup = ExitStack()
        self._stop = Stop()
        self._weights: list[Mapping] = []
        self._regions: list[dict[Region, Mapping]] = []
        self._kernels: dict[str, int] = {}
        threads, cpus = tp * workers, sorted(os.sched_getaffinity(0))
        fits = threads <= len(cpus)
        placement = [-1, *cpus[1:threads]] if pin and fits else None
        self._group = Group(tp, workers, spin_nanoseconds=SPIN_NANOSECONDS if fits else 0, cpus=placement)
        self._cleanup.callback(self._group.close)

    def open_weights(self, descriptor: int, size: int, name: str) -> None:
        """Maps the next rank's blob.

        Raises:
            FileSizeError: the file is shorter than `size`: what lies behind its end would be a bus error.
        """
        if (found := os.fstat(descriptor).st_size) < size:
            raise FileSizeError(f"{name} has {found} bytes instead of {size}", hint="build or fetch the bundle again")
        mapping = Mapping.file(descriptor, size, what=name)
        self._cleanup.callback(mapping.close)
        self._weights.append(mapping)

    def load_weights(self, arriving: Iterable[Sequence[Part]] | None = None) -> None:
        """Faults every page of every blob in, once all is there: that is quick, and a page without data is a hole."""
        for _ in arriving or ():
            pass
        threads = min(POPULATE_THREADS, processors())
        for mapping in self._weights:
            mapping.populate(threads, self._stop)

    def stop_loading(self) -> None:
        """Lets `load_weights` return early."""
        self._stop.set()

    def allocate(self, sizes: RegionSizes) -> None:
        """Reserves io once for all ranks, and scratch, kv and comm per rank."""
        io = self._reserve(sizes.io, "io")
        for rank, weights in enumerate(self._weights):
            scratch = self._reserve(sizes.scratch, f"scratch of rank {rank}")
            comm = self._reserve(sizes.comm, f"comm of rank {rank}")
            kv = self._reserve(sizes.kv, f"the KV cache of rank {rank}")
            self._regions.append(
                {Region.WEIGHTS: weights, Region.IO: io, Region.SCRATCH: scratch, Region.KV: kv, Region.COMM: comm}
            )

    def _reserve(self, size: int, what: str) -> Mapping:
        mapping = Mapping.anonymous(size, what=what)
        self._cleanup.callback(mapping.close)
        return mapping

    def load_code(self, name: str, code: bytes, symbols: Collection[str]) -> None:
        """Loads an ELF shared object.

        Raises:
            CodeObjectError: it does not load, or lacks one of `symbols`.
        """
        loaded = Code(name, code)
        self._cleanup.callback(loaded.close)
        self._kernels |= {symbol: loaded.symbol(symbol) for symbol in symbols}

    def build(self, plan: Plan) -> Graph:
        """Unrolls a plan for every rank."""
        template = pack_template(plan, self._kernels)
        bases = [[regions[region].address for region in Region] for regions in self._regions]
        program = Program(
            template.segments, template.launches, template.relocations, template.args, template.counts, bases
        )
        self._cleanup.callback(program.close)
        return program

    def run(self, *graphs: Graph, changed: Collection[str] = ()) -> None:  # noqa: ARG002  (host memory is its own)
        """Runs the graphs on this thread and the teams."""
        programs = [graph for graph in graphs if isinstance(graph, Program)]
        if len(programs) != len(graphs):
            raise PaitonError("a graph of another driver was given to the cpu driver")
        self._group.step(*programs)

    def view(self, region: Region, offset: int, size: int, letter: str) -> memoryview[Any]:
        """Returns bytes of a region of rank 0."""
        return self._regions[0][region].view(offset, size, letter)

    def fetch(self, region: Region, offset: int, size: int) -> None:
        """Does nothing: views are the memory itself."""

    def close(self) -> None:
        """Stops the threads, then frees programs and mappings; views must no longer be used."""
        # The stack was filled group first, so threads would be stopped last: stop them before what they read goes.
        self._group.close()
        self._cleanup.close()
