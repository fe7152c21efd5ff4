"""Calls that mean the same in HIP and CUDA, as methods; parameters as in C, pointers and handles as integers."""

from __future__ import annotations

import ctypes
import os
import traceback
from collections.abc import Callable, Mapping, Sequence

from tests.emulated.standin.graph_calls import GraphCalls, put
from tests.emulated.standin.machine import Machine
from tests.emulated.standin.objects import (
    NO_DEVICE,
    NOT_INITIALISED,
    NOT_READY,
    UNKNOWN,
    Event,
    Function,
    RefusedError,
)

_DISABLE_TIMING = 2

MOST_THREADS = 2048
"""Threads that a compute unit holds at once."""

Handler = Callable[..., int | None]


class Calls(GraphCalls):
    """Handlers over a machine; a handler returns an error code, or None for success.

    Args:
        machine: what serves.
        library: the generated library, for its helpers.

    Attributes:
        visibility: environment variable that says which devices are shown when the driver is initialised.
    """

    visibility = ""

    def __init__(self, machine: Machine, library: ctypes.CDLL) -> None:
        self.machine = machine
        self.library = library
        self._initialised = False

    def guarded(self, table: Mapping[str, Handler]) -> dict[str, Callable[..., int]]:
        """Returns handlers that turn refusals into error codes."""
        return {name: self._guarded(name, handler) for name, handler in table.items()}

    def _guarded(self, name: str, handler: Handler) -> Callable[..., int]:
        def serve(*arguments: int) -> int:
            machine = self.machine
            with machine.lock:
                if not self._initialised and handler != self.initialise:
                    machine.refusals.append(f"{name}: called before initialisation")
                    return NOT_INITIALISED
                try:
                    return handler(*arguments) or 0
                except RefusedError as refusal:
                    machine.refusals.append(f"{name}: {refusal}")
                    return refusal.code
                except Exception:  # noqa: BLE001 (C callers get no exceptions)
                    machine.refusals.append(f"{name}: {traceback.format_exc()}")
                    return UNKNOWN

        return serve

    def common(self, names: Sequence[str]) -> dict[str, Handler]:
        """Returns the handlers below by the names that a vendor gives them, in this order."""
        handlers: tuple[Handler, ...] = (
            *(self.initialise, self.device_count, self.memory_info, self.synchronise),
            *(self.create_stream, self.destroy_stream, self.synchronise_stream, self.wait_event),
            *(self.create_event, self.destroy_event, self.record_event, self.synchronise_event),
            *(self.query_event, self.elapsed, self.free, self.allocate_pinned, self.free_pinned),
            *(self.copy_to_device, self.copy_to_host, self.copy_on_device, self.fill),
            *(self.load_module, self.unload_module, self.function, self.launch_kernel),
            *(self.create_graph, self.add_kernel, self.instantiate_graph, self.destroy_graph),
            *(self.upload_graph, self.launch_graph, self.destroy_executable_graph, self.can_access_peer),
            *(self.begin_capture, self.end_capture, self.graph_nodes, self.graph_edges),
            *(self.node_type, self.kernel_node, self.node_attribute, self.resident_blocks),
        )
        return dict(zip(names, handlers, strict=True))

    def initialise(self, _flags: int) -> int:
        """Makes the other calls possible, for the devices that the environment shows."""
        self._initialised = True
        if self.visibility and (visible := os.environ.get(self.visibility)):
            self.machine.show([int(ordinal) for ordinal in visible.split(",")])
        return 0 if self.machine.devices else NO_DEVICE

    def device_count(self, out: int) -> None:
        """Writes the number of devices."""
        put(out, len(self.machine.devices), ctypes.c_int)

    def memory_info(self, free: int, total: int) -> None:
        """Writes bytes free and in total."""
        device = self.machine.current
        put(free, device.model.memory_bytes - device.memory.used)
        put(total, device.model.memory_bytes)

    def synchronise(self) -> None:
        """Waits for the thread's device."""
        self.machine.synchronise(self.machine.current)

    def create_stream(self, out: int, _flags: int) -> None:
        """Creates a stream."""
        put(out, self.machine.create_stream())

    def destroy_stream(self, stream: int) -> None:
        """Destroys a stream."""
        self.machine.destroy_stream(stream)

    def synchronise_stream(self, stream: int) -> None:
        """Waits for a stream."""
        self.machine.drain(self.machine.stream(stream))

    def wait_event(self, stream: int, event: int, _flags: int) -> None:
        """Makes a stream wait for what an event has recorded so far."""
        waited = self.machine.get(event, Event)
        self.machine.stream(stream).give(lambda: self.machine.wait(waited))

    def create_event(self, out: int, flags: int) -> None:
        """Creates an event."""
        put(out, self.machine.new(Event(timing=not flags & _DISABLE_TIMING)))

    def destroy_event(self, event: int) -> None:
        """Destroys an event."""
        self.machine.delete(event, Event)

    def record_event(self, event: int, stream: int) -> None:
        """Records an event."""
        self.machine.record(self.machine.get(event, Event), self.machine.stream(stream))

    def synchronise_event(self, event: int) -> None:
        """Waits for an event."""
        self.machine.wait(self.machine.get(event, Event))

    def query_event(self, event: int) -> int:
        """Tells whether an event has happened."""
        return 0 if self.machine.done(self.machine.get(event, Event)) else NOT_READY

    def elapsed(self, out: int, start: int, end: int) -> None:
        """Writes milliseconds between events."""
        events = self.machine.get(start, Event), self.machine.get(end, Event)
        put(out, self.machine.elapsed_milliseconds(*events), ctypes.c_float)

    def free(self, address: int) -> None:
        """Frees device memory."""
        self.machine.free(address)

    def allocate_pinned(self, out: int, size: int, _flags: int) -> None:
        """Allocates pinned memory."""
        put(out, self.machine.allocate_pinned(size))

    def free_pinned(self, address: int) -> None:
        """Frees pinned memory."""
        self.machine.free_pinned(address)

    def copy_to_device(self, destination: int, source: int, size: int, stream: int) -> None:
        """Copies from the host."""
        self.machine.copy_to_device(destination, source, size, self.machine.stream(stream))

    def copy_to_host(self, destination: int, source: int, size: int, stream: int) -> None:
        """Copies to the host."""
        self.machine.copy_to_host(destination, source, size, self.machine.stream(stream))

    def copy_on_device(self, destination: int, source: int, size: int, stream: int) -> None:
        """Copies device memory."""
        self.machine.copy_on_device(destination, source, size, self.machine.stream(stream))

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Sets bytes."""
        self.machine.fill(address, value, size, self.machine.stream(stream))

    def load_module(self, out: int, image: int) -> None:
        """Loads a code object."""
        put(out, self.machine.load_module(image))

    def unload_module(self, module: int) -> None:
        """Unloads a code object."""
        self.machine.unload_module(module)

    def function(self, out: int, module: int, name: int) -> None:
        """Finds a kernel."""
        put(out, self.machine.function(module, ctypes.string_at(name).decode()))

    def resident_blocks(self, out: int, function: int, threads: int, shared: int) -> None:
        """Tells how many blocks of a kernel a compute unit holds: as many as threads and shared memory allow."""
        model = self.machine.get(function, Function).module.device.model
        by_memory = model.shared_bytes // shared if shared else MOST_THREADS
        put(out, min(MOST_THREADS // threads, by_memory), ctypes.c_int)

    def launch_kernel(
        self, function: int, x: int, y: int, z: int, block_x: int, block_y: int, block_z: int, *rest: int
    ) -> None:
        """Launches a kernel; the rest is shared bytes, stream, pointers to the arguments, and an unused list."""
        shared, stream, pointers, extra = rest
        node = self.machine.prepare(function, (x, y, z), (block_x, block_y, block_z), shared, pointers, extra)
        self.machine.launch(self.machine.stream(stream), node, function)

    def can_access_peer(self, out: int, ordinal: int, peer: int) -> None:
        """Tells whether devices can be peers: all but a device with itself."""
        put(out, int(self.machine.device(ordinal) is not self.machine.device(peer)), ctypes.c_int)
