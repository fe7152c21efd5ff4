"""Measures kernels on a device: median time of a launch in a graph of many, with operands that are not cached."""

from __future__ import annotations

import math
import statistics
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from paiton_aot.tune_operands import Operand
from paiton_artifacts.errors import DeviceFaultError, DeviceNotFoundError, UnsupportedTargetError, UsageError
from paiton_kernels.gpu.compile import CompiledKernel
from paiton_kernels.gpu.devices import PROFILES, Profile, Target, profile_named
from paiton_kernels.gpu.spec import Grid
from paiton_runtime.drivers.device_launch import Arguments, DeviceProperties, KernelLaunch
from paiton_runtime.drivers.device_library import DeviceLibrary, open_library

_LAST_LEVEL_CACHE = {"mi300x": 256 << 20, "mi300a": 256 << 20, "mi355x": 256 << 20}
"""Caches behind the L2 that no driver tells of (Infinity Cache)."""

_MOST_COPIES = 512
_FEWEST_NODES = 2


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a kernel is measured.

    Attributes:
        warm_up: runs before the first that counts, which bring clocks up and code in.
        repeats: runs that count; their median is the result.
        run_seconds: about how long a run is, by which the launches in its graph are chosen.
        rotate_bytes: streamed operands have as many copies as fill this together; None: twice the largest cache.
    """

    warm_up: int = 3
    repeats: int = 9
    run_seconds: float = 2e-3
    rotate_bytes: int | None = None


class Bench:
    """A device in use, with one stream; made by :func:`opened`."""

    def __init__(self, library: DeviceLibrary, device: DeviceProperties, stream: int) -> None:
        self.library = library
        self.device = device
        self.stream = stream
        self.name = f"{device.name}, {library.version()}"
        self.events = library.create_event(timing=True), library.create_event(timing=True)

    def copies_of(self, streamed_bytes: int, protocol: Protocol, profile: Profile) -> int:
        """Returns how many copies of the streamed operands take turns, so that none is found in a cache."""
        if streamed_bytes == 0:
            return 1
        largest = max(self.device.l2_bytes * profile.dies, _LAST_LEVEL_CACHE.get(profile.name, 0))
        wanted = 2 * largest if protocol.rotate_bytes is None else protocol.rotate_bytes
        free, _ = self.library.memory_info()
        fitting = free // 2 // streamed_bytes
        return max(1, min(max(2, math.ceil(wanted / streamed_bytes)), fitting, _MOST_COPIES))

    def place(self, operand: Operand, stack: ExitStack) -> int:
        """Returns the address of an operand on the device, freed with the stack."""
        size = max(operand.size, 16)
        address = self.library.allocate(size)
        release_with(stack, self.library.free, address)
        self.restore(operand, address)
        return address

    def restore(self, operand: Operand, address: int) -> None:
        """Fills device memory with an operand's content."""
        size = max(operand.size, 16)
        if len(operand.pattern) == 1:
            self.library.fill(address, operand.pattern[0], size, self.stream)
        else:
            done = min(len(operand.pattern), size)
            pattern = np.frombuffer(operand.pattern, np.uint8)
            self.library.copy_to_device(address, pattern.ctypes.data, done, self.stream)
            while done < size:  # doubling: as many copies as the size has bits
                part = min(done, size - done)
                self.library.copy_on_device(address + done, address, part, self.stream)
                done += part
        self.library.synchronise_stream(self.stream)

    def read(self, address: int, size: int) -> bytes:
        """Returns bytes of the device."""
        content = np.empty(size, np.uint8)
        self.library.copy_to_host(content.ctypes.data, address, size, self.stream)
        self.library.synchronise_stream(self.stream)
        return content.tobytes()

    def load(self, kernel: CompiledKernel, stack: ExitStack) -> int:
        """Returns a kernel's function, unloaded with the stack."""
        module = self.library.load_module(kernel.symbol, kernel.code)
        release_with(stack, self.library.unload_module, module)
        function = self.library.function(module, kernel.symbol)
        self.library.allow_shared_bytes(function, kernel.shared_bytes)
        return function

    def run(self, launch: KernelLaunch) -> float:
        """Launches a kernel once and returns the seconds that it took."""
        start, end = self.events
        self.library.record_event(start, self.stream)
        self.library.launch(launch, self.stream)
        self.library.record_event(end, self.stream)
        self.library.synchronise_event(end)
        return self.library.elapsed_milliseconds(start, end) / 1e3

    def measure(self, launches: Sequence[KernelLaunch], protocol: Protocol) -> float:
        """Returns the seconds of one launch, where the launches given take turns."""
        once = self.run(launches[0])
        wanted = math.ceil(protocol.run_seconds / max(once, 1e-6))
        nodes = max(len(launches), min(wanted, _MOST_COPIES), _FEWEST_NODES)
        graph = self.library.create_graph(launches[index % len(launches)] for index in range(nodes))
        try:
            self.library.upload_graph(graph, self.stream)
            times = [self._run_graph(graph) for _ in range(protocol.warm_up + protocol.repeats)]
        finally:
            with suppress(DeviceFaultError):  # else it would hide the error that is on its way
                self.library.destroy_graph(graph)
        return statistics.median(times[protocol.warm_up :]) / nodes

    def _run_graph(self, graph: int) -> float:
        start, end = self.events
        self.library.record_event(start, self.stream)
        self.library.launch_graph(graph, self.stream)
        self.library.record_event(end, self.stream)
        self.library.synchronise_event(end)
        return self.library.elapsed_milliseconds(start, end) / 1e3


