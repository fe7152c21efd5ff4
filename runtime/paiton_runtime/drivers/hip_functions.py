"""The functions, structures and constants of libamdhip64 that the runtime uses, as its headers declare them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from paiton_runtime.drivers.device_functions import Signature

_handle = ctypes.c_void_p
_out = ctypes.POINTER(ctypes.c_void_p)
_int = ctypes.c_int
_out_int = ctypes.POINTER(ctypes.c_int)
_uint = ctypes.c_uint
_size = ctypes.c_size_t
_out_size = ctypes.POINTER(ctypes.c_size_t)

MEMCPY_HOST_TO_DEVICE = 1
DEVICE_MALLOC_UNCACHED = 3

PROPERTIES_BYTES = 1472
"""Size of `hipDeviceProp_tR0600`; the suffix freezes its layout."""

PROPERTIES = {
    "name": (0, "256s"),
    "totalGlobalMem": (288, "Q"),
    "sharedMemPerBlock": (296, "Q"),
    "warpSize": (308, "i"),
    "multiProcessorCount": (388, "i"),
    "l2CacheSize": (616, "i"),
    "gcnArchName": (1160, "256s"),
}
"""Byte offset and struct letter of the fields that are read."""


NODE_ATTRIBUTES = {
    "access policy window": (1, 32),
    "cooperative": (2, 4),
    "priority": (8, 4),
    "memory synchronisation domain map": (9, 2),
    "memory synchronisation domain": (10, 4),
}
"""Attributes of kernel nodes: enumerator of `hipLaunchAttributeID`, and the bytes that its value has."""


class Dim3(ctypes.Structure):
    """`dim3`."""

    _fields_ = [("x", ctypes.c_uint32), ("y", ctypes.c_uint32), ("z", ctypes.c_uint32)]


class KernelNodeParams(ctypes.Structure):
    """`hipKernelNodeParams`."""

    _fields_ = [
        ("blockDim", Dim3),
        ("extra", _handle),
        ("func", _handle),
        ("gridDim", Dim3),
        ("kernelParams", _handle),
        ("sharedMemBytes", _uint),
    ]


FUNCTIONS: Mapping[str, Signature] = {
    "initialise": ("hipInit", (_uint,)),
    "device_count": ("hipGetDeviceCount", (_out_int,)),
    "properties": ("hipGetDevicePropertiesR0600", (_handle, _int)),
    "set_device": ("hipSetDevice", (_int,)),
    "runtime_version": ("hipRuntimeGetVersion", (_out_int,)),
    "memory_info": ("hipMemGetInfo", (_out_size, _out_size)),
    "synchronise": ("hipDeviceSynchronize", ()),
    "create_stream": ("hipStreamCreateWithFlags", (_out, _uint)),
    "destroy_stream": ("hipStreamDestroy", (_handle,)),
    "synchronise_stream": ("hipStreamSynchronize", (_handle,)),
    "wait_event": ("hipStreamWaitEvent", (_handle, _handle, _uint)),
    "create_event": ("hipEventCreateWithFlags", (_out, _uint)),
    "destroy_event": ("hipEventDestroy", (_handle,)),
    "record_event": ("hipEventRecord", (_handle, _handle)),
    "synchronise_event": ("hipEventSynchronize", (_handle,)),
    "query_event": ("hipEventQuery", (_handle,)),
    "elapsed": ("hipEventElapsedTime", (ctypes.POINTER(ctypes.c_float), _handle, _handle)),
    "allocate": ("hipExtMallocWithFlags", (_out, _size, _uint)),
    "free": ("hipFree", (_handle,)),
    "allocate_pinned": ("hipHostMalloc", (_out, _size, _uint)),
    "free_pinned": ("hipHostFree", (_handle,)),
    "copy_to_device": ("hipMemcpyHtoDAsync", (_handle, _handle, _size, _handle)),
    "copy_to_host": ("hipMemcpyDtoHAsync", (_handle, _handle, _size, _handle)),
    "copy_on_device": ("hipMemcpyDtoDAsync", (_handle, _handle, _size, _handle)),
    "fill": ("hipMemsetAsync", (_handle, _int, _size, _handle)),
    "load_module": ("hipModuleLoadData", (_out, ctypes.c_char_p)),
    "unload_module": ("hipModuleUnload", (_handle,)),
    "function": ("hipModuleGetFunction", (_out, _handle, ctypes.c_char_p)),
    "resident_blocks": ("hipModuleOccupancyMaxActiveBlocksPerMultiprocessor", (_out_int, _handle, _int, _size)),
    "launch_kernel": ("hipModuleLaunchKernel", (_handle, *(_uint,) * 7, _handle, _out, _out)),
    "create_graph": ("hipGraphCreate", (_out, _uint)),
    "add_kernel": (
        "hipGraphAddKernelNode",
        (_out, _handle, _out, _size, ctypes.POINTER(KernelNodeParams)),
    ),
    "add_copy": ("hipGraphAddMemcpyNode1D", (_out, _handle, _out, _size, _handle, _handle, _size, _int)),
    "begin_capture": ("hipStreamBeginCapture", (_handle, _int)),
    "end_capture": ("hipStreamEndCapture", (_handle, _out)),
    "graph_nodes": ("hipGraphGetNodes", (_handle, _out, _out_size)),
    "graph_edges": ("hipGraphGetEdges", (_handle, _out, _out, _out_size)),
    "node_type": ("hipGraphNodeGetType", (_handle, _out_int)),
    "kernel_node": ("hipGraphKernelNodeGetParams", (_handle, ctypes.POINTER(KernelNodeParams))),
    "node_attribute": ("hipGraphKernelNodeGetAttribute", (_handle, _int, _handle)),
    "instantiate_graph": ("hipGraphInstantiateWithFlags", (_out, _handle, ctypes.c_ulonglong)),
    "destroy_graph": ("hipGraphDestroy", (_handle,)),
    "upload_graph": ("hipGraphUpload", (_handle, _handle)),
    "launch_graph": ("hipGraphLaunch", (_handle, _handle)),
    "destroy_executable_graph": ("hipGraphExecDestroy", (_handle,)),
    "can_access_peer": ("hipDeviceCanAccessPeer", (_out_int, _int, _int)),
    "enable_peer": ("hipDeviceEnablePeerAccess", (_int, _uint)),
}
"""The C function of each operation."""
