"""The host's side of the io region of GPUs: pinned memory that plans copy from, and that results are copied to."""

from __future__ import annotations

import ctypes
from typing import Any

from paiton_artifacts.schema import IoField, MemoryPlan
from paiton_runtime.drivers.device_library import DeviceLibrary

DEVICE_STATE = ("last_token", "finished", "token_counts", "semaphores")
"""Io fields that only kernels touch; they come last, and the host's mirror ends before them."""

RESULTS = ("sampled", "sampled_logprob", "sampled_rank", "top_tokens", "top_values")
"""Io fields that are copied back after a sample plan; they lie side by side."""

_IO_BYTES = {"i32": 4, "f32": 4, "u64": 8}


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
