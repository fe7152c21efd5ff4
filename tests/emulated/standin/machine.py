"""Modules, launches and graphs behind a stand-in: with streams and memory, the whole of its machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from tests.emulated.standin.elf import elf_bytes
from tests.emulated.standin.memory import Memory
from tests.emulated.standin.objects import (
    CAPTURE_INVALIDATED,
    CAPTURE_UNSUPPORTED,
    CAPTURE_WRONG_THREAD,
    ILLEGAL_ADDRESS,
    ILLEGAL_STATE,
    INVALID_HANDLE,
    INVALID_VALUE,
    NOT_FOUND,
    Capture,
    Device,
    DeviceModel,
    Dimensions,
    ExecutableGraph,
    Function,
    Graph,
    Kernel,
    Launch,
    Module,
    Node,
    RefusedError,
    Stream,
)

Load = Callable[[bytes, Device], Mapping[str, Kernel]]
"""Returns the kernels of a code object, for a device; raises RefusedError."""

_ELF_HEADER_BYTES = 64


class Machine(Memory):
    """All devices of a stand-in.

    Args:
        models: one per device.
        load: reads code objects.
        default_shared_bytes: dynamic shared memory that a kernel may use without asking; None for all there is.
        implicit_device: a thread that chose no device has the first one.

    Attributes:
        captured: told of every captured graph before its caller is; what it changes is what the driver got wrong.
    """

    def __init__(
        self,
        models: Sequence[DeviceModel],
        load: Load,
        default_shared_bytes: int | None = None,
        *,
        implicit_device: bool = True,
    ) -> None:
        super().__init__(models, implicit_device=implicit_device)
        self._load = load
        self._default_shared_bytes = default_shared_bytes
        self.captured: Callable[[Graph], None] = lambda _graph: None

    def load_module(self, address: int) -> int:
        """Loads the code object at a host address onto the calling thread's device."""
        size = elf_bytes(self.host_bytes(address, _ELF_HEADER_BYTES))
        image = self.host_bytes(address, size)
        return self.new(Module(self.current, self._load(image, self.current), address, image))

    def function(self, module: int, symbol: str) -> int:
        """Returns a kernel of a module."""
        found = self.get(module, Module)
        if self.host_bytes(found.address, len(found.image)) != found.image:
            raise RefusedError(INVALID_VALUE, "the code object was moved or changed while its module was loaded")
        if symbol not in found.kernels:
            raise RefusedError(NOT_FOUND, f"the module has no kernel {symbol}, only {', '.join(found.kernels)}")
        limit = found.device.model.shared_bytes
        allowed = limit if self._default_shared_bytes is None else min(limit, self._default_shared_bytes)
        return self.new(Function(found, found.kernels[symbol], allowed))

    def unload_module(self, handle: int) -> None:
        """Unloads a module and forgets its functions."""
        module = self.get(handle, Module)
        self.synchronise(module.device)
        self.delete(handle, Module)
        module.loaded = False

    def prepare(
        self, function: int, grid: Dimensions, block: Dimensions, shared: int, pointers: int, extra: int
    ) -> Node:
        """Checks a launch, reads its arguments as they are now, and returns it as a node without edges."""
        found = self.get(function, Function)
        kernel, owner = found.kernel, found.module.device
        if extra or 0 in grid or max(grid[1:]) > 0xFFFF or grid[0] * block[0] >= 1 << 32:
            raise RefusedError(INVALID_VALUE, f"a grid of {grid} blocks, or the field `extra` in use")
        if block != (kernel.max_threads, 1, 1):
            raise RefusedError(
                INVALID_VALUE, f"blocks of {block} threads for a kernel compiled for {kernel.max_threads}"
            )
        if shared > found.shared_limit:
            raise RefusedError(INVALID_VALUE, f"{shared} bytes of shared memory, of {found.shared_limit} allowed")
        packed = self._read_arguments(kernel, pointers)

        def run(device: Device) -> None:
            if device is not owner:
                raise RefusedError(INVALID_HANDLE, f"kernel of device {owner.ordinal} on device {device.ordinal}")
            if not found.module.loaded:
                raise RefusedError(INVALID_HANDLE, "a kernel was launched whose module is unloaded")
            self._check_pointers(device, kernel, packed)
            kernel.run(device.memory, packed, grid, shared, self.let_others)

        values = tuple(packed[argument.offset : argument.offset + argument.size] for argument in kernel.arguments)
        return Node(run, Launch(function, grid, block, shared, values))

    def _read_arguments(self, kernel: Kernel, pointers: int) -> bytes:
        """Follows as many pointers as the metadata lists arguments, as a driver does, whatever the caller passed."""
        packed = bytearray(kernel.argument_bytes)
        for index, argument in enumerate(kernel.arguments):
            place = int.from_bytes(self.host_bytes(pointers + 8 * index, 8), "little")
            try:
                packed[argument.offset : argument.offset + argument.size] = self.host_bytes(place, argument.size)
            except RefusedError as error:
                reason = f"argument {index} of {len(kernel.arguments)}: {error.reason}"
                raise RefusedError(INVALID_VALUE, reason) from None
        return bytes(packed)

    def _check_pointers(self, device: Device, kernel: Kernel, packed: bytes) -> None:
        for index, argument in enumerate(kernel.arguments):
            if not argument.pointer:
                continue
            address = int.from_bytes(packed[argument.offset : argument.offset + argument.size], "little")
            if address == 0:
                continue
            place = device.memory.containing(address)
            if place is None or address % 16:
                what = "not a multiple of 16" if place else device.memory.nearest(address)
                reason = f"pointer {address:#x}, argument {index} of a kernel on device {device.ordinal}: {what}"
                raise RefusedError(ILLEGAL_ADDRESS, reason)

    def prepare_copy(self, destination: int, source: int, size: int) -> Node:
        """Checks a copy of pinned memory to a device, and returns it as a node without edges."""
        self.view(destination, size)
        if not self.pinned(source, size):
            raise RefusedError(INVALID_VALUE, f"a graph copies {size} bytes from {source:#x}, which is not pinned")
        return self.copy_node(destination, source, size)

    def launch(self, stream: Stream, node: Node, function: int) -> None:
        """Gives a stream a prepared launch."""
        if self.get(function, Function).module.device is not stream.device:
            raise RefusedError(INVALID_HANDLE, "a kernel was launched on a stream of another device")
        stream.give_node(node, self.new)

    # Graphs

    def add_node(self, graph: int, dependencies: int, count: int, node: Node) -> int:
        """Adds a node that waits for those whose handles lie at a host address."""
        found = self.get(graph, Graph)
        raw = self.host_bytes(dependencies, 8 * count) if count else b""
        node.after = [self.get(int.from_bytes(raw[i : i + 8], "little"), Node) for i in range(0, 8 * count, 8)]
        found.nodes.append(node)
        node.handle = self.new(node)
        return node.handle

    def destroy_graph(self, handle: int) -> None:
        """Forgets a graph and its nodes."""
        graph = self.delete(handle, Graph)
        self._forget({id(node) for node in graph.nodes})

    def _forget(self, identities: set[int]) -> None:
        self._objects = {key: thing for key, thing in self._objects.items() if id(thing) not in identities}

    def begin_capture(self, stream: Stream) -> None:
        """Makes a stream record what it is given."""
        if stream is stream.device.null_stream:
            raise RefusedError(CAPTURE_UNSUPPORTED, "the null stream is never captured")
        if stream.capture:
            raise RefusedError(ILLEGAL_STATE, "the stream is being captured already")
        stream.capture = Capture(threading.get_ident())

    def end_capture(self, stream: Stream) -> int:
        """Returns what a stream has recorded as a graph."""
        capture = stream.capture
        if capture is None:
            raise RefusedError(ILLEGAL_STATE, "the stream is not being captured")
        if capture.thread != threading.get_ident():
            raise RefusedError(CAPTURE_WRONG_THREAD, "another thread began the capture")
        stream.capture = None
        if not capture.valid:
            self._forget({id(node) for node in capture.graph.nodes})
            raise RefusedError(CAPTURE_INVALIDATED, "the stream was asked for something that cannot be captured")
        self.captured(capture.graph)
        return self.new(capture.graph)

    def instantiate(self, graph: int) -> int:
        """Orders the nodes of a graph, the last one first wherever no edge forbids it: a missing edge shows."""
        waiting = list(self.get(graph, Graph).nodes)
        order: dict[Node, None] = {}
        while waiting:
            place = next(i for i in reversed(range(len(waiting))) if order.keys() >= set(waiting[i].after))
            order[waiting.pop(place)] = None
        return self.new(ExecutableGraph(list(order)))

    def launch_graph(self, graph: ExecutableGraph, stream: Stream) -> None:
        """Gives a stream every node of a graph."""
        stream.refuse_in_capture("a graph was launched while its stream was being captured")
        for node in graph.nodes:
            stream.pending.append(lambda node=node: node.run(stream.device))  # type: ignore[misc]
