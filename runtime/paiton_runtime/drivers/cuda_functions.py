"""The functions, structures and constants of libcuda that the runtime uses, as cuda.h declares them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from paiton_runtime.drivers.device_functions import Signature

_handle = ctypes.c_void_p
_out = ctypes.POINTER(ctypes.c_void_p)
_address = ctypes.c_uint64
_int = ctypes.c_int
_out_int = ctypes.POINTER(ctypes.c_int)
_uint = ctypes.c_uint
_size = ctypes.c_size_t
_out_size = ctypes.POINTER(ctypes.c_size_t)

ATTRIBUTES = {
    "CU_DEVICE_ATTRIBUTE_WARP_SIZE": 10,
    "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": 16,
    "CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE": 38,
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": 75,
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": 76,
    "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 97,
}
"""Enumerators of `CUdevice_attribute`."""

FUNCTION_MAX_DYNAMIC_SHARED_BYTES = 8
MEMORY_HOST = 1
MEMORY_DEVICE = 2
MEMORY_UNIFIED = 4

PLAIN_SHARED_BYTES = 48 << 10
"""What every kernel may use without asking."""


NODE_ATTRIBUTES = {
    "access policy window": (1, 28),
    "cooperative": (2, 4),
    "cluster dimension": (4, 12),
    "cluster scheduling policy": (5, 4),
    "priority": (8, 4),
    "memory synchronisation domain map": (9, 2),
    "memory synchronisation domain": (10, 4),
    "preferred cluster dimension": (11, 12),
    "device updatable": (13, 4),
    "NVLink utilisation centric scheduling": (16, 4),
}
"""Attributes of kernel nodes: enumerator of `CUlaunchAttributeID`, and the bytes that its value has.

