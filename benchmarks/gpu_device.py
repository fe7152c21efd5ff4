"""The GPU as benchmarks use it: memory that outgrows its caches, kernels as a build would choose them, times."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import WORK
from paiton_kernels.gpu.spec import Config, Constant, GpuKernelSpec, GpuVariant, Step
from paiton_kernels.gpu.tuning import Request, choose
from paiton_runtime.drivers.device_launch import KernelLaunch
from tests.gpu.launcher import Gpu

ROTATED_BYTES = 1 << 30
"""Operands that a graph goes through before it comes back to the first: four times the largest cache that we know."""

LAUNCHES = 100
"""Launches of a graph, at least: the time of starting it spreads over them."""

REPLAYS = 11
WARM_UP = 2


class Bench:
    """A GPU, and what is on it.

    Args:
        gpu: the device.
        tables: files with measured configurations.
        candidates: how many configurations of a space the static ranking tries; 0 is all.
    """

    def __init__(self, gpu: Gpu, tables: Sequence[Path] = (), candidates: int = 0) -> None:
        self.gpu = gpu
        self._tables = tables
        self._candidates = candidates
        self._stack = ExitStack()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Frees at the end of the `with` block what is allocated in it."""
        outer, self._stack = self._stack, ExitStack()
        try:
            with self._stack:
                yield
        finally:
            self._stack = outer

    def allocate(self, size: int) -> int:
        """Returns the address of `size` bytes."""
        address = self.gpu.library.allocate(size)
        self._stack.callback(self.gpu.library.free, address)
        return address

    def place(self, array: NDArray[Any], size: int = 0) -> int:
        """Copies an array to the device, repeated until it fills `size` bytes, and returns its address."""
        library, stream = self.gpu.library, self.gpu.stream
        content = np.ascontiguousarray(array)
        filled, size = content.nbytes, max(size, content.nbytes)
        address = self.allocate(size)
        library.copy_to_device(address, content.ctypes.data, filled, stream)
        while filled < size:
            part = min(filled, size - filled)
            library.copy_on_device(address + filled, address, part, stream)
            filled += part
        library.synchronise_stream(stream)
        return address

    def rotated(self, pattern: NDArray[Any], size: int) -> list[int]:
        """Returns addresses of as many operands of `size` bytes as no cache can hold; two at least."""
        return [self.place(pattern, size) for _ in range(max(2, math.ceil(ROTATED_BYTES / size)))]

    def config(self, spec: GpuKernelSpec, step: Step, constants: Mapping[str, Constant]) -> Config:
        """Returns the configuration that a build would choose."""
        request = Request(spec, tuple(spec.full(constants).items()), step)
        where = (self.gpu.target, self.gpu.profile, WORK / "kernels")
        return choose([request], *where, tables=self._tables, candidates=self._candidates)[request].config

    def variant(self, spec: GpuKernelSpec, step: Step, constants: Mapping[str, Constant]) -> GpuVariant:
        """Returns the kernel that a build would choose."""
        return spec.variant(self.config(spec, step, constants), **constants)

    def scratch(self, step: Step, *variants: GpuVariant) -> dict[str, int]:
        """Allocates the scratch of launches, zeroed, and returns the addresses by argument; equal names share."""
        sizes: dict[str, int] = {}
        for variant in variants:
            for name, size in variant.spec.workspace(variant.values, step, self.gpu.profile).items():
                sizes[name] = max(sizes.get(name, 0), 4 * size if name == "semaphores" else size)
        return {name: self.place(np.zeros(4, np.uint8), size) for name, size in sizes.items()}

    def launch(self, variant: GpuVariant, step: Step, values: Mapping[str, int | float]) -> KernelLaunch:
        """Returns a launch; what `values` has beyond the kernel's arguments is left out."""
        used = {arg.name: values[arg.name] for arg in variant.spec.args if arg.name in values}
        grid = variant.spec.grid(variant.values, step, self.gpu.profile)
        return self.gpu.prepare(self.gpu.load(variant), grid, used)

    def timed(self, work: Callable[[], object]) -> float:
        """Returns the median seconds of what `work` adds to the stream."""
        library, stream = self.gpu.library, self.gpu.stream
        samples = []
        with ExitStack() as stack:
            start, end = library.create_event(timing=True), library.create_event(timing=True)
            for event in (start, end):
                stack.callback(library.destroy_event, event)
            for _ in range(WARM_UP + REPLAYS):
                library.record_event(start, stream)
                work()
                library.record_event(end, stream)
                library.synchronise_event(end)
                samples.append(library.elapsed_milliseconds(start, end) / 1e3)
        return statistics.median(samples[WARM_UP:])

    def seconds(self, rounds: Sequence[Sequence[KernelLaunch]]) -> float:
        """Returns the median seconds of one round of launches; the rounds follow each other in a graph."""
        library, stream = self.gpu.library, self.gpu.stream
        repeats = math.ceil(LAUNCHES / sum(len(launches) for launches in rounds))
        graph = library.create_graph([launch for launches in rounds for launch in launches] * repeats)
        try:
            library.upload_graph(graph, stream)
            return self.timed(lambda: library.launch_graph(graph, stream)) / (repeats * len(rounds))
        finally:
            library.destroy_graph(graph)

    def copy_rate(self) -> float:
        """Returns the bytes per second, read and written, of a large copy on the device."""
        pattern = np.random.default_rng(0).integers(0, 256, 1 << 24, np.uint8)
        library, stream = self.gpu.library, self.gpu.stream
        with self.scope():
            source, destination = self.place(pattern, ROTATED_BYTES), self.allocate(ROTATED_BYTES)
            took = self.timed(lambda: library.copy_on_device(destination, source, ROTATED_BYTES, stream))
        return 2 * ROTATED_BYTES / took
