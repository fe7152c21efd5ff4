"""Memory of an emulated device: a table of allocations in a 64-bit address space, and checked access to it.

Every allocation has storage of its own, so existing arrays are mapped without a copy, a reserved gigabyte costs
nothing until it is touched, and several devices see each other's memory once peers are enabled. Allocations lie apart
(red zones), addresses are never given out twice, and what is freed leaves a tombstone: an access outside a live
allocation always faults, and says what it missed.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.emulated.cdna.errors import EmulationError

Bytes = NDArray[np.uint8]
Addresses = NDArray[np.uint64]
Offsets = NDArray[np.int64]
Mask = NDArray[np.bool_]

DEFAULT_BASE: Final = 0x7E00_0000_0000
RED_ZONE: Final = 4096
POISON_BYTE: Final = 0xAA
_ALIGNMENT: Final = 256
_TOMBSTONES: Final = 1024


@dataclass(eq=False, slots=True)
class Storage:
    """Bytes that lanes read and write at offsets, with views for wide aligned access."""

    data: Bytes
    views: dict[int, NDArray[Any]]

    @classmethod
    def of(cls, data: Bytes) -> Storage:
        """Prepares `data` (uint8[n]); the views share its memory."""
        whole = len(data) & ~3
        words = data[:whole].view(np.uint32)
        views: dict[int, NDArray[Any]] = {4: words[:, None]}
        for count in (2, 4):
            views[4 * count] = words[: len(words) // count * count].reshape(-1, count)
        views[2] = data[: len(data) & ~1].view(np.uint16)
        return cls(data, views)

    def gather(self, offsets: Offsets, nbytes: int) -> NDArray[np.uint32]:
        """Reads `nbytes` (1, 2, or a multiple of 4) at each offset, little-endian.

        Returns:
            uint32[..., words]; 1 and 2 bytes are zero-extended. Offsets must have been checked.
        """
        low_bits = int(np.bitwise_or.reduce(offsets, axis=None)) if offsets.size else 0
        if nbytes == 1:
            return self.data.take(offsets, mode="clip")[..., None].astype(np.uint32)
        if nbytes in self.views and not low_bits & (nbytes - 1):
            found = self.views[nbytes].take(offsets >> (nbytes.bit_length() - 1), axis=0, mode="clip")
            return found[..., None].astype(np.uint32) if nbytes == 2 else found
        if nbytes >= 4 and not low_bits & 3:
            places = (offsets >> 2)[..., None] + np.arange(nbytes // 4)
            return self.views[4][:, 0].take(places, mode="clip")
        raw = self.data.take(offsets[..., None] + np.arange(nbytes), mode="clip")
        if nbytes == 2:
            return raw.view(np.uint16).astype(np.uint32)
        return raw.view(np.uint32)

    def scatter(self, offsets: Offsets, values: NDArray[np.uint32], nbytes: int) -> None:
        """Writes the low `nbytes` of uint32[lanes, words] at int64[lanes]; of equal offsets the last one stays."""
        low_bits = int(np.bitwise_or.reduce(offsets, axis=None)) if offsets.size else 0
        if nbytes == 1:
            self.data[offsets] = values[:, 0]
        elif nbytes in self.views and not low_bits & (nbytes - 1):
            self.views[nbytes][offsets >> (nbytes.bit_length() - 1)] = values[:, 0] if nbytes == 2 else values
        elif nbytes >= 4 and not low_bits & 3:
            self.views[4][(offsets >> 2)[:, None] + np.arange(nbytes // 4), 0] = values
        else:
            raw = np.ascontiguousarray(values).view(np.uint8)[:, :nbytes]
            self.data[offsets[:, None] + np.arange(nbytes)] = raw


@dataclass(eq=False, slots=True)
class Allocation:
    """Some bytes of device memory.

    Attributes:
        start: device address of the first byte.
        end: device address after the last byte.
        storage: where the bytes are.
        name: for messages.
        writable: whether kernels may store to it.
    """

    start: int
    end: int
    storage: Storage
    name: str
    writable: bool = True


@dataclass(frozen=True, slots=True)
class DevicePointer:
    """An address in a memory, as an argument of `Kernel.launch`; what it points to is not copied."""

    memory: DeviceMemory
    address: int


class DeviceMemory:
    """One device's memory.

    Args:
        capacity: bytes that can be allocated; None for no limit.
        base: first address; devices whose memories are to be peers need ranges apart (say, 1 TiB each).
        name: for messages.
    """

    def __init__(self, capacity: int | None = None, base: int = DEFAULT_BASE, name: str = "device 0") -> None:
        self.capacity = capacity
        self.base = base
        self.name = name
        self.used = 0
        self._next = base + RED_ZONE
        self._live: dict[int, Allocation] = {}
        self._tombstones: deque[tuple[int, int, str]] = deque(maxlen=_TOMBSTONES)
        self._peers: list[DeviceMemory] = []
        self._starts: list[int] = []
        self._recent: Allocation | None = None

    # ------------------------------------------------------------------ what a host does

    def alloc(self, nbytes: int, name: str = "allocation") -> int:
        """Allocates poisoned bytes (0xAA) and returns their address, a multiple of 256.

        Raises:
            MemoryError: beyond the capacity.
        """
        self._take(nbytes)
        return self._add(np.full(nbytes, POISON_BYTE, np.uint8), name, writable=True)

    def reserve(self, nbytes: int, name: str = "reservation") -> int:
        """Allocates bytes that are zero and cost no physical memory until they are touched; returns their address."""
        self._take(nbytes)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        return self._add(np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), np.uint8), name, writable=True)

    def map(self, array: NDArray[Any], address: int | None = None, name: str = "array") -> int:
        """Makes a contiguous array (say, pinned host memory or a memmap) accessible, without a copy.

        Args:
            array: of any dtype; kernels cannot write to it if it is read-only.
            address: where; by default the next free address.
            name: for messages.

        Returns:
            The address.

        Raises:
            EmulationError: the array is not contiguous, or overlaps a live allocation.
        """
        if not array.flags["C_CONTIGUOUS"]:
            raise EmulationError(f"{name} is not contiguous")
        data = np.asarray(array).reshape(-1).view(np.uint8)  # a plain array: subclasses such as memmap are slow
        return self._add(data, name, writable=array.flags["WRITEABLE"], address=address)

    def free(self, address: int) -> None:
        """Ends an allocation, reservation or mapping; later accesses fault.

        Raises:
            EmulationError: nothing live starts there.
        """
        allocation = self._live.pop(address, None)
        if allocation is None:
            raise EmulationError(
                f"{self.name}: free of {address:#x}, where nothing live starts: {self.nearest(address)}"
            )
        self.used -= allocation.end - allocation.start
        self._tombstones.append((allocation.start, allocation.end, allocation.name))
        self._forget_table()

    def view(self, address: int, nbytes: int) -> Bytes:
        """Returns bytes without a copy.

        Raises:
            EmulationError: they are not inside one live allocation.
        """
        allocation = self.containing(address)
        if allocation is None or address + nbytes > allocation.end:
            place = f"{address:#x}+{nbytes}: {self.nearest(address)}"
            raise EmulationError(f"{self.name}: host access outside an allocation at {place}")
        return allocation.storage.data[address - allocation.start :][:nbytes]

    def read(self, address: int, nbytes: int) -> Bytes:
        """Returns a copy of bytes."""
        return self.view(address, nbytes).copy()

    def write(self, address: int, data: NDArray[Any] | bytes | bytearray | memoryview) -> None:
        """Writes an array's or buffer's bytes."""
        raw = data.reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
        self.view(address, len(raw))[...] = raw

    def enable_peer(self, peer: DeviceMemory) -> None:
        """Lets this device's kernels access another device's memory (one direction)."""
        if peer is not self and peer not in self._peers:
            self._peers.append(peer)

    def disable_peer(self, peer: DeviceMemory) -> None:
        """Ends access to another device's memory."""
        self._peers.remove(peer)

    # ------------------------------------------------------------------ the table

    def containing(self, address: int) -> Allocation | None:
        """Returns the live allocation, of this device or an enabled peer, that holds a byte."""
        recent = self._recent
        if recent is not None and recent.start <= address < recent.end:
            return recent
        place = bisect_right(self._starts, address) - 1
        if place >= 0 and address < self._live[self._starts[place]].end:
            self._recent = self._live[self._starts[place]]
            return self._recent
        for peer in self._peers:
            found = peer._containing_own(address)
            if found is not None:
                return found
        return None

    def nearest(self, address: int) -> str:
        """Says where an address lies, for a message about a fault."""
        for start, end, name in self._tombstones:
            if start <= address < end:
                return f"{address - start} bytes into {name} of {end - start} bytes, which was freed"
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return "no allocation lies before it"
        near = self._live[self._starts[place]]
        if address < near.end:
            return f"{address - near.start} bytes into {near.name} of {near.end - near.start} bytes"
        return f"{address - near.end} bytes after {near.name} of {near.end - near.start} bytes"

    def _containing_own(self, address: int) -> Allocation | None:
        place = bisect_right(self._starts, address) - 1
        if place >= 0 and address < self._live[self._starts[place]].end:
            return self._live[self._starts[place]]
        return None

    def _take(self, nbytes: int) -> None:
        if self.capacity is not None and self.used + nbytes > self.capacity:
            message = f"{self.name}: {nbytes} bytes wanted, {self.capacity - self.used} of {self.capacity} left"
            raise MemoryError(message)

    def _add(self, data: Bytes, name: str, *, writable: bool, address: int | None = None) -> int:
        start = self._next if address is None else address
        end = start + len(data)
        if address is None:
            self._next = (end + RED_ZONE + _ALIGNMENT - 1) & -_ALIGNMENT
        elif any(other.start < end and start < other.end for other in self._live.values()):
            raise EmulationError(f"{self.name}: {name} at {address:#x} overlaps a live allocation")
        self._live[start] = Allocation(start, end, Storage.of(data), name, writable)
        insort(self._starts, start)
        self.used += len(data)
        return start

    def _forget_table(self) -> None:
        self._starts = sorted(self._live)
        self._recent = None

    # ------------------------------------------------------------------ what lanes do

    def load(self, addresses: Addresses, nbytes: int, active: Mask | None = None) -> NDArray[np.uint32]:
        """Reads `nbytes` (1, 2, 4, 8, 12, 16 or more) at each address.

        Args:
            addresses: uint64, any shape.
            nbytes: of each access.
            active: which lanes access; None for all.

        Returns:
            uint32[..., words]; 0 where inactive.

        Raises:
            LaneFaultError: an active lane's bytes are not in one live allocation.
        """
        if active is None:
            return self._load(addresses, nbytes)
        if active.all():
            return self._load(addresses, nbytes)
        result = np.zeros((*addresses.shape, max(nbytes // 4, 1)), np.uint32)
        chosen = addresses[active]
        if chosen.size:
            try:
                result[active] = self._load(chosen, nbytes)
            except LaneFaultError as fault:
                raise fault.among(active) from None
        return result

    def _load(self, addresses: Addresses, nbytes: int) -> NDArray[np.uint32]:
        allocation = self._holds_all(addresses, nbytes)
        if allocation is not None:
            return allocation.storage.gather(_offsets(addresses, allocation), nbytes)
        result = np.empty((*addresses.shape, max(nbytes // 4, 1)), np.uint32)
        for allocation, mask in self._split(addresses, nbytes, f"{nbytes}-byte load"):
            result[mask] = allocation.storage.gather(_offsets(addresses[mask], allocation), nbytes)
        return result

    def store(self, addresses: Addresses, values: NDArray[np.uint32], nbytes: int, active: Mask | None = None) -> None:
        """Writes the low `nbytes` of values uint32[..., words] at each address; lanes in ascending order.

        Raises:
            LaneFaultError: an active lane's bytes are not in one live, writable allocation.
        """
        try:
            if active is None or active.all():
                self._store(addresses.reshape(-1), values.reshape(-1, values.shape[-1]), nbytes)
            else:
                self._store(addresses[active], values[active], nbytes)
        except LaneFaultError as fault:
            raise fault.among(np.ones(addresses.shape, bool) if active is None else active) from None

    def _store(self, addresses: Addresses, values: NDArray[np.uint32], nbytes: int) -> None:
        if not addresses.size:
            return
        allocation = self._holds_all(addresses, nbytes)
        if allocation is not None and allocation.writable:
            allocation.storage.scatter(_offsets(addresses, allocation), values, nbytes)
            return
        parts = self._split(addresses, nbytes, f"{nbytes}-byte store", writing=True)
        for part, mask in parts:
            part.storage.scatter(_offsets(addresses[mask], part), values[mask], nbytes)

    def check(self, addresses: Addresses, nbytes: int, what: str, *, writing: bool = False) -> None:
        """Checks accesses of lanes (a flat array) without performing them.

        Raises:
            LaneFaultError: a lane's bytes are not in one live (and, if writing, writable) allocation.
        """
        self._split(addresses, nbytes, f"{nbytes}-byte {what}", writing=writing)

    def _holds_all(self, addresses: Addresses, nbytes: int) -> Allocation | None:
        if not addresses.size:
            return None
        allocation = self.containing(int(addresses.min()))
        if allocation is not None and int(addresses.max()) + nbytes <= allocation.end:
            return allocation
        return None

    def _split(
        self, addresses: Addresses, nbytes: int, what: str, *, writing: bool = False
    ) -> list[tuple[Allocation, Mask]]:
        """Groups lanes by the allocation they access; faults for the first lane that accesses none."""
        parts: list[tuple[Allocation, Mask]] = []
        left = np.ones(addresses.shape, bool)
        while left.any():
            lane = int(np.flatnonzero(left)[0])
            address = int(addresses.reshape(-1)[lane])
            allocation = self.containing(address)
            if allocation is None or address + nbytes > allocation.end:
                raise LaneFaultError(f"out-of-bounds {what} at {address:#x}: {self.nearest(address)}", lane)
            if writing and not allocation.writable:
                raise LaneFaultError(f"{what} to a read-only array at {address:#x}: {self.nearest(address)}", lane)
            end = np.uint64(max(allocation.end - nbytes, 0))
            mask = left & (addresses >= np.uint64(allocation.start)) & (addresses <= end)
            parts.append((allocation, mask))
            left = left & ~mask
        return parts


class LaneFaultError(EmulationError):
    """A fault of one lane, not yet named: `lane` counts the accessing lanes in order."""

    def __init__(self, message: str, lane: int) -> None:
        super().__init__(message)
        self.lane = lane

    def among(self, active: Mask) -> LaneFaultError:
        """Returns the fault with `lane` as an index into all lanes, given which of them access."""
        return LaneFaultError(str(self), int(np.flatnonzero(active)[self.lane]))


def _offsets(addresses: Addresses, allocation: Allocation) -> Offsets:
    return (addresses - np.uint64(allocation.start)).view(np.int64)