def launch_of(
    kernel: CompiledKernel,
    function: int,
    grid: Grid,
    types: Mapping[str, str],
    addresses: Mapping[str, int],
    scalars: Mapping[str, int | float],
) -> KernelLaunch:
    """Returns a launch with its arguments packed as the code object wants them.

    Args:
        kernel: what is launched.
        function: its handle.
        grid: blocks.
        types: Triton's type of each argument; what the compiler added has none and is null.
        addresses: of pointers; those left out are null.
        scalars: the other arguments.
    """
    packed = bytearray(kernel.args_bytes)
    for arg in kernel.args:
        type_ = types.get(arg.name, "*")
        value = addresses.get(arg.name, 0) if type_.startswith("*") else scalars[arg.name]
        if type_ == "fp32":
            packed[arg.offset : arg.offset + 4] = struct.pack("<f", value)
        else:
            packed[arg.offset : arg.offset + arg.size] = int(value).to_bytes(arg.size, "little", signed=value < 0)
    arguments = Arguments(bytes(packed), [arg.offset for arg in kernel.args])
    return KernelLaunch(function, grid, kernel.threads, kernel.shared_bytes, arguments)


def release_with(stack: ExitStack, release: Callable[[int], None], handle: int) -> None:
    """Releases a handle with the stack; where a kernel has crashed there is nothing left to release."""

    def call() -> None:
        with suppress(DeviceFaultError):
            release(handle)

    stack.callback(call)


@contextmanager
def opened(target: Target, ordinal: int) -> Iterator[Bench]:
    """Opens a device for as long as the context lasts.

    Raises:
        DeviceNotFoundError: there is no driver, or no such device.
        UnsupportedTargetError: the device has another instruction set.
    """
    with ExitStack() as stack:
        library = open_library(target.backend)
        library.initialise()
        stack.callback(library.close)
        if ordinal >= (count := library.device_count()):
            raise DeviceNotFoundError(f"there is no device {ordinal}, only {count}", hint="choose one with --device")
        device = library.device(ordinal)
        if device.target != target.name:
            raise UnsupportedTargetError(
                f"device {ordinal} is an {device.name} ({device.target}), not one of {target.name}",
                hint=f"tune with --target {device.target}, or choose another device with --device",
            )
        library.set_device(ordinal)
        stream = library.create_stream()
        bench = Bench(library, device, stream)

        release_with(stack, library.destroy_stream, stream)
        for event in bench.events:
            release_with(stack, library.destroy_event, event)
        yield bench


def profile_of(device: DeviceProperties, name: str | None) -> Profile:
    """Returns the profile that a device is measured for: the one named, if this can be it, else the one most alike.

    Raises:
        UnsupportedTargetError: the profile is unknown.
        UsageError: it is of another device, or nothing that we know of is like this device.
    """
    units = f"{device.name} has {device.compute_units} compute units"
    if name is None:
        alike = [p for p in PROFILES.values() if (p.target, p.compute_units) == (device.target, device.compute_units)]
        if not alike:
            raise UsageError(f"no profile is like this device: {units}", hint="name the closest one with --profile")
        return min(alike, key=lambda profile: abs(profile.memory_bytes - device.memory_bytes))
    profile = profile_named(name)
    if profile.target != device.target:
        raise UsageError(f"profile {name} is a device of {profile.target}, not of {device.target}")
    if profile.compute_units != device.compute_units:
        raise UsageError(
            f"profile {name} has {profile.compute_units} compute units, {units}",
            hint="leave --profile out to find the profile of this device",
        )
    return profile
