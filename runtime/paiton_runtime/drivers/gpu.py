"""The driver of GPU targets: an arena per rank on its device, modules, and plans as graphs or plain launches.

Each rank has a thread of its own, which makes the rank's device current once and then does everything that concerns
it: boot work of several devices runs side by side, and a step's launches do not wait for each other's. The host sees
io through a mirror in pinned memory, whose input part is the first copy of every forward plan.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from paiton_artifacts.errors import DeviceFaultError, PaitonError
from paiton_artifacts.kernel_table import Kernel
from paiton_artifacts.layout import EXTENT_ALIGNMENT, Region, align_up
from paiton_artifacts.plan import Plan
from paiton_artifacts.schema import Chunk, IoField, MemoryPlan
from paiton_runtime.budget import RegionSizes
from paiton_runtime.device_program import DeviceProgram, LaunchRefusedError
from paiton_runtime.drivers.base import Graph
from paiton_runtime.drivers.device_launch import HostCopy
from paiton_runtime.drivers.device_library import DeviceLibrary
from paiton_runtime.host import Mapping as HostMapping
from paiton_runtime.host import Stop
from paiton_runtime.loader import DeviceDestination, FileLoad, load

T = TypeVar("T")
Executor = Literal["graph", "launch", "serial"]

DEVICE_STATE = ("last_token", "finished", "token_counts", "semaphores")
"""Io fields that only kernels touch; they come last, and the host's mirror ends before them."""

RESULTS = ("sampled", "sampled_logprob", "sampled_rank", "top_tokens", "top_values")
"""Io fields that are copied back after a sample plan; they lie side by side."""

_IO_BYTES = {"i32": 4, "f32": 4, "u64": 8}


