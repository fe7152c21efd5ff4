"""The host's side of the io region of GPUs: pinned memory that plans copy from, and that results are copied to."""

from __future__ import annotations

import ctypes
from typing import Any

from paiton_artifacts.errors import PaitonError
from paiton_artifacts.schema import IoField, MemoryPlan
from paiton_runtime.drivers.device_library import DeviceLibrary

DEVICE_STATE = (
    *("last_token", "finished", "token_counts", "semaphores"),
    *("comm_peers", "comm_error", "logits_share", "logits"),
)
"""Io fields that only kernels touch; they come last, and the host's mirror ends before them."""

RESULTS = ("sampled", "sampled_logprob", "sampled_rank", "top_tokens", "top_values")
"""Io fields that are copied back after a plan that samples; they lie side by side."""

_IO_BYTES = {"i32": 4, "f32": 4, "u64": 8}


class HostMirror:
    """The host's side of io, in pinned memory: what it writes, and what is copied back to it.

    Attributes:
        address: of the pinned memory.
        results: byte offset and size of the fields that a plan that samples leaves.
    """

    def __init__(self, library: DeviceLibrary, memory: MemoryPlan) -> None:
        fields = {io.name: io for io in memory.io}
        self._size = min((fields[name].offset for name in DEVICE_STATE if name in fields), default=memory.io_bytes)
        kept = {*DEVICE_STATE, *RESULTS}
        self._sent = {n: io for n, io in fields.items() if io.offset >= memory.io_input_bytes and n not in kept}
        self._max_requests = memory.max_requests
        self._library = library
        self.address = library.allocate_pinned(self._size)
        ctypes.memset(self.address, 0, self._size)
        ends = [fields[name].offset + _bytes(fields[name]) for name in RESULTS]
        first = min(fields[name].offset for name in RESULTS)
        self.results = first, max(ends) - first
        inputs = ("counts", "mask_row", "history_length")
        self._inputs = {n: self.view(fields[n].offset, _bytes(fields[n]), "i") for n in inputs if n in fields}

    def view(self, offset: int, size: int, letter: str) -> memoryview[Any]:
        """Returns bytes as elements of a native struct letter; none for what the mirror does not hold."""
        if offset + size > self._size:
            return memoryview(b"").cast("B").cast(letter)  # type: ignore[call-overload,no-any-return]
        array: Any = (ctypes.c_char * size).from_address(self.address + offset)
        return memoryview(array).cast("B").cast(letter)  # type: ignore[call-overload,no-any-return]

    def in_use(self, name: str) -> tuple[int, int]:
        """Returns byte offset and size of what plans read of a field that is only sent when it has changed.

        Of tables with a row for each request, those are the rows of the requests that this step has.

        Raises:
            PaitonError: there is no such field, every forward plan sends it anyway, or it is the device's.
        """
        io = self._sent.get(name)
        if io is None:
            raise PaitonError(
                f"io field {name!r} is not one that the host sends when it has changed",
                hint=f"one of {', '.join(sorted(self._sent))}",
            )
        whole = _bytes(io)
        row = whole // self._max_requests
        size = whole
        if name == "block_tables":
            size = row * self._inputs["counts"][1]
        elif name == "mask":
            size = row * (1 + max(self._inputs["mask_row"][: self._inputs["counts"][2]], default=-1))
        elif name == "history_tokens":
            size = _IO_BYTES[io.dtype] * self._inputs["history_length"][0]
        return io.offset, min(size, whole)

    def close(self) -> None:
        """Frees the memory; views must no longer be used."""
        self._library.free_pinned(self.address)


def _bytes(io: IoField) -> int:
    return io.count * _IO_BYTES[io.dtype]
