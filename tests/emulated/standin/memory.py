"""Device memory, pinned memory, copies and peers behind a stand-in."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import Any

from tests.emulated.cdna import EmulationError
from tests.emulated.standin.objects import (
    ILLEGAL_ADDRESS,
    INVALID_DEVICE,
    INVALID_VALUE,
    OUT_OF_MEMORY,
    PEER_ALREADY_ENABLED,
    Device,
    DeviceModel,
    Node,
    RefusedError,
    Stream,
)
from tests.emulated.standin.streams import DEVICE_SPAN, Streams

_POISONED_BYTES = 16 << 20  # larger allocations are zero: filling them would cost their physical memory


class Memory(Streams):
    """Memory of all devices, and of the host as far as drivers see it (see :class:`Streams`)."""

    def __init__(self, models: Sequence[DeviceModel], *, implicit_device: bool) -> None:
        super().__init__(models, implicit_device=implicit_device)
        self._allocations: dict[int, Device] = {}
        self._pinned: dict[int, mmap.mmap] = {}
        self._memory_file = os.open("/proc/self/mem", os.O_RDONLY)

    def leaks(self) -> list[str]:
        """Returns what was created and neither freed nor destroyed."""
        allocations = [f"{address:#x} on device {device.ordinal}" for address, device in self._allocations.items()]
        return allocations + [f"pinned {address:#x}" for address in self._pinned] + super().leaks()

    def forget(self) -> None:
        """Frees everything at once, as the end of a process does."""
        super().forget()
        self._allocations.clear()
        self._pinned.clear()

    def close(self) -> None:
        """Gives back what the machine itself holds."""
        os.close(self._memory_file)

    def allocate(self, size: int) -> int:
        """Allocates memory of the calling thread's device: bytes 0xAA, or zeros where there are many."""
        memory = self.current.memory
        try:
            address: int = memory.alloc(size) if size <= _POISONED_BYTES else memory.reserve(size)
        except MemoryError as error:
            raise RefusedError(OUT_OF_MEMORY, str(error)) from None
        self._allocations[address] = self.current
        return address

    def free(self, address: int) -> None:
        """Frees device memory, once its device has nothing left to do."""
        if address == 0:
            return
        if address not in self._allocations:
            raise RefusedError(INVALID_VALUE, f"{address:#x} is not what an allocation returned, or was freed before")
        device = self._allocations.pop(address)
        try:
            self.synchronise(device)
        finally:
            device.memory.free(address)

    def allocate_pinned(self, size: int) -> int:
        """Maps pages that copies may use later; pinning needs a device, whichever."""
        self.chosen()
        pages = mmap.mmap(-1, max(size, 1))
        address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        self._pinned[address] = pages
        return address

    def free_pinned(self, address: int) -> None:
        """Unmaps pinned pages."""
        self.chosen()
        if address not in self._pinned:
            raise RefusedError(INVALID_VALUE, f"{address:#x} is not pinned memory, or was freed before")
        for device in self.devices:
            if device.fault is None:
                self.synchronise(device)
        del self._pinned[address]  # a memoryview of the caller's may still hold them

    def pinned(self, address: int, size: int) -> bool:
        """Returns whether all bytes are pinned."""
        return any(start <= address and address + size <= start + len(pages) for start, pages in self._pinned.items())

    def host_bytes(self, address: int, size: int) -> bytes:
        """Returns bytes of this process, or refuses those that are not mapped, where a driver would crash."""
        try:
            found = os.pread(self._memory_file, size, address)
        except (OSError, OverflowError):
            found = b""
        if len(found) != size:
            raise RefusedError(INVALID_VALUE, f"{size} bytes at {address:#x} are not memory of this process")
        return found

    def owner(self, address: int) -> Device:
        """Returns the device whose memory an address is."""
        for device in self.devices:
            if device.memory.base <= address < device.memory.base + DEVICE_SPAN:
                return device
        raise RefusedError(INVALID_VALUE, f"{address:#x} is no device address")

    def view(self, address: int, size: int) -> Any:
        """Returns bytes of device memory."""
        try:
            return self.owner(address).memory.view(address, size)
        except EmulationError as error:
            raise RefusedError(INVALID_VALUE, str(error)) from None

    def copy_to_device(self, destination: int, source: int, size: int, stream: Stream) -> None:
        """Copies host memory: later if it is pinned, else as it is now."""
        self.view(destination, size)
        if not self.pinned(source, size):
            content = self.host_bytes(source, size)
            stream.give(lambda: self._write(destination, content))
            return
        stream.give_node(self.copy_node(destination, source, size), self.new)

    def copy_node(self, destination: int, source: int, size: int) -> Node:
        """Returns a copy of pinned memory to a device."""
        return Node(lambda _device: self.write_pinned(destination, source, size), copy=(destination, source, size))

    def _write(self, destination: int, content: bytes) -> None:
        self.view(destination, len(content))[:] = memoryview(content)

    def write_pinned(self, destination: int, source: int, size: int) -> None:
        """Copies pinned memory to a device, now."""
        if not self.pinned(source, size):
            raise RefusedError(ILLEGAL_ADDRESS, f"pinned memory {source:#x} was freed before it was copied")
        self._write(destination, self.host_bytes(source, size))

    def copy_to_host(self, destination: int, source: int, size: int, stream: Stream) -> None:
        """Copies to host memory: later if it is pinned, else before it returns."""
        self.view(source, size)
        pinned = self.pinned(destination, size)
        self.host_bytes(destination, size)

        def happen() -> None:
            if pinned and not self.pinned(destination, size):
                raise RefusedError(ILLEGAL_ADDRESS, f"pinned memory {destination:#x} was freed before a copy to it")
            ctypes.memmove(destination, self.view(source, size).tobytes(), size)

        stream.give(happen)
        if not pinned:
            self.drain(stream)

    def copy_on_device(self, destination: int, source: int, size: int, stream: Stream) -> None:
        """Copies device memory."""
        self.view(destination, size)
        self.view(source, size)
        stream.give(lambda: self._write(destination, self.view(source, size).tobytes()))

    def fill(self, address: int, value: int, size: int, stream: Stream) -> None:
        """Sets bytes of device memory."""
        self.view(address, size)
        stream.give(lambda: self.view(address, size).fill(value & 0xFF))

    # Peers

    def enable_peer(self, device: Device, peer: Device) -> None:
        """Lets kernels of a device reach a peer's memory."""
        if device is peer:
            raise RefusedError(INVALID_DEVICE, f"device {device.ordinal} is no peer of itself")
        if peer.ordinal in device.peers:
            raise RefusedError(PEER_ALREADY_ENABLED, f"device {device.ordinal} reaches {peer.ordinal} already")
        device.peers.add(peer.ordinal)
        device.memory.enable_peer(peer.memory)
