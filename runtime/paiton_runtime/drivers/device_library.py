"""What the driver libraries of HIP and CUDA have in common: one set of operations over a table of C functions.

Handles and addresses are plain integers. Nothing here frees what it hands out: the caller pairs each ``create_*`` and
``allocate*`` with its counterpart, in a stack that it unwinds. A call concerns the device that its thread set last
(:meth:`DeviceLibrary.set_device`), and releases the interpreter lock while it runs.
"""

from __future__ import annotations

import ctypes
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from paiton_artifacts.errors import CodeObjectError, DeviceNotFoundError
from paiton_runtime.drivers.device_functions import (
    NOT_FOUND,
    NOT_READY,
    PEER_ACCESS_ALREADY_ENABLED,
    UNLOADABLE,
    address_of,
)
from paiton_runtime.drivers.device_graphs import GraphLibrary
from paiton_runtime.drivers.device_launch import DeviceProperties, HostCopy, KernelLaunch

Extend = Callable[[int, str, int, int], int]
"""Continues a graph: see `DeviceLibrary.explicit_graph`."""


class DeviceLibrary(GraphLibrary):
    """A driver library, loaded but not initialised (see :class:`FunctionTable`)."""

    def __init__(self) -> None:
        super().__init__()
        # A step is hundreds of launches: these do without the look-up.
        self._launch_kernel = self._functions["launch_kernel"]
        self._launch_graph = self._functions["launch_graph"]
        # Neither vendor says that a module keeps no pointer into what it was loaded from, and HIP's sources do.
        self._images: dict[int, bytes] = {}

    # The machine

    def initialise(self, devices: Sequence[int] | None = None) -> None:
        """Initialises the driver; with `devices`, makes only these visible, which is quicker than all of a machine.

        Visible devices are numbered from 0 in the order given. The first call of a process decides.
        """
        if devices is not None:
            variable = next((name for name in self.visibility if os.environ.get(name)), self.visibility[0])
            visible = os.environ.get(variable)
            names = visible.split(",") if visible else None
            if names is not None and any(device >= len(names) for device in devices):
                hint = f"choose among {len(names)} devices, or change {variable}"
                raise DeviceNotFoundError(f"devices {list(devices)} leave {variable}={visible}", hint=hint)
            os.environ[variable] = ",".join(names[device] if names else str(device) for device in devices)
        self._call("initialise", "initialising the driver", 0)

    def device_count(self) -> int:
        """Returns how many devices are visible."""
        count = ctypes.c_int()
        self._call("device_count", "counting devices", ctypes.byref(count))
        return count.value

    @abstractmethod
    def device(self, ordinal: int) -> DeviceProperties:
        """Returns what the driver says about a device."""

    @abstractmethod
    def set_device(self, ordinal: int) -> None:
        """Makes a device the calling thread's."""

    @abstractmethod
    def version(self) -> str:
        """Returns the driver's version."""

    def memory_info(self) -> tuple[int, int]:
        """Returns the bytes free and in total of the thread's device."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("memory_info", "reading free memory", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def synchronise(self) -> None:
        """Waits for everything on the thread's device."""
        self._call("synchronise", "waiting for the device")

    @abstractmethod
    def close(self) -> None:
        """Releases what the library holds itself; the caller frees first what it created."""

    # Streams and events

    def create_stream(self) -> int:
        """Returns a stream that does not wait for the default one."""
        return self._create("create_stream", "creating a stream", 1)

    def destroy_stream(self, stream: int) -> None:
        """Destroys a stream."""
        self._call("destroy_stream", "destroying a stream", stream)

    def synchronise_stream(self, stream: int) -> None:
        """Waits until a stream has done everything."""
        self._call("synchronise_stream", "waiting for a stream", stream)

    def create_event(self, *, timing: bool = False) -> int:
        """Returns an event, which measures time only if asked to."""
        return self._create("create_event", "creating an event", 0 if timing else 2)

    def destroy_event(self, event: int) -> None:
        """Destroys an event."""
        self._call("destroy_event", "destroying an event", event)

    def record_event(self, event: int, stream: int) -> None:
        """Lets an event happen once a stream has done what it was given so far."""
        self._call("record_event", "recording an event", event, stream)

    def wait_event(self, stream: int, event: int) -> None:
        """Makes a stream wait for an event."""
        self._call("wait_event", "making a stream wait", stream, event, 0)

    def synchronise_event(self, event: int) -> None:
        """Waits for an event."""
        self._call("synchronise_event", "waiting for an event", event)

    def event_done(self, event: int) -> bool:
        """Returns whether an event has happened."""
        code = self._functions["query_event"](event)
        if code == NOT_READY:
            return False
        self.check(code, "asking for an event")
        return True

    def elapsed_milliseconds(self, start: int, end: int) -> float:
        """Returns the time between two timing events that have happened."""
        elapsed = ctypes.c_float()
        self._call("elapsed", "measuring time between events", ctypes.byref(elapsed), start, end)
        return elapsed.value

    # Memory

    def allocate(self, size: int, *, uncached: bool = False) -> int:
        """Returns the address of `size` bytes of the thread's device.

        Args:
            size: in bytes; more than 0.
            uncached: for memory through which running kernels of several devices talk; matters to HIP only.

        Raises:
            OutOfMemoryError: there is not as much.
        """
        return self._allocate(size, uncached=uncached)

    @abstractmethod
    def _allocate(self, size: int, *, uncached: bool) -> int: ...

    def free(self, address: int) -> None:
        """Frees device memory; waits for the device."""
        self._call("free", "freeing device memory", address)

    def allocate_pinned(self, size: int) -> int:
        """Returns the address of `size` bytes of page-locked host memory, for copies of every device."""
        return self._create("allocate_pinned", f"allocating {size} bytes of pinned memory", size, 1)

    def free_pinned(self, address: int) -> None:
        """Frees pinned memory."""
        self._call("free_pinned", "freeing pinned memory", address)

    def copy_to_device(self, destination: int, source: int, size: int, stream: int) -> None:
        """Copies host memory; asynchronous if it is pinned, which then must stay as it is until the copy is done."""
        self._call("copy_to_device", f"copying {size} bytes to the device", destination, source, size, stream)

    def copy_to_host(self, destination: int, source: int, size: int, stream: int) -> None:
        """Copies to host memory; asynchronous if that is pinned."""
        self._call("copy_to_host", f"copying {size} bytes to the host", destination, source, size, stream)

    def copy_on_device(self, destination: int, source: int, size: int, stream: int) -> None:
        """Copies device memory, or between devices that are peers."""
        self._call("copy_on_device", f"copying {size} bytes on the device", destination, source, size, stream)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Sets `size` bytes to `value`."""
        self._call("fill", f"filling {size} bytes of device memory", address, value, size, stream)

    # Code

    def load_module(self, name: str, code: bytes) -> int:
        """Loads a code object onto the thread's device.

        Args:
            name: for messages.
            code: an ELF of this device's instruction set.

        Raises:
            CodeObjectError: the driver refuses it.
        """
        module = ctypes.c_void_p()
        status = self._functions["load_module"](ctypes.byref(module), code)
        if status in UNLOADABLE:
            reason = f"{self.error_name(status)} ({status}), {UNLOADABLE[status]}"
            hint = f"check that it was built for this device ({self.functions['load_module'][0]} refused it)"
            raise CodeObjectError(f"code object {name} does not load: {reason}", hint=hint)
        self.check(status, f"loading code object {name} ({self.functions['load_module'][0]})")
        handle = module.value or 0
        self._images[handle] = code
        return handle

    def unload_module(self, module: int) -> None:
        """Unloads a code object; none of its functions may be used any more."""
        self._call("unload_module", "unloading a code object", module)
        del self._images[module]

    def function(self, module: int, symbol: str) -> int:
        """Returns a kernel of a code object.

        Raises:
            CodeObjectError: there is none of this name.
        """
        handle = ctypes.c_void_p()
        status = self._functions["function"](ctypes.byref(handle), module, symbol.encode())
        if status == NOT_FOUND:
            reason = f"{self.error_name(status)} ({status})"
            raise CodeObjectError(f"kernel {symbol} is absent: {reason}", hint="build or fetch the bundle again")
        self.check(status, f"looking kernel {symbol} up ({self.functions['function'][0]})")
        return handle.value or 0

    @abstractmethod
    def allow_shared_bytes(self, function: int, size: int) -> None:
        """Lets launches of a kernel ask for `size` bytes of dynamic shared memory; to be called once for each."""

    def resident_blocks(self, function: int, threads: int, shared_bytes: int) -> int:
        """Returns how many blocks of a kernel a compute unit of the thread's device holds at once.

        Args:
            function: the kernel; `allow_shared_bytes` comes first.
            threads: of a block.
            shared_bytes: dynamic shared memory of a block.
        """
        count = ctypes.c_int()
        what = f"asking how many blocks of {threads} threads a compute unit holds"
        self._call("resident_blocks", what, ctypes.byref(count), function, threads, shared_bytes)
        return count.value

    @property
    def launch_address(self) -> int:
        """Address of the function that launches a kernel, for native code that calls it itself."""
        return address_of(self._launch_kernel)

    def launch(self, launch: KernelLaunch, stream: int) -> None:
        """Launches a kernel."""
        x, y, z = launch.grid
        code = self._launch_kernel(
            *(launch.function, x, y, z, launch.threads, 1, 1, launch.shared_bytes, stream),
            *(launch.arguments.pointers, None),
        )
        if code:
            self.check(code, f"launching {launch.grid} blocks of {launch.threads} threads")

    # Graphs

    def create_graph(self, nodes: Iterable[KernelLaunch | HostCopy]) -> int:
        """Returns an executable graph in which each node waits for the one before it; it is never updated.

        Arguments are copied. The functions must belong to the thread's device.
        """

        def extend(graph: int, _backend: str, _add_function: int, last: int) -> int:
            for index, node in enumerate(nodes):
                last = self._add(graph, node, last, f"adding node {index} to a graph")
            return last

        return self.create_graph_of((), extend)

    def create_graph_of(self, copies: Iterable[HostCopy], extend: Extend) -> int:
        """Returns an executable graph of copies and what `extend` adds to them; see `explicit_graph`."""
        with self.explicit_graph(copies, extend) as graph:
            return self._create("instantiate_graph", "instantiating a graph", graph, 0)

    @contextmanager
    def explicit_graph(self, copies: Iterable[HostCopy], extend: Extend) -> Iterator[int]:
        """Yields a graph that is not executable yet: copies, continued by native code that adds kernel nodes itself.

        Args:
            copies: the first nodes.
            extend: called with the graph, the name of the backend, the address of the function that adds a kernel node,
                and the last node so far (0 for none); returns the last node.
        """
        graph = self._create("create_graph", "creating a graph", 0)
        try:
            last = 0
            for copy in copies:
                last = self._add(graph, copy, last, "adding a copy to a graph")
            extend(graph, self.backend, address_of(self._functions["add_kernel"]), last)
            yield graph
        finally:
            self._call("destroy_graph", "destroying a graph", graph)

    def _add(self, graph: int, node: KernelLaunch | HostCopy, last: int, what: str) -> int:
        """Adds a node behind the node `last` and returns it."""
        handle = ctypes.c_void_p()
        before = (ctypes.c_void_p * 1)(last) if last else None
        place = (ctypes.byref(handle), graph, before, len(before or ()))
        if isinstance(node, HostCopy):
            self._add_copy(what, place, node)
        else:
            self._add_kernel(what, place, node)
        return handle.value or 0

    @abstractmethod
    def _add_kernel(self, what: str, place: tuple[object, ...], launch: KernelLaunch) -> None: ...

    @abstractmethod
    def _add_copy(self, what: str, place: tuple[object, ...], copy: HostCopy) -> None: ...

    def upload_graph(self, graph: int, stream: int) -> None:
        """Does at boot what the first launch of a graph would otherwise do."""
        self._call("upload_graph", "uploading a graph", graph, stream)

    def launch_graph(self, graph: int, stream: int) -> None:
        """Launches a graph."""
        code = self._launch_graph(graph, stream)
        if code:
            self.check(code, "launching a graph")

    def destroy_graph(self, graph: int) -> None:
        """Destroys an executable graph."""
        self._call("destroy_executable_graph", "destroying a graph", graph)

    # Peers

    @abstractmethod
    def can_access_peer(self, ordinal: int, peer: int) -> bool:
        """Returns whether kernels of one device can reach the memory of another."""

    @abstractmethod
    def _enable_peer(self, peer: int) -> int: ...

    def enable_peer_access(self, peer: int) -> None:
        """Lets kernels of the thread's device reach all memory of a peer, now and later; again is harmless."""
        code = self._enable_peer(peer)
        if code != PEER_ACCESS_ALREADY_ENABLED:
            self.check(code, f"enabling access to the memory of device {peer}")


def open_library(backend: str) -> DeviceLibrary:
    """Loads the driver library of a backend, "hip" or "cuda".

    Raises:
        DeviceNotFoundError: it is absent.
    """
    if backend == "hip":
        from paiton_runtime.drivers.hip import HipLibrary  # noqa: PLC0415 (a machine has one of them)

        return HipLibrary()
    from paiton_runtime.drivers.cuda import CudaLibrary  # noqa: PLC0415

    return CudaLibrary()
