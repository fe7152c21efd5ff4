"""The driver of GPU targets: an arena per rank on its device, modules, and plans as graphs or plain launches.

Each rank has a thread of its own, which makes the rank's device current once and then does everything that concerns
it: boot work of several devices runs side by side, and a step's launches do not wait for each other's. Ranks reach
each other's memory. The host sees io through a mirror in pinned memory, whose input part is the first copy of every
forward plan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

from paiton_artifacts.errors import DeviceFaultError, PaitonError
from paiton_artifacts.kernel_table import Kernel
from paiton_artifacts.layout import EXTENT_ALIGNMENT, Region, align_up
from paiton_artifacts.plan import SAMPLING_FAMILIES, Plan
from paiton_artifacts.schema import Chunk, MemoryPlan
from paiton_runtime.budget import RegionSizes
from paiton_runtime.device_program import DeviceProgram, DeviceTemplate, LaunchRefusedError
from paiton_runtime.drivers.base import Graph, Part
from paiton_runtime.drivers.device_launch import HostCopy
from paiton_runtime.drivers.device_library import DeviceLibrary
from paiton_runtime.drivers.device_rank import DeviceGraph, Rank
from paiton_runtime.drivers.host_mirror import HostMirror
from paiton_runtime.drivers.meetings import Meetings, check_resident, meetings_of
from paiton_runtime.drivers.rank_group import RankGroup
from paiton_runtime.drivers.rank_plan import RankPlan
from paiton_runtime.drivers.rank_thread import Work, results
from paiton_runtime.host import Mapping as HostMapping
from paiton_runtime.host import Stop
from paiton_runtime.loader import DeviceDestination, FileLoad, ReadSettings, load

T = TypeVar("T")
Executor = Literal["graph", "launch", "serial"]


class GpuDriver:
    """All ranks of a model on devices of one backend (see `drivers.base.Driver`).

    Args:
        library: the backend's, initialised.
        ordinals: the device of each rank.
        memory: the bundle's plan for the profile that these devices have.
        executor: "graph" replays graphs, "launch" launches every kernel of a step, "serial" waits for each of them.

    Attributes:
        executor: may be changed between steps to another that needs no graphs, or back.
        built: every plan that was made ready, in this order.
    """

    def __init__(self, library: DeviceLibrary, ordinals: Sequence[int], memory: MemoryPlan, executor: Executor) -> None:
        self.library = library
        self.executor = executor
        self.memory = memory
        self.built: list[DeviceGraph] = []
        self._archive = b""
        self._kernels: Mapping[str, Kernel] = {}
        self._bases: list[list[int]] = []
        self._files: list[FileLoad] = []
        self._stop = Stop()
        self._cleanup = ExitStack()
        self._mirror: HostMirror | None = None
        self._logits: HostMapping | None = None
        self._meetings: Meetings | None = None
        self._group = RankGroup(library, ordinals)

    @property
    def _ranks(self) -> list[Rank]:
        return self._group.ranks

    # Memory

    def reserve(self) -> None:
        """Allocates weights, io and scratch of every rank as one extent, and comm; KV follows once it is sized."""

        def allocate(rank: Rank) -> None:
            memory = self.memory
            sizes = {
                Region.WEIGHTS: memory.weights_bytes,
                Region.IO: memory.io_bytes,
                Region.SCRATCH: memory.scratch_bytes,
            }
            arena = self._allocate(rank, sum(align_up(size, EXTENT_ALIGNMENT) for size in sizes.values()))
            for region, size in sizes.items():
                rank.bases[region] = arena
                arena += align_up(size, EXTENT_ALIGNMENT)
            rank.bases[Region.COMM] = self._allocate(rank, memory.comm_bytes, uncached=True)
            # State in io starts as zeros: counters that kernels leave at zero, histories of requests. So does comm, all
            # of it before the first kernel of any rank: flags count calls from zero.
            self.library.fill(rank.bases[Region.IO], 0, memory.io_bytes, rank.stream)
            if len(self._ranks) > 1:
                self.library.fill(rank.bases[Region.COMM], 0, memory.comm_bytes, rank.stream)
            self.library.synchronise_stream(rank.stream)
            if rank.number == 0:  # pinning needs a thread that has chosen a device
                self._mirror = HostMirror(self.library, self.memory)
                self._group.pinned.callback(self._mirror.close)
                if len(self._ranks) > 1:
                    self._meetings = Meetings(self.library, memory, len(self._ranks))
                    self._group.pinned.callback(self._meetings.close)

        self._group.run(allocate)
        if meetings := self._meetings:
            self._group.run(lambda rank: meetings.connect(rank, self._ranks))

    def _allocate(self, rank: Rank, size: int, *, uncached: bool = False) -> int:
        address = self.library.allocate(max(size, 1), uncached=uncached)
        rank.cleanup.callback(self.library.free, address)
        return address

    def free_memory(self) -> tuple[int, int]:
        """Returns the bytes free and in total of the device that has the least free."""
        return min(self._group.run(lambda _: self.library.memory_info()))

    def allocate(self, sizes: RegionSizes) -> None:
        """Allocates the KV cache of every rank."""

        def allocate(rank: Rank) -> None:
            rank.bases[Region.KV] = self._allocate(rank, sizes.kv)

        self._group.run(allocate)
        self._bases = [[rank.bases[region] for region in Region] for rank in self._ranks]

    # Weights

    def open_weights(self, descriptor: int, size: int, name: str, chunks: Sequence[Chunk] = ()) -> None:
        """Takes the next rank's blob, whose descriptor is duplicated, with its digests if they are to be checked."""
        own = os.dup(descriptor)
        self._cleanup.callback(os.close, own)
        self._files.append(FileLoad(own, size, name, chunks))

    def load_weights(self, arriving: Iterable[Sequence[Part]] | None = None) -> None:
        """Copies every blob into its rank's arena, checking digests where they were given.

        What arrives while it copies was verified when it came, and is in the page cache.
        """
        destinations = [
            DeviceDestination(self.library, rank.ordinal, rank.bases[Region.WEIGHTS]) for rank in self._ranks
        ]
        if arriving is None:
            load(self._files, destinations, stop=self._stop, verify=all(file.chunks for file in self._files))
            return
        settings = ReadSettings(direct=False)
        for batch in arriving:
            parts: dict[int, list[tuple[int, int]]] = {}
            for rank, offset, size in batch:
                parts.setdefault(rank, []).append((offset, size))
            files = [replace(self._files[rank], chunks=(), parts=found) for rank, found in parts.items()]
            load(files, [destinations[rank] for rank in parts], stop=self._stop, settings=settings)

    def stop_loading(self) -> None:
        """Lets `load_weights` return early."""
        self._stop.set()

    # Code

    def load_kernels(self, archive: bytes, kernels: Mapping[str, Kernel]) -> None:
        """Takes the images of all kernels; each is loaded as a module with the first plan that launches it."""
        self._archive, self._kernels = archive, kernels

    def _load(self, rank: Rank, symbol: str) -> int:
        """Loads a kernel's image as a module and returns its function."""
        kernel = self._kernels[symbol]
        module = self.library.load_module(symbol, self._archive[kernel.offset : kernel.offset + kernel.size])
        rank.cleanup.callback(self.library.unload_module, module)
        function = self.library.function(module, symbol)
        self.library.allow_shared_bytes(function, kernel.shared_bytes)
        return function

    def load_code(self, name: str, code: bytes, symbols: Collection[str]) -> None:
        """Refuses: a GPU target's code object is an archive (`load_kernels`)."""
        raise PaitonError(f"code object {name} of {len(symbols)} symbols and {len(code)} bytes is for another driver")

    def build(self, plan: Plan) -> Graph:
        """Unrolls a plan for every rank, and makes graphs of it unless launches are plain; see `build_all`."""
        return self.build_all([plan])[0]

    def build_all(self, plans: Iterable[Plan]) -> list[DeviceGraph]:
        """Makes plans ready on every rank, in this order; while ranks are busy, the next plan is taken.

        Args:
            plans: checked against the bundle and its kernels; an iterator that reads them is welcome.

        Raises:
            CodeObjectError: a kernel's image does not load, or lacks its symbol.
            UnsupportedHostError: a device does not hold all blocks of a launch at once in which ranks meet.
        """
        made: list[DeviceGraph] = []
        works: list[Work[None]] = []
        try:
            for plan in plans:
                made.append(self._new_graph(plan))
                works += [rank.thread.submit(partial(self._build, rank, made[-1])) for rank in self._ranks]
        finally:
            results(works)
        self.built += made
        return made

    def _new_graph(self, plan: Plan) -> DeviceGraph:
        none: list[DeviceProgram | None] = [None] * len(self._ranks)
        graph = DeviceGraph(plan, DeviceTemplate(plan, self._kernels), none, [0] * len(self._ranks))
        if len(self._ranks) > 1:
            graph.meetings = len(meetings_of(plan, rank=0))
        return graph

    def _build(self, rank: Rank, graph: DeviceGraph) -> None:
        for symbol in graph.template.symbols:
            if symbol not in rank.functions:
                rank.functions[symbol] = self._load(rank, symbol)
        if self._meetings is not None:
            check_resident(graph.plan, partial(self._resident_blocks, rank))
        program = self._program(rank, graph)
        if rank.number == 0:
            graph.launches = program.launches
        if self.executor == "graph":
            graph.graphs[rank.number] = self._graph(program, graph.plan, rank)
            graph.programs[rank.number] = None
            program.close()

    def _resident_blocks(self, rank: Rank, symbol: str) -> int:
        """Returns how many blocks of a kernel a rank's device holds at once."""
        if symbol not in rank.resident:
            kernel, units = self._kernels[symbol], self.library.device(rank.ordinal).compute_units
            on_one = self.library.resident_blocks(rank.functions[symbol], kernel.threads, kernel.shared_bytes)
            rank.resident[symbol] = units * on_one
        return rank.resident[symbol]

    def _program(self, rank: Rank, graph: DeviceGraph) -> DeviceProgram:
        """Returns a plan's launches on a rank, unrolled unless they already are."""
        program = graph.programs[rank.number]
        if program is None:
            program = DeviceProgram(graph.template, rank.functions, self._bases, rank.number)
            rank.cleanup.callback(program.close)
            graph.programs[rank.number] = program
        return program

    def _graph(self, program: DeviceProgram, plan: Plan, rank: Rank) -> int:
        try:
            graph = self.library.create_graph_of(self._copies(plan, rank), program.add_to)
        except LaunchRefusedError as refused:
            self._refuse(refused, program, "adding to a graph")
        rank.cleanup.callback(self.library.destroy_graph, graph)
        self.library.upload_graph(graph, rank.stream)
        return graph

    def _refuse(self, refused: LaunchRefusedError, program: DeviceProgram, what: str) -> None:
        self.library.check(refused.code, f"{what} {program.describe(refused.index)}")
        raise PaitonError(f"{what} failed without a code") from refused

    # Steps

    def run(self, *graphs: Graph, changed: Collection[str] = ()) -> None:
        """Runs graphs on all ranks and waits for them; the host may then write to its views again.

        Raises:
            PaitonError: `changed` names what is not sent that way, or a graph is another driver's.
            DeviceFaultError: a kernel crashed. Which one, only the executor "serial" knows.
            RankStalledError: a launch waited in vain for another rank, in this step or one before.
        """
        made = [graph for graph in graphs if isinstance(graph, DeviceGraph)]
        if len(made) != len(graphs):
            raise PaitonError("a graph of another driver was given to the GPU driver")
        parts = [self._required_mirror().in_use(name) for name in changed]
        self._group.step(lambda rank: self._guarded_step(rank, made, parts))

    def _guarded_step(self, rank: Rank, graphs: Sequence[DeviceGraph], parts: Sequence[tuple[int, int]]) -> None:
        try:
            self._step(rank, graphs, parts)
        except DeviceFaultError as fault:
            if self.executor == "serial":
                raise
            names = " or ".join(f"{g.plan.family}-t{g.plan.tokens}-r{g.plan.requests}" for g in graphs)
            where = f"running plan {names}" + (f" on rank {rank.number}" if len(self._ranks) > 1 else "")
            hint = "boot again with --executor serial to learn which launch"
            raise DeviceFaultError(where, fault.name, fault.code, hint=hint) from fault

    def _step(self, rank: Rank, graphs: Sequence[DeviceGraph], parts: Sequence[tuple[int, int]]) -> None:
        """Sends the parts of io (byte offset and size), runs the graphs, and fetches what they sampled."""
        mirror, library, io = self._required_mirror(), self.library, rank.bases[Region.IO]
        for offset, size in parts:
            if size > 0:
                library.copy_to_device(io + offset, mirror.address + offset, size, rank.stream)
        for graph in graphs:
            if self.executor == "graph":
                library.launch_graph(graph.graphs[rank.number], rank.stream)
            else:
                self._launch_plan(graph, rank)
        if rank.number == 0 and any(graph.plan.family in SAMPLING_FAMILIES for graph in graphs):
            offset, size = mirror.results
            library.copy_to_host(mirror.address + offset, io + offset, size, rank.stream)
        if self._meetings is not None:
            self._meetings.fetch(rank)
        library.synchronise_stream(rank.stream)
        if self._meetings is not None:
            self._meetings.check(rank, graphs)

    def _launch_plan(self, graph: DeviceGraph, rank: Rank) -> None:
        for copy in self._copies(graph.plan, rank):
            self.library.copy_to_device(copy.destination, copy.source, copy.size, rank.stream)
        program = self._program(rank, graph)
        try:
            self._launch(program, rank)
        except LaunchRefusedError as refused:
            self._refuse(refused, program, "launching")

    def _launch(self, program: DeviceProgram, rank: Rank) -> None:
        launch, stream = self.library.launch_address, rank.stream
        if self.executor != "serial":
            program.run(launch, stream)
            return
        for index in range(program.launches):
            program.run(launch, stream, index, 1)
            try:
                self.library.synchronise_stream(stream)
            except DeviceFaultError as fault:
                hint = "the bundle is damaged, or this device or its driver is defective"
                raise DeviceFaultError(program.describe(index), fault.name, fault.code, hint=hint) from fault

    def _copies(self, plan: Plan, rank: Rank) -> list[HostCopy]:
        """Returns what precedes a plan's kernels: the input part of io."""
        if plan.family != "forward":
            return []
        return [HostCopy(rank.bases[Region.IO], self._required_mirror().address, self.memory.io_input_bytes)]

    def _required_mirror(self) -> HostMirror:
        if self._mirror is None:
            raise PaitonError("the regions of a GPU driver are used before they are reserved")
        return self._mirror

    def for_every_rank(self, graph: DeviceGraph, work: Callable[[RankPlan], T]) -> list[T]:
        """Runs `work` for a plan on the thread of every rank, at once; raises the first error after all have ended."""

        def view(rank: Rank) -> T:
            return work(
                RankPlan(
                    plan=graph.plan,
                    rank=rank.number,
                    library=self.library,
                    stream=rank.stream,
                    functions=rank.functions,
                    kernels=self._kernels,
                    copies=self._copies(graph.plan, rank),
                    program=self._program(rank, graph),
                    launch=lambda: self._launch_plan(graph, rank),
                )
            )

        return self._group.run(view)

    # What the host sees

    def view(self, region: Region, offset: int, size: int, letter: str) -> memoryview[Any]:
        """Returns bytes of the mirror of io, or of the logits' copy on the host (see `fetch`)."""
        memory = self.memory
        if region is memory.logits_region and offset >= memory.logits_offset:
            if self._logits is None:
                logits_bytes = memory.max_requests * memory.logits_stride * 4
                self._logits = HostMapping.anonymous(logits_bytes, what="logits on the host")
                self._cleanup.callback(self._logits.close)
            return self._logits.view(offset - memory.logits_offset, size, letter)
        if region is not Region.IO:
            raise PaitonError(f"region {region.name} is not visible to the host")
        return self._required_mirror().view(offset, size, letter)

    def fetch(self, region: Region, offset: int, size: int) -> None:
        """Copies logits of rank 0 to where `view` shows them."""
        if region is not self.memory.logits_region or self._logits is None:
            raise PaitonError(f"region {region.name} has no view to fetch to")
        destination = self._logits.address + offset - self.memory.logits_offset

        def copy(rank: Rank) -> None:
            self.library.copy_to_host(destination, rank.bases[region] + offset, size, rank.stream)
            self.library.synchronise_stream(rank.stream)

        self._ranks[0].thread.submit(partial(copy, self._ranks[0])).result()

    def close(self) -> None:
        """Waits for the devices and frees everything; views must no longer be used."""
        self._group.close(self._cleanup)