@dataclass(slots=True)
class _Rank:
    """One rank: its device, its stream, and where its regions are."""

    ordinal: int
    stream: int = 0
    bases: dict[Region, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class DeviceGraph:
    """A plan made ready on every rank."""

    plan: Plan
    programs: list[DeviceProgram]
    graphs: list[int]  # executable graphs by rank; empty where launches are plain
    launches: int


class GpuDriver:
    """All ranks of a model on devices of one backend (see `drivers.base.Driver`).

    Args:
        library: the backend's, initialised.
        ordinals: the device of each rank.
        memory: the bundle's plan for the profile that these devices have.
        executor: "graph" replays graphs, "launch" launches every kernel of a step, "serial" waits for each of them.
    """

    def __init__(self, library: DeviceLibrary, ordinals: Sequence[int], memory: MemoryPlan, executor: Executor) -> None:
        self.library = library
        self.executor = executor
        self.memory = memory
        self._fields = {io.name: io for io in memory.io}
        self._ranks = [_Rank(ordinal) for ordinal in ordinals]
        self._files: list[FileLoad] = []
        self._stop = Stop()
        self._cleanup = ExitStack()
        self._threads = [
            ThreadPoolExecutor(1, f"paiton-rank-{n}", library.set_device, (rank.ordinal,))
            for n, rank in enumerate(self._ranks)
        ]
        self._mirror: HostMirror | None = None
        self._logits: HostMapping | None = None
        try:
            self._on_every_rank(self._create_stream)
        except BaseException:
            self.close()
            raise

    # Ranks

    def _on_rank(self, number: int, work: Callable[[_Rank], T]) -> Future[T]:
        return self._threads[number].submit(work, self._ranks[number])

    def _on_every_rank(self, work: Callable[[_Rank], T]) -> list[T]:
        """Runs `work` on all ranks at once; raises the first error after all have ended."""
        futures = [self._on_rank(number, work) for number in range(len(self._ranks))]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]

    def _undo(self, rank: _Rank, release: Callable[[int], None], handle: int) -> None:
        """Remembers how to free something, on the rank's own thread."""
        number = self._ranks.index(rank)
        self._cleanup.callback(lambda: self._on_rank(number, lambda _: release(handle)).result())

    def _create_stream(self, rank: _Rank) -> None:
        rank.stream = self.library.create_stream()
        self._undo(rank, self.library.destroy_stream, rank.stream)

    # Memory

    def reserve(self) -> None:
        """Allocates weights, io and scratch of every rank as one extent, and comm; KV follows once it is sized."""

        def allocate(rank: _Rank) -> None:
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
            # State in io starts as zeros: counters that kernels leave at zero, histories of requests.
            self.library.fill(rank.bases[Region.IO], 0, memory.io_bytes, rank.stream)
            self.library.synchronise_stream(rank.stream)

        self._on_every_rank(allocate)
        self._mirror = HostMirror(self.library, self.memory)
        self._cleanup.callback(self._mirror.close)

    def _allocate(self, rank: _Rank, size: int, *, uncached: bool = False) -> int:
        address = self.library.allocate(max(size, 1), uncached=uncached)
        self._undo(rank, self.library.free, address)
        return address

    def free_memory(self) -> tuple[int, int]:
        """Returns the bytes free and in total of the device that has the least free."""
        return min(self._on_every_rank(lambda _: self.library.memory_info()))

    def allocate(self, sizes: RegionSizes) -> None:
        """Allocates the KV cache of every rank."""

        def allocate(rank: _Rank) -> None:
            rank.bases[Region.KV] = self._allocate(rank, sizes.kv)

        self._on_every_rank(allocate)

    # Weights

    def open_weights(self, descriptor: int, size: int, name: str, chunks: Sequence[Chunk] = ()) -> None:
        """Takes the next rank's blob, whose descriptor is duplicated, with its digests if they are to be checked."""
        own = os.dup(descriptor)
        self._cleanup.callback(os.close, own)
        self._files.append(FileLoad(own, size, name, chunks))

    def load_weights(self) -> None:
        """Copies every blob into its rank's arena, checking digests where they were given."""
        destinations = [
            DeviceDestination(self.library, rank.ordinal, rank.bases[Region.WEIGHTS]) for rank in self._ranks
        ]
        load(self._files, destinations, stop=self._stop, verify=all(file.chunks for file in self._files))

    def stop_loading(self) -> None:
        """Lets `load_weights` return early."""
        self._stop.set()

    # Code

    def load_kernels(self, archive: bytes, kernels: Mapping[str, Kernel]) -> None:
        """Loads every kernel's image as a module on every device.

        Raises:
            CodeObjectError: one does not load, or lacks its symbol.
        """

        def load_all(rank: _Rank) -> None:
            for symbol, kernel in kernels.items():
                image = archive[kernel.offset : kernel.offset + kernel.size]
                module = self.library.load_module(symbol, image)
                self._undo(rank, self.library.unload_module, module)
                function = self.library.function(module, symbol)
                self.library.allow_shared_bytes(function, kernel.shared_bytes)
                rank.functions[symbol] = function

        self._kernels = kernels
        self._on_every_rank(load_all)

    def load_code(self, name: str, code: bytes, symbols: Collection[str]) -> None:
        """Refuses: a GPU target's code object is an archive (`load_kernels`)."""
        raise PaitonError(f"code object {name} of {len(symbols)} symbols and {len(code)} bytes is for another driver")

    def build(self, plan: Plan) -> Graph:
        """Unrolls a plan for every rank, and makes graphs of it unless launches are plain."""
        bases = [[rank.bases[region] for region in Region] for rank in self._ranks]

        def build(rank: _Rank) -> tuple[DeviceProgram, int]:
            program = DeviceProgram(plan, self._kernels, rank.functions, bases, self._ranks.index(rank))
            self._cleanup.callback(program.close)
            graph = self._graph(program, plan, rank) if self.executor == "graph" else 0
            return program, graph

        made = self._on_every_rank(build)
        graphs = [graph for _, graph in made] if self.executor == "graph" else []
        return DeviceGraph(plan, [program for program, _ in made], graphs, made[0][0].launches)

    def _graph(self, program: DeviceProgram, plan: Plan, rank: _Rank) -> int:
        copies = [self._input_copy(rank)] if plan.family == "forward" else []
        try:
            graph = self.library.create_graph_of(copies, program.add_to)
        except LaunchRefusedError as refused:
            self._refuse(refused, program, "adding to a graph")
        self._undo(rank, self.library.destroy_graph, graph)
        self.library.upload_graph(graph, rank.stream)
        return graph

    def _refuse(self, refused: LaunchRefusedError, program: DeviceProgram, what: str) -> None:
        self.library.check(refused.code, f"{what} {program.describe(refused.index)}")
        raise PaitonError(f"{what} failed without a code") from refused

    # Steps

    def run(self, *graphs: Graph) -> None:
        """Runs graphs on all ranks and waits for them.

        Raises:
            DeviceFaultError: a kernel crashed. Which one, only the executor "serial" knows.
        """
        made = [graph for graph in graphs if isinstance(graph, DeviceGraph)]
        if len(made) != len(graphs):
            raise PaitonError("a graph of another driver was given to the GPU driver")
        try:
            self._on_every_rank(lambda rank: self._step(rank, made))
        except DeviceFaultError as fault:
            if self.executor == "serial":
                raise
            names = " or ".join(f"{g.plan.family}-t{g.plan.tokens}-r{g.plan.requests}" for g in made)
            hint = "boot again with --executor serial to learn which launch"
            raise DeviceFaultError(f"running plan {names}", fault.name, fault.code, hint=hint) from fault

    def _step(self, rank: _Rank, graphs: Sequence[DeviceGraph]) -> None:
        number = self._ranks.index(rank)
        mirror, library = self._required_mirror(), self.library
        for offset, size in mirror.changed(self._fields["block_tables"]):
            self._copy_in(rank, offset, size)
        for graph in graphs:
            if graph.graphs:
                library.launch_graph(graph.graphs[number], rank.stream)
                continue
            if graph.plan.family == "forward":
                self._copy_in(rank, 0, self.memory.io_input_bytes)
            program = graph.programs[number]
            try:
                self._launch(program, rank)
            except LaunchRefusedError as refused:
                self._refuse(refused, program, "launching")
        if number == 0 and any(graph.plan.family == "sample" for graph in graphs):
            offset, size = mirror.results
            library.copy_to_host(mirror.address + offset, rank.bases[Region.IO] + offset, size, rank.stream)
        library.synchronise_stream(rank.stream)

    def _launch(self, program: DeviceProgram, rank: _Rank) -> None:
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

    def _input_copy(self, rank: _Rank) -> HostCopy:
        return HostCopy(rank.bases[Region.IO], self._required_mirror().address, self.memory.io_input_bytes)

    def _copy_in(self, rank: _Rank, offset: int, size: int) -> None:
        mirror = self._required_mirror()
        self.library.copy_to_device(rank.bases[Region.IO] + offset, mirror.address + offset, size, rank.stream)

    def _required_mirror(self) -> HostMirror:
        if self._mirror is None:
            raise PaitonError("the regions of a GPU driver are used before they are reserved")
        return self._mirror

    # What the host sees

    def view(self, region: Region, offset: int, size: int, letter: str) -> memoryview[Any]:
        """Returns bytes of the mirror of io, or of the logits' copy on the host (see `fetch`)."""
        if region is Region.IO:
            return self._required_mirror().view(offset, size, letter)
        if region is not Region.COMM:
            raise PaitonError(f"region {region.name} is not visible to the host")
        if self._logits is None:
            self._logits = HostMapping.anonymous(self.memory.comm_bytes, what="logits on the host")
            self._cleanup.callback(self._logits.close)
        return self._logits.view(offset, size, letter)

    def fetch(self, region: Region, offset: int, size: int) -> None:
        """Copies bytes of a region of rank 0 to where `view` shows them."""
        if region is not Region.COMM or self._logits is None:
            raise PaitonError(f"region {region.name} has no view to fetch to")
        destination = self._logits.address + offset

        def copy(rank: _Rank) -> None:
            self.library.copy_to_host(destination, rank.bases[region] + offset, size, rank.stream)
            self.library.synchronise_stream(rank.stream)

        self._on_rank(0, copy).result()

    def close(self) -> None:
        """Waits for the devices and frees everything; views must no longer be used."""
        try:
            self._cleanup.close()
        finally:
            for thread in self._threads:
                thread.shutdown()


