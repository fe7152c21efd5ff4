"""The GPU of this machine, opened through the runtime's driver libraries: memory, kernels, launches.

Tests and benchmarks bring arguments by name. Arrays lie between guard bytes, so that a kernel that writes beside its
outputs is found out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paiton_aot.tune_bench import launch_of, profile_of
from paiton_artifacts.errors import PaitonError, UsageError
from paiton_kernels.gpu.compile import CompiledKernel, compile_kernel
from paiton_kernels.gpu.devices import DEFAULT_PROFILES, PROFILES, TARGETS, Target
from paiton_kernels.gpu.spec import GpuVariant, Grid
from paiton_runtime.drivers.device_launch import KernelLaunch
from paiton_runtime.drivers.device_library import DeviceLibrary, open_library

GUARD_BYTES = 256
GUARD = 0xA5
BACKENDS = ("cuda", "hip")


class NoGpuError(Exception):
    """This machine has no GPU that kernels are compiled for; the message says what was looked for and not found."""


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """A variant on the device.

    Attributes:
        variant: what was compiled.
        kernel: its code.
        function: the driver's handle.
    """

    variant: GpuVariant
    kernel: CompiledKernel
    function: int


def checked_launch(loaded: LoadedKernel, target: Target, grid: Grid, values: Mapping[str, int | float]) -> KernelLaunch:
    """Returns a launch with arguments by name, after checking them against the kernel's spec.

    Args:
        loaded: the kernel.
        target: what it was compiled for.
        grid: blocks.
        values: addresses for pointers, of which those left out are null, and the other arguments.

    Raises:
        ValueError: a value has no argument, is missing, or is not the multiple that the code was specialised on.
    """
    symbol = loaded.kernel.symbol
    given = dict(values)
    pointers: dict[str, int] = {}
    scalars: dict[str, int | float] = {}
    for arg in loaded.variant.spec.args:
        if arg.name not in given and not arg.pointer:
            raise ValueError(f"{symbol} needs {arg.name}")
        value = given.pop(arg.name, 0)
        if arg.divisor > 1 and value % arg.divisor:
            raise ValueError(f"{symbol}: {arg.name} is {value}, not a multiple of {arg.divisor}")
        if arg.pointer:
            pointers[arg.name] = int(value)
        else:
            scalars[arg.name] = value
    if given:
        raise ValueError(f"{symbol} has no argument {min(given)}")
    return launch_of(loaded.kernel, loaded.function, grid, loaded.variant.signature(target), pointers, scalars)


class DeviceArrays:
    """Arrays in device memory, freed together."""

    def __init__(self, library: DeviceLibrary, stream: int) -> None:
        self._library = library
        self._stream = stream
        self._placed: dict[int, NDArray[Any]] = {}

    def place(self, array: NDArray[Any]) -> int:
        """Copies an array to the device, between guard bytes; returns its address, which is a multiple of 256."""
        address = self._library.allocate(array.nbytes + 2 * GUARD_BYTES) + GUARD_BYTES
        self._placed[address] = array
        self.write(address, array)
        return address

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Gives an array that was placed new content, and restores its guards."""
        assert array.nbytes == self._placed[address].nbytes
        guard = np.full(GUARD_BYTES, GUARD, np.uint8)
        whole = np.concatenate([guard, np.ascontiguousarray(array).reshape(-1).view(np.uint8), guard])
        self._library.copy_to_device(address - GUARD_BYTES, whole.ctypes.data, whole.nbytes, self._stream)
        self._library.synchronise_stream(self._stream)

    def read(self, address: int) -> NDArray[Any]:
        """Returns what an array holds now.

        Raises:
            AssertionError: something beside it was written.
        """
        before = self._placed[address]
        whole = np.empty(before.nbytes + 2 * GUARD_BYTES, np.uint8)
        self._library.copy_to_host(whole.ctypes.data, address - GUARD_BYTES, whole.nbytes, self._stream)
        self._library.synchronise_stream(self._stream)
        beside = np.concatenate([whole[:GUARD_BYTES], whole[-GUARD_BYTES:]])
        if (beside != GUARD).any():
            raise AssertionError(f"{np.count_nonzero(beside != GUARD)} bytes beside an array were written")
        return whole[GUARD_BYTES:-GUARD_BYTES].view(before.dtype).reshape(before.shape)

    def free(self) -> None:
        """Frees all of them."""
        while self._placed:
            address, _ = self._placed.popitem()
            self._library.free(address - GUARD_BYTES)


