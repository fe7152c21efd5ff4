"""NVIDIA's driver library, libcuda, from version 12 on."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence

from paiton_runtime.drivers.cuda_functions import (
    ATTRIBUTES,
    FUNCTION_MAX_DYNAMIC_SHARED_BYTES,
    FUNCTIONS,
    MEMORY_DEVICE,
    MEMORY_HOST,
    MEMORY_UNIFIED,
    NODE_ATTRIBUTES,
    PLAIN_SHARED_BYTES,
    KernelNodeParams,
    Memcpy3D,
)
from paiton_runtime.drivers.device_graphs import KernelNode
from paiton_runtime.drivers.device_launch import DeviceProperties, HostCopy, KernelLaunch
from paiton_runtime.drivers.device_library import DeviceLibrary


class CudaLibrary(DeviceLibrary):
    """libcuda (see :class:`DeviceLibrary`). Devices are used through their primary contexts, held until `close`."""

    backend = "cuda"
    override = "PAITON_CUDA_LIBRARY"
    visibility = ("CUDA_VISIBLE_DEVICES",)
    install_hint = "install an NVIDIA driver of version 525 (CUDA 12) or later"
    sonames = ("libcuda.so.1", "libcuda.so")
    functions = FUNCTIONS
    node_attributes = NODE_ATTRIBUTES

    def __init__(self) -> None:
        super().__init__()
        self._error_name = self.library.cuGetErrorName
        self._error_name.argtypes = (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))
        self._error_name.restype = ctypes.c_int
        self._contexts: dict[int, int] = {}
        self._devices: dict[int, int] = {}
        self._contexts_lock = threading.Lock()

    def error_name(self, code: int) -> str:
        """Returns cuGetErrorName's answer."""
        name = ctypes.c_char_p()
        self._error_name(code, ctypes.byref(name))
        return (name.value or b"CUDA_ERROR_UNKNOWN").decode()

    def initialise(self, devices: Sequence[int] | None = None) -> None:
        """Initialises the driver, which is to load kernels with their module and not at their first launch."""
        os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")
        super().initialise(devices)

    def _device(self, ordinal: int) -> int:
        if ordinal not in self._devices:
            handle = ctypes.c_int()
            self._call("get_device", f"choosing device {ordinal}", ctypes.byref(handle), ordinal)
            self._devices[ordinal] = handle.value
        return self._devices[ordinal]

    def device(self, ordinal: int) -> DeviceProperties:
        """Returns what the driver says about a device."""
        device, what = self._device(ordinal), f"reading the properties of device {ordinal}"
        name = ctypes.create_string_buffer(256)
        self._call("device_name", what, name, len(name), device)
        memory = ctypes.c_size_t()
        self._call("device_memory", what, ctypes.byref(memory), device)
        found = []
        for attribute in ATTRIBUTES.values():
            value = ctypes.c_int()
            self._call("device_attribute", what, ctypes.byref(value), attribute, device)
            found.append(value.value)
        warp_size, units, l2_bytes, major, minor, shared_bytes = found
        return DeviceProperties(
            ordinal=ordinal,
            name=name.value.decode(),
            target=f"cuda:sm_{major}{minor}",
            memory_bytes=memory.value,
            compute_units=units,
            warp_size=warp_size,
            shared_bytes=shared_bytes,
            l2_bytes=l2_bytes,
        )

    def _context(self, ordinal: int) -> int:
        with self._contexts_lock:
            if ordinal not in self._contexts:
                device = self._device(ordinal)
                self._contexts[ordinal] = self._create("retain_context", f"opening device {ordinal}", device)
            return self._contexts[ordinal]

    def set_device(self, ordinal: int) -> None:
        """Makes a device the calling thread's."""
        self._call("set_context", f"choosing device {ordinal}", self._context(ordinal))

    def version(self) -> str:
        """Returns the CUDA version of the driver, e.g. "CUDA 12.8"."""
        number = ctypes.c_int()
        self._call("driver_version", "reading the driver's version", ctypes.byref(number))
        return f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"

    def close(self) -> None:
        """Releases the contexts."""
        with self._contexts_lock:
            while self._contexts:
                ordinal, _ = self._contexts.popitem()
                self._call("release_context", f"closing device {ordinal}", self._device(ordinal))

    def _allocate(self, size: int, *, uncached: bool) -> int:
        del uncached  # not needed: a peer's writes go through the owner's L2, which is what the owner's kernels read
        return self._create("allocate", f"allocating {size} bytes of device memory", size)

    def allow_shared_bytes(self, function: int, size: int) -> None:
        """Lets launches of a kernel ask for `size` bytes of dynamic shared memory."""
        if size > PLAIN_SHARED_BYTES:
            what = f"allowing a kernel {size} bytes of shared memory"
            self._call("function_attribute", what, function, FUNCTION_MAX_DYNAMIC_SHARED_BYTES, size)

    def _add_kernel(self, what: str, place: tuple[object, ...], launch: KernelLaunch) -> None:
        pointers = ctypes.cast(launch.arguments.pointers, ctypes.c_void_p)
        blocks = (*launch.grid, launch.threads, 1, 1)
        node = KernelNodeParams(launch.function, *blocks, launch.shared_bytes, pointers, None, None, None)
        self._call("add_kernel", what, *place, ctypes.byref(node))

    def _add_copy(self, what: str, place: tuple[object, ...], copy: HostCopy) -> None:
        node = Memcpy3D(
            srcMemoryType=MEMORY_HOST,
            srcHost=copy.source,
            dstMemoryType=MEMORY_DEVICE,
            dstDevice=copy.destination,
            WidthInBytes=copy.size,
            Height=1,
            Depth=1,
        )
        context = ctypes.c_void_p()
        self._call("current_context", what, ctypes.byref(context))
        self._call("add_copy", what, *place, ctypes.byref(node), context)

    def kernel_node(self, node: int) -> KernelNode:
        """Returns the parameters of a kernel node."""
        found = KernelNodeParams()
        self._call("kernel_node", "reading the parameters of a kernel node", node, ctypes.byref(found))
        return KernelNode(
            function=found.func or 0,
            grid=(found.gridDimX, found.gridDimY, found.gridDimZ),
            block=(found.blockDimX, found.blockDimY, found.blockDimZ),
            shared_bytes=found.sharedMemBytes,
            pointers=found.kernelParams or 0,
        )

    def copy_node(self, node: int) -> HostCopy | None:
        """Returns what a node copies, whichever of its addresses the driver calls unified."""
        found = Memcpy3D()
        self._call("copy_node", "reading the parameters of a copy node", node, ctypes.byref(found))
        source = found.srcDevice if found.srcMemoryType == MEMORY_UNIFIED else found.srcHost or 0
        destination, size = found.dstDevice + found.dstXInBytes, found.WidthInBytes * found.Height * found.Depth
        return HostCopy(destination, source + found.srcXInBytes, size)

    def can_access_peer(self, ordinal: int, peer: int) -> bool:
        """Returns whether kernels of one device can reach the memory of another."""
        answer = ctypes.c_int()
        what = f"asking whether device {ordinal} reaches device {peer}"
        self._call("can_access_peer", what, ctypes.byref(answer), self._device(ordinal), self._device(peer))
        return bool(answer.value)

    def _enable_peer(self, peer: int) -> int:
        code: int = self._functions["enable_peer"](self._context(peer), 0)
        return code
