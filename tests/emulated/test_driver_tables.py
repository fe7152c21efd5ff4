"""The runtime's tables of functions, structures and constants against the vendors' headers in the Triton wheel."""

from __future__ import annotations

import ctypes
import struct
from types import ModuleType
from typing import Any

import pytest

from paiton_runtime.drivers import cuda_functions, device_functions, device_graphs, hip_functions
from tests.emulated.standin.headers import CUDA, HIP, LETTERS, Headers

BOTH = pytest.mark.parametrize(
    ("headers", "module"), [(HIP, hip_functions), (CUDA, cuda_functions)], ids=["hip", "cuda"]
)


def kind_of(parameter: Any) -> tuple[str, int]:
    """Returns what a C caller sees of a ctype: pointer, float or integer, and its size; enumerations have no sign."""
    if parameter in (ctypes.c_void_p, ctypes.c_char_p) or hasattr(parameter, "contents"):
        return "pointer", 8
    floating = parameter in (ctypes.c_float, ctypes.c_double)
    return "float" if floating else "integer", ctypes.sizeof(parameter)


@BOTH
def test_every_function_has_the_declared_parameters(headers: Headers, module: ModuleType) -> None:
    for symbol, parameters in module.FUNCTIONS.values():
        letters = headers.prototypes[symbol].letters()
        assert [kind_of(parameter) for parameter in parameters] == [kind_of(LETTERS[x]) for x in letters], symbol


def check_layouts(headers: Headers, types: dict[str, type[ctypes.Structure]]) -> None:
    wanted = {}
    for name, type_ in types.items():
        wanted[f"sizeof({name})"] = ctypes.sizeof(type_)
        for field, *_ in type_._fields_:
            place = getattr(type_, field)
            wanted[f"offsetof({name}, {field})"] = place.offset
            wanted[f"sizeof((({name} *)0)->{field})"] = place.size
    assert headers.values(wanted) == wanted


def test_layouts_of_hip() -> None:
    check_layouts(HIP, {"dim3": hip_functions.Dim3, "hipKernelNodeParams": hip_functions.KernelNodeParams})


def test_properties_of_hip() -> None:
    wanted = {"sizeof(hipDeviceProp_tR0600)": hip_functions.PROPERTIES_BYTES}
    for field, (offset, letter) in hip_functions.PROPERTIES.items():
        wanted[f"offsetof(hipDeviceProp_tR0600, {field})"] = offset
        wanted[f"sizeof(((hipDeviceProp_tR0600 *)0)->{field})"] = struct.calcsize(letter)
    assert HIP.values(wanted) == wanted


def test_layouts_of_cuda() -> None:
    types = {
        "CUDA_KERNEL_NODE_PARAMS_v2": cuda_functions.KernelNodeParams,
        "CUDA_MEMCPY3D_v2": cuda_functions.Memcpy3D,
    }
    check_layouts(CUDA, types)


def check_attributes(headers: Headers, module: ModuleType, enumerators: dict[str, str], union: str) -> None:
    """Checks numbers and sizes; `enumerators` has the member of the union that holds an attribute's value."""
    numbers = headers.values(enumerators)
    assert list(numbers.values()) == [number for number, _ in module.NODE_ATTRIBUTES.values()]
    sizes = {
        f"sizeof((({union} *)0)->{member})": size
        for member, (_, size) in zip(enumerators.values(), module.NODE_ATTRIBUTES.values(), strict=True)
    }
    assert headers.values(sizes) == sizes
    assert headers.values([f"sizeof({union})"]) == {f"sizeof({union})": device_graphs.ATTRIBUTE_BYTES}


WINDOW = "accessPolicyWindow.{last}) + offsetof({type_}, {last}"
"""The window's size but for the padding at its end."""


def test_attributes_of_hip() -> None:
    enumerators = {
        "hipLaunchAttributeAccessPolicyWindow": WINDOW.format(type_="hipAccessPolicyWindow", last="num_bytes"),
        "hipLaunchAttributeCooperative": "cooperative",
        "hipLaunchAttributePriority": "priority",
        "hipLaunchAttributeMemSyncDomainMap": "memSyncDomainMap",
        "hipLaunchAttributeMemSyncDomain": "memSyncDomain",
    }
    check_attributes(HIP, hip_functions, enumerators, "hipLaunchAttributeValue")


def test_attributes_of_cuda() -> None:
    enumerators = {
        "CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW": WINDOW.format(type_="CUaccessPolicyWindow", last="missProp"),
        "CU_LAUNCH_ATTRIBUTE_COOPERATIVE": "cooperative",
        "CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION": "clusterDim",
        "CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE": "clusterSchedulingPolicyPreference",
        "CU_LAUNCH_ATTRIBUTE_PRIORITY": "priority",
        "CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP": "memSyncDomainMap",
        "CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN": "memSyncDomain",
        "CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION": "preferredClusterDim",
        "CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE": "deviceUpdatableKernelNode.deviceUpdatable",
        "CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING": "nvlinkUtilCentricScheduling",
    }
    check_attributes(CUDA, cuda_functions, enumerators, "CUlaunchAttributeValue")


