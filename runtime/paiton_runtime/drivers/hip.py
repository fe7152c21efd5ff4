"""AMD's driver library, libamdhip64, from ROCm 6 on."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

from paiton_runtime.drivers.device_graphs import KernelNode
from paiton_runtime.drivers.device_launch import DeviceProperties, HostCopy, KernelLaunch
from paiton_runtime.drivers.device_library import DeviceLibrary
from paiton_runtime.drivers.hip_functions import (
    DEVICE_MALLOC_UNCACHED,
    FUNCTIONS,
    MEMCPY_HOST_TO_DEVICE,
    NODE_ATTRIBUTES,
    PROPERTIES,
    PROPERTIES_BYTES,
    Dim3,
    KernelNodeParams,
)


class HipLibrary(DeviceLibrary):
    """libamdhip64 (see :class:`DeviceLibrary`)."""

    backend = "hip"
    override = "PAITON_HIP_LIBRARY"
    visibility = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    install_hint = "install ROCm 6 or later"
    sonames = ("libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so")
    functions = FUNCTIONS
    node_attributes = NODE_ATTRIBUTES

    def __init__(self) -> None:
        super().__init__()
        self._error_name = self.library.hipGetErrorName
        self._error_name.argtypes, self._error_name.restype = (ctypes.c_int,), ctypes.c_char_p

    def _places(self) -> Sequence[str]:
        # ROCm's packages do not tell the dynamic linker where they put it.
        root = os.environ.get("ROCM_PATH") or "/opt/rocm"
        return (*self.sonames, *(f"{root}/lib/{name}" for name in self.sonames))

    def error_name(self, code: int) -> str:
        """Returns hipGetErrorName's answer."""
        return (self._error_name(code) or b"hipErrorUnknown").decode()

    def device(self, ordinal: int) -> DeviceProperties:
        """Returns what the driver says about a device."""
        raw = ctypes.create_string_buffer(PROPERTIES_BYTES)
        self._call("properties", f"reading the properties of device {ordinal}", raw, ordinal)
        found = {field: struct.unpack_from(letter, raw, at)[0] for field, (at, letter) in PROPERTIES.items()}
        # The architecture is followed by features: gfx942:sramecc+:xnack-
        architecture = found["gcnArchName"].partition(b"\0")[0].decode().partition(":")[0]
        return DeviceProperties(
            ordinal=ordinal,
            name=found["name"].partition(b"\0")[0].decode(),
            target=f"hip:{architecture}",
            memory_bytes=found["totalGlobalMem"],
            compute_units=found["multiProcessorCount"],
            warp_size=found["warpSize"],
            shared_bytes=found["sharedMemPerBlock"],
            l2_bytes=found["l2CacheSize"],
        )

    def set_device(self, ordinal: int) -> None:
        """Makes a device the calling thread's."""
        self._call("set_device", f"choosing device {ordinal}", ordinal)

    def version(self) -> str:
        """Returns the version of the HIP runtime, e.g. "HIP 6.3.42134"."""
        number = ctypes.c_int()
        self._call("runtime_version", "reading the runtime's version", ctypes.byref(number))
        major, rest = divmod(number.value, 10_000_000)
        return f"HIP {major}.{rest // 100_000}.{rest % 100_000}"

    def close(self) -> None:
        """Does nothing: HIP's contexts live as long as the process."""

    def _allocate(self, size: int, *, uncached: bool) -> int:
        flags = DEVICE_MALLOC_UNCACHED if uncached else 0
        return self._create("allocate", f"allocating {size} bytes of device memory", size, flags)

    def allow_shared_bytes(self, function: int, size: int) -> None:
        """Does nothing: AMD's launches may use all the LDS that the device has."""

    def _add_kernel(self, what: str, place: tuple[object, ...], launch: KernelLaunch) -> None:
        pointers = ctypes.cast(launch.arguments.pointers, ctypes.c_void_p)
        blocks, threads = Dim3(*launch.grid), Dim3(launch.threads, 1, 1)
        node = KernelNodeParams(threads, None, launch.function, blocks, pointers, launch.shared_bytes)
        self._call("add_kernel", what, *place, ctypes.byref(node))

    def _add_copy(self, what: str, place: tuple[object, ...], copy: HostCopy) -> None:
        arguments = copy.destination, copy.source, copy.size, MEMCPY_HOST_TO_DEVICE
        self._call("add_copy", what, *place, *arguments)

    def kernel_node(self, node: int) -> KernelNode:
        """Returns the parameters of a kernel node."""
        found = KernelNodeParams()
        self._call("kernel_node", "reading the parameters of a kernel node", node, ctypes.byref(found))
        grid, block = found.gridDim, found.blockDim
        return KernelNode(
            function=found.func or 0,
            grid=(grid.x, grid.y, grid.z),
            block=(block.x, block.y, block.z),
            shared_bytes=found.sharedMemBytes,
            pointers=found.kernelParams or 0,
        )

    def copy_node(self, node: int) -> HostCopy | None:
        """Returns None: of a plain copy, hipGraphMemcpyNodeGetParams returns a struct that was never filled in."""
        del node
        return None

    def can_access_peer(self, ordinal: int, peer: int) -> bool:
        """Returns whether kernels of one device can reach the memory of another."""
        answer = ctypes.c_int()
        what = f"asking whether device {ordinal} reaches device {peer}"
        self._call("can_access_peer", what, ctypes.byref(answer), ordinal, peer)
        return bool(answer.value)

    def _enable_peer(self, peer: int) -> int:
        code: int = self._functions["enable_peer"](peer, 0)
        return code