class HostMirror:
    """The host's side of io, in pinned memory: what it writes, and what is copied back to it.

    Attributes:
        address: of the pinned memory.
        results: byte offset and size of the fields that a sample plan leaves.
    """

    def __init__(self, library: DeviceLibrary, memory: MemoryPlan) -> None:
        fields = {io.name: io for io in memory.io}
        self._size = min((fields[name].offset for name in DEVICE_STATE if name in fields), default=memory.io_bytes)
        self._library = library
        self.address = library.allocate_pinned(self._size)
        ctypes.memset(self.address, 0, self._size)
        ends = [fields[name].offset + _bytes(fields[name]) for name in RESULTS]
        first = min(fields[name].offset for name in RESULTS)
        self.results = first, max(ends) - first

    def view(self, offset: int, size: int, letter: str) -> memoryview[Any]:
        """Returns bytes as elements of a native struct letter; none for what the mirror does not hold."""
        if offset + size > self._size:
            return memoryview(b"").cast("B").cast(letter)  # type: ignore[call-overload,no-any-return]
        array: Any = (ctypes.c_char * size).from_address(self.address + offset)
        return memoryview(array).cast("B").cast(letter)  # type: ignore[call-overload,no-any-return]

    def changed(self, io: IoField) -> list[tuple[int, int]]:
        """Returns the byte ranges of a field that the next step must copy: all of it."""
        return [(io.offset, _bytes(io))]

    def close(self) -> None:
        """Frees the memory; views must no longer be used."""
        self._library.free_pinned(self.address)


def _bytes(io: IoField) -> int:
    return io.count * _IO_BYTES[io.dtype]