def test_constants_of_hip() -> None:
    wanted = {
        "hipMemcpyHostToDevice": hip_functions.MEMCPY_HOST_TO_DEVICE,
        "hipDeviceMallocUncached": hip_functions.DEVICE_MALLOC_UNCACHED,
        "hipDeviceMallocDefault": 0,
        "hipStreamNonBlocking": 1,
        "hipHostMallocPortable": 1,
        "hipEventDisableTiming": 2,
        "hipGraphNodeTypeKernel": device_graphs.KERNEL_NODE,
        "hipGraphNodeTypeMemcpy": device_graphs.COPY_NODE,
        "hipStreamCaptureModeThreadLocal": device_graphs.CAPTURE_THREAD_LOCAL,
        "hipErrorInvalidValue": device_functions.INVALID_VALUE,
        "hipErrorNotSupported": device_functions.NOT_SUPPORTED,
        "hipErrorOutOfMemory": device_functions.OUT_OF_MEMORY,
        "hipErrorNoDevice": device_functions.NO_DEVICE,
        "hipErrorNotFound": device_functions.NOT_FOUND,
        "hipErrorNotReady": device_functions.NOT_READY,
        "hipErrorPeerAccessAlreadyEnabled": device_functions.PEER_ACCESS_ALREADY_ENABLED,
    }
    assert HIP.values(wanted) == wanted
    faults = ("hipErrorIllegalAddress", "hipErrorLaunchTimeOut", "hipErrorAssert", "hipErrorLaunchFailure")
    assert set(HIP.values(faults).values()) <= device_functions.FAULTS
    unloadable = ("hipErrorInvalidImage", "hipErrorNoBinaryForGpu", "hipErrorInvalidKernelFile")
    assert set(HIP.values(unloadable).values()) <= device_functions.UNLOADABLE.keys()


def test_constants_of_cuda() -> None:
    wanted = {
        **cuda_functions.ATTRIBUTES,
        "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES": cuda_functions.FUNCTION_MAX_DYNAMIC_SHARED_BYTES,
        "CU_MEMORYTYPE_HOST": cuda_functions.MEMORY_HOST,
        "CU_MEMORYTYPE_DEVICE": cuda_functions.MEMORY_DEVICE,
        "CU_STREAM_NON_BLOCKING": 1,
        "CU_MEMHOSTALLOC_PORTABLE": 1,
        "CU_EVENT_DISABLE_TIMING": 2,
        "CU_MEMORYTYPE_UNIFIED": cuda_functions.MEMORY_UNIFIED,
        "CU_GRAPH_NODE_TYPE_KERNEL": device_graphs.KERNEL_NODE,
        "CU_GRAPH_NODE_TYPE_MEMCPY": device_graphs.COPY_NODE,
        "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": device_graphs.CAPTURE_THREAD_LOCAL,
        "CUDA_ERROR_INVALID_VALUE": device_functions.INVALID_VALUE,
        "CUDA_ERROR_LOSSY_QUERY": device_functions.LOSSY_QUERY,
        "CUDA_ERROR_NOT_SUPPORTED": device_functions.NOT_SUPPORTED,
        "CUDA_ERROR_OUT_OF_MEMORY": device_functions.OUT_OF_MEMORY,
        "CUDA_ERROR_NO_DEVICE": device_functions.NO_DEVICE,
        "CUDA_ERROR_NOT_FOUND": device_functions.NOT_FOUND,
        "CUDA_ERROR_NOT_READY": device_functions.NOT_READY,
        "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED": device_functions.PEER_ACCESS_ALREADY_ENABLED,
    }
    assert CUDA.values(wanted) == wanted
    faults = (
        *("CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_TIMEOUT", "CUDA_ERROR_ASSERT"),
        *("CUDA_ERROR_HARDWARE_STACK_ERROR", "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_MISALIGNED_ADDRESS"),
        *("CUDA_ERROR_INVALID_ADDRESS_SPACE", "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_LAUNCH_FAILED"),
    )
    assert set(CUDA.values(faults).values()) == device_functions.FAULTS
    unloadable = (
        *("CUDA_ERROR_INVALID_IMAGE", "CUDA_ERROR_NO_BINARY_FOR_GPU"),
        *("CUDA_ERROR_INVALID_PTX", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
    )
    assert set(CUDA.values(unloadable).values()) == device_functions.UNLOADABLE.keys()


def test_layouts_of_cuda_against_nvidias_python_bindings() -> None:
    """A second opinion that no compiler of ours had a part in: set a field there, see where a byte changes."""
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for name, type_ in (("CUDA_KERNEL_NODE_PARAMS_v2", cuda_functions.KernelNodeParams),):
        theirs = getattr(driver, name)()
        checked = 0
        for field, ctype, *_ in type_._fields_:
            if kind_of(ctype)[0] != "integer":
                continue
            setattr(theirs, field, 0x01020304)
            raw = ctypes.string_at(theirs.getPtr(), ctypes.sizeof(type_))
            assert raw.find((0x01020304).to_bytes(4, "little")) == getattr(type_, field).offset, field
            setattr(theirs, field, 0)
            checked += 1
        assert checked == 7
    copy = driver.CUDA_MEMCPY3D_v2()
    for field in ("srcXInBytes", "srcPitch", "dstXInBytes", "dstDevice", "dstHeight", "WidthInBytes", "Depth"):
        setattr(copy, field, 0x01020304)
        raw = ctypes.string_at(copy.getPtr(), ctypes.sizeof(cuda_functions.Memcpy3D))
        assert raw.find((0x01020304).to_bytes(4, "little")) == getattr(cuda_functions.Memcpy3D, field).offset, field
        setattr(copy, field, 0)
