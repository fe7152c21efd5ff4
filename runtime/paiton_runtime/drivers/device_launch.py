"""What is given to and got from a driver library: properties of a device, packed arguments, nodes of a graph."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from paiton_artifacts.errors import PaitonError
from paiton_artifacts.record import dataclass


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """What a driver says about a device.

    Attributes:
        ordinal: number among the visible devices.
        name: the vendor's, e.g. "AMD Instinct MI300X".
        target: instruction set as in bundles, e.g. "hip:gfx942" or "cuda:sm_90".
        memory_bytes: all of its memory.
        compute_units: CUs or SMs.
        warp_size: lanes of a warp.
        shared_bytes: largest shared memory of a block.
        l2_bytes: L2 cache; on devices of several dies, of one of them.
    """

    ordinal: int
    name: str
    target: str
    memory_bytes: int
    compute_units: int
    warp_size: int
    shared_bytes: int
    l2_bytes: int


class Arguments:
    """The packed arguments of a launch, and the array of pointers to each of them that drivers read.

    Args:
        packed: all arguments at their offsets.
        offsets: where each argument begins, in the order of the code object's metadata: the driver reads as many
            pointers as the metadata lists arguments, so every one of them must be here.
    """

    __slots__ = ("packed", "pointers")

    def __init__(self, packed: bytes, offsets: Sequence[int]) -> None:
        if any(not 0 <= offset < len(packed) for offset in offsets):
            raise PaitonError(f"an argument's offset leaves {len(packed)} bytes of arguments: {list(offsets)}")
        self.packed = ctypes.create_string_buffer(packed, len(packed))
        base = ctypes.addressof(self.packed)
        self.pointers = (ctypes.c_void_p * len(offsets))(*(base + offset for offset in offsets))


@dataclass(frozen=True, slots=True)
class KernelLaunch:
    """One launch of a kernel.

    Attributes:
        function: from :meth:`DeviceLibrary.function`.
        grid: blocks along x, y and z.
        threads: per block.
        shared_bytes: dynamic shared memory of a block.
        arguments: must outlive the call that they are given to; graphs keep a copy.
    """

    function: int
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class HostCopy:
    """A copy from pinned host memory to the device, as a node of a graph; read anew at every launch."""

    destination: int
    source: int
    size: int