class Gpu:
    """A device of a driver library that has been initialised.

    Args:
        library: of the driver.
        cache_dir: where compiled kernels are kept.
        ordinal: the device's number.

    Attributes:
        library: as given.
        properties: what the driver says about the device.
        target: its instruction set.
        profile: what its kernels are planned for.
        stream: that everything runs in.

    Raises:
        NoGpuError: nothing is compiled for its instruction set.
    """

    def __init__(self, library: DeviceLibrary, cache_dir: Path, ordinal: int = 0) -> None:
        self.library = library
        self.properties = library.device(ordinal)
        if self.properties.target not in TARGETS:
            raise NoGpuError(f"{self.properties.name} is {self.properties.target}, which no kernel is compiled for")
        self.target = TARGETS[self.properties.target]
        try:
            self.profile = profile_of(self.properties, None)
        except UsageError:  # a device that no profile knows runs what the usual one does
            self.profile = PROFILES[DEFAULT_PROFILES[self.target.name]]
        self._cache_dir = cache_dir
        self._modules: list[int] = []
        self._loaded: dict[str, LoadedKernel] = {}
        library.set_device(ordinal)
        self.stream = library.create_stream()

    def compile(self, variant: GpuVariant) -> CompiledKernel:
        """Compiles a variant for this device."""
        return compile_kernel(variant, self.target, self._cache_dir)

    def load(self, variant: GpuVariant) -> LoadedKernel:
        """Compiles a variant and loads it; once for each."""
        if variant.symbol not in self._loaded:
            kernel = self.compile(variant)
            module = self.library.load_module(kernel.symbol, kernel.code)
            self._modules.append(module)
            function = self.library.function(module, kernel.symbol)
            self.library.allow_shared_bytes(function, kernel.shared_bytes)
            self._loaded[variant.symbol] = LoadedKernel(variant, kernel, function)
        return self._loaded[variant.symbol]

    def prepare(self, loaded: LoadedKernel, grid: Grid, values: Mapping[str, int | float]) -> KernelLaunch:
        """Returns a launch with these arguments (:func:`checked_launch`)."""
        return checked_launch(loaded, self.target, grid, values)

    def run(self, *launches: KernelLaunch) -> None:
        """Launches one after the other and waits for the last."""
        for launch in launches:
            self.library.launch(launch, self.stream)
        self.library.synchronise_stream(self.stream)

    @contextmanager
    def arrays(self) -> Iterator[DeviceArrays]:
        """Returns a place for arrays that are freed at the end of the `with` block."""
        arrays = DeviceArrays(self.library, self.stream)
        try:
            yield arrays
        finally:
            arrays.free()

    def close(self) -> None:
        """Unloads and releases everything."""
        while self._modules:
            self.library.unload_module(self._modules.pop())
        self._loaded.clear()
        self.library.destroy_stream(self.stream)
        self.library.close()


def open_gpu(cache_dir: Path) -> Gpu:
    """Opens the first device of the first driver that has one, NVIDIA's before AMD's.

    Raises:
        NoGpuError: there is none; the message has each driver's reason.
    """
    reasons = []
    for backend in BACKENDS:
        try:
            library = open_library(backend)
            library.initialise()
            if library.device_count():
                return Gpu(library, cache_dir)
            reasons.append(f"the {backend} driver has no device")
        except (PaitonError, NoGpuError) as error:
            reasons.append(error.message if isinstance(error, PaitonError) else str(error))
    raise NoGpuError("; ".join(reasons))