Drivers refuse those that are newer than they are."""


class KernelNodeParams(ctypes.Structure):
    """`CUDA_KERNEL_NODE_PARAMS_v2`, for `cuGraphAddKernelNode_v2`; the unsuffixed function takes a shorter one."""

    _fields_ = [
        ("func", _handle),
        ("gridDimX", _uint),
        ("gridDimY", _uint),
        ("gridDimZ", _uint),
        ("blockDimX", _uint),
        ("blockDimY", _uint),
        ("blockDimZ", _uint),
        ("sharedMemBytes", _uint),
        ("kernelParams", _handle),
        ("extra", _handle),
        ("kern", _handle),
        ("ctx", _handle),
    ]


class Memcpy3D(ctypes.Structure):
    """`CUDA_MEMCPY3D_v2`."""

    _fields_ = [
        ("srcXInBytes", _size),
        ("srcY", _size),
        ("srcZ", _size),
        ("srcLOD", _size),
        ("srcMemoryType", _uint),
        ("srcHost", _handle),
        ("srcDevice", _address),
        ("srcArray", _handle),
        ("reserved0", _handle),
        ("srcPitch", _size),
        ("srcHeight", _size),
        ("dstXInBytes", _size),
        ("dstY", _size),
        ("dstZ", _size),
        ("dstLOD", _size),
        ("dstMemoryType", _uint),
        ("dstHost", _handle),
        ("dstDevice", _address),
        ("dstArray", _handle),
        ("reserved1", _handle),
        ("dstPitch", _size),
        ("dstHeight", _size),
        ("WidthInBytes", _size),
        ("Height", _size),
        ("Depth", _size),
    ]


FUNCTIONS: Mapping[str, Signature] = {
    "initialise": ("cuInit", (_uint,)),
    "device_count": ("cuDeviceGetCount", (_out_int,)),
    "get_device": ("cuDeviceGet", (_out_int, _int)),
    "device_name": ("cuDeviceGetName", (ctypes.c_char_p, _int, _int)),
    "device_memory": ("cuDeviceTotalMem_v2", (_out_size, _int)),
    "device_attribute": ("cuDeviceGetAttribute", (_out_int, _int, _int)),
    "retain_context": ("cuDevicePrimaryCtxRetain", (_out, _int)),
    "release_context": ("cuDevicePrimaryCtxRelease_v2", (_int,)),
    "set_context": ("cuCtxSetCurrent", (_handle,)),
    "current_context": ("cuCtxGetCurrent", (_out,)),
    "driver_version": ("cuDriverGetVersion", (_out_int,)),
    "memory_info": ("cuMemGetInfo_v2", (_out_size, _out_size)),
    "synchronise": ("cuCtxSynchronize", ()),
    "create_stream": ("cuStreamCreate", (_out, _uint)),
    "destroy_stream": ("cuStreamDestroy_v2", (_handle,)),
    "synchronise_stream": ("cuStreamSynchronize", (_handle,)),
    "wait_event": ("cuStreamWaitEvent", (_handle, _handle, _uint)),
    "create_event": ("cuEventCreate", (_out, _uint)),
    "destroy_event": ("cuEventDestroy_v2", (_handle,)),
    "record_event": ("cuEventRecord", (_handle, _handle)),
    "synchronise_event": ("cuEventSynchronize", (_handle,)),
    "query_event": ("cuEventQuery", (_handle,)),
    "elapsed": ("cuEventElapsedTime", (ctypes.POINTER(ctypes.c_float), _handle, _handle)),
    "allocate": ("cuMemAlloc_v2", (_out, _size)),
    "free": ("cuMemFree_v2", (_address,)),
    "allocate_pinned": ("cuMemHostAlloc", (_out, _size, _uint)),
    "free_pinned": ("cuMemFreeHost", (_handle,)),
    "copy_to_device": ("cuMemcpyHtoDAsync_v2", (_address, _handle, _size, _handle)),
    "copy_to_host": ("cuMemcpyDtoHAsync_v2", (_handle, _address, _size, _handle)),
    "copy_on_device": ("cuMemcpyDtoDAsync_v2", (_address, _address, _size, _handle)),
    "fill": ("cuMemsetD8Async", (_address, ctypes.c_ubyte, _size, _handle)),
    "load_module": ("cuModuleLoadData", (_out, ctypes.c_char_p)),
    "unload_module": ("cuModuleUnload", (_handle,)),
    "function": ("cuModuleGetFunction", (_out, _handle, ctypes.c_char_p)),
    "function_attribute": ("cuFuncSetAttribute", (_handle, _int, _int)),
    "resident_blocks": ("cuOccupancyMaxActiveBlocksPerMultiprocessor", (_out_int, _handle, _int, _size)),
    "launch_kernel": ("cuLaunchKernel", (_handle, *(_uint,) * 7, _handle, _out, _out)),
    "create_graph": ("cuGraphCreate", (_out, _uint)),
    "add_kernel": (
        "cuGraphAddKernelNode_v2",
        (_out, _handle, _out, _size, ctypes.POINTER(KernelNodeParams)),
    ),
    "add_copy": (
        "cuGraphAddMemcpyNode",
        (_out, _handle, _out, _size, ctypes.POINTER(Memcpy3D), _handle),
    ),
    "begin_capture": ("cuStreamBeginCapture_v2", (_handle, _int)),
    "end_capture": ("cuStreamEndCapture", (_handle, _out)),
    "graph_nodes": ("cuGraphGetNodes", (_handle, _out, _out_size)),
    # The one with edge data came with CUDA 12.3; this one refuses to answer where there is any.
    "graph_edges": ("cuGraphGetEdges", (_handle, _out, _out, _out_size)),
    "node_type": ("cuGraphNodeGetType", (_handle, _out_int)),
    "kernel_node": ("cuGraphKernelNodeGetParams_v2", (_handle, ctypes.POINTER(KernelNodeParams))),
    "node_attribute": ("cuGraphKernelNodeGetAttribute", (_handle, _int, _handle)),
    "copy_node": ("cuGraphMemcpyNodeGetParams", (_handle, ctypes.POINTER(Memcpy3D))),
    "instantiate_graph": ("cuGraphInstantiateWithFlags", (_out, _handle, ctypes.c_ulonglong)),
    "destroy_graph": ("cuGraphDestroy", (_handle,)),
    "upload_graph": ("cuGraphUpload", (_handle, _handle)),
    "launch_graph": ("cuGraphLaunch", (_handle, _handle)),
    "destroy_executable_graph": ("cuGraphExecDestroy", (_handle,)),
    "can_access_peer": ("cuDeviceCanAccessPeer", (_out_int, _int, _int)),
    "enable_peer": ("cuCtxEnablePeerAccess", (_handle, _uint)),
}
"""The C function of each operation."""
