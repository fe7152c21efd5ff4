"""Generates a driver library from a vendor's headers, and lets Python serve its calls."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.emulated.standin.headers import HIP, LETTERS, Headers

PARAMETERS = "parameters.json"
_UNSERVED = 801  # hipErrorNotSupported, CUDA_ERROR_NOT_SUPPORTED

_DISPATCH = """
#include <stdint.h>
typedef int64_t (*serve_t)(const char *name, void **arguments);
static serve_t serve;
void standin_serve(serve_t function) { serve = function; }
"""

_HIP_HELPERS = """
#include <string.h>
const char *hipGetErrorName(hipError_t code) { switch (code) { %s default: return "hipErrorUnknown"; } }
void standin_properties(hipDeviceProp_t *out, const char *name, const char *arch, const uint64_t *numbers) {
    memset(out, 0, sizeof *out);
    strcpy(out->name, name);
    strcpy(out->gcnArchName, arch);
    out->totalGlobalMem = numbers[0];
    out->multiProcessorCount = numbers[1];
    out->warpSize = numbers[2];
    out->sharedMemPerBlock = numbers[3];
    out->l2CacheSize = numbers[4];
}
void standin_kernel_node(const hipKernelNodeParams *in, uint64_t *out) {
    uint64_t fields[] = {(uint64_t)in->func, in->gridDim.x, in->gridDim.y, in->gridDim.z, in->blockDim.x,
        in->blockDim.y, in->blockDim.z, in->sharedMemBytes, (uint64_t)in->kernelParams, (uint64_t)in->extra};
    memcpy(out, fields, sizeof fields);
}
void standin_put_kernel_node(hipKernelNodeParams *out, const uint64_t *in) {
    memset(out, 0, sizeof *out);
    out->func = (void *)in[0];
    out->gridDim.x = in[1], out->gridDim.y = in[2], out->gridDim.z = in[3];
    out->blockDim.x = in[4], out->blockDim.y = in[5], out->blockDim.z = in[6];
    out->sharedMemBytes = in[7];
    out->kernelParams = (void **)in[8];
}
int standin_put_attribute(hipLaunchAttributeValue *out, hipLaunchAttributeID which, int priority) {
    switch (which) {
    case hipLaunchAttributeAccessPolicyWindow: memset(out, 0, sizeof out->accessPolicyWindow); return 0;
    case hipLaunchAttributeCooperative: out->cooperative = 0; return 0;
    case hipLaunchAttributePriority: out->priority = priority; return 0;
    default: return hipErrorInvalidValue;
    }
}
"""

_CUDA_HELPERS = """
#include <string.h>
CUresult cuGetErrorName(CUresult code, const char **out) {
    switch (code) { %s default: return CUDA_ERROR_INVALID_VALUE; }
}
void standin_kernel_node(const CUDA_KERNEL_NODE_PARAMS_v2 *in, uint64_t *out) {
    uint64_t fields[] = {(uint64_t)in->func, in->gridDimX, in->gridDimY, in->gridDimZ, in->blockDimX, in->blockDimY,
        in->blockDimZ, in->sharedMemBytes, (uint64_t)in->kernelParams, (uint64_t)in->extra};
    memcpy(out, fields, sizeof fields);
}
void standin_put_kernel_node(CUDA_KERNEL_NODE_PARAMS_v2 *out, const uint64_t *in) {
    memset(out, 0, sizeof *out);
    out->func = (CUfunction)in[0];
    out->gridDimX = in[1], out->gridDimY = in[2], out->gridDimZ = in[3];
    out->blockDimX = in[4], out->blockDimY = in[5], out->blockDimZ = in[6];
    out->sharedMemBytes = in[7];
    out->kernelParams = (void **)in[8];
}
int standin_put_attribute(CUlaunchAttributeValue *out, CUlaunchAttributeID which, int priority) {
    switch (which) {
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW: memset(out, 0, sizeof out->accessPolicyWindow); return 0;
    case CU_LAUNCH_ATTRIBUTE_COOPERATIVE: out->cooperative = 0; return 0;
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION: memset(&out->clusterDim, 0, sizeof out->clusterDim); return 0;
    case CU_LAUNCH_ATTRIBUTE_PRIORITY: out->priority = priority; return 0;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
}
void standin_put_copy_node(CUDA_MEMCPY3D_v2 *out, const uint64_t *in) {
    memset(out, 0, sizeof *out);
    out->dstMemoryType = CU_MEMORYTYPE_DEVICE, out->dstDevice = in[0];
    out->srcMemoryType = CU_MEMORYTYPE_HOST, out->srcHost = (void *)in[1];
    out->WidthInBytes = in[2], out->Height = 1, out->Depth = 1;
}
int standin_shared_attribute(void) { return CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES; }
int standin_attribute(CUdevice_attribute which, const int *numbers) {
    switch (which) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return numbers[0];
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return numbers[1];
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return numbers[2];
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return numbers[3];
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return numbers[4];
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return numbers[5];
    default: return -1;
    }
}
void standin_copy_node(const CUDA_MEMCPY3D_v2 *in, uint64_t *out) {
    uint64_t plain = in->srcMemoryType == CU_MEMORYTYPE_HOST && in->dstMemoryType == CU_MEMORYTYPE_DEVICE
        && in->Height == 1 && in->Depth == 1 && !in->srcXInBytes && !in->srcY && !in->srcZ && !in->dstXInBytes
        && !in->dstY && !in->dstZ && !in->srcLOD && !in->dstLOD && !in->reserved0 && !in->reserved1;
    uint64_t fields[] = {in->dstDevice, (uint64_t)in->srcHost, in->WidthInBytes, plain};
    memcpy(out, fields, sizeof fields);
}
"""


def source_of(headers: Headers) -> str:
    """Returns the C source of a library with every function of the headers that returns an error code."""
    if headers is HIP:
        result, unready = "hipError_t", "hipErrorNotInitialized"
        names = headers.enumerators(holding="hipErrorOutOfMemory")
        helpers = _HIP_HELPERS % " ".join(f'case {name}: return "{name}";' for name in distinct(headers, names))
    else:
        result, unready = "CUresult", "CUDA_ERROR_NOT_INITIALIZED"
        names = headers.enumerators(holding="CUDA_ERROR_OUT_OF_MEMORY")
        cases = (f'case {name}: *out = "{name}"; return CUDA_SUCCESS;' for name in distinct(headers, names))
        helpers = _CUDA_HELPERS % " ".join(cases)
    functions = []
    for name, prototype in headers.prototypes.items():
        if prototype.result != result or name == "cuGetErrorName":
            continue
        parameters = ", ".join(f"__typeof__({type_}) a{i}" for i, type_ in enumerate(prototype.parameters))
        addresses = ", ".join(f"(void *)&a{i}" for i in range(len(prototype.parameters)))
        functions.append(
            f"{result} {name}({parameters or 'void'}) {{ void *arguments[] = {{{addresses or '0'}}};"
            f' return serve ? ({result})serve("{name}", arguments) : {unready}; }}'
        )
    return _DISPATCH + "\n".join(functions) + helpers


def distinct(headers: Headers, names: list[str]) -> list[str]:
    """Returns the first enumerator of each value."""
    values = headers.values(names)
    return [name for i, name in enumerate(names) if values[name] not in {values[other] for other in names[:i]}]


def build_library(headers: Headers, folder: Path) -> None:
    """Compiles the library into `folder`, with the parameters of its functions as struct letters beside it."""
    # Without a soname of its own, which a later search for the real library would find loaded.
    headers.compile(folder, source_of(headers), headers.soname, "-O1", "-shared", "-fPIC")
    letters = {name: prototype.letters() for name, prototype in headers.prototypes.items()}
    (folder / PARAMETERS).write_text(json.dumps(letters), encoding="utf-8")


class StandIn:
    """A generated library whose calls go to methods of Python objects.

    Args:
        path: the library, as `build_library` left it.
        handlers: functions by their C name; each gets the arguments as integers and returns an error code.
        complain: told of calls that nobody serves.
    """

    def __init__(
        self, path: Path, handlers: Mapping[str, Callable[..., int]], complain: Callable[[str], object]
    ) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.calls: list[str] = []
        self._complain = complain
        letters: dict[str, str] = json.loads((path.parent / PARAMETERS).read_text(encoding="utf-8"))
        self._decoders = {name: ([LETTERS[x] for x in letters[name]], serve) for name, serve in handlers.items()}
        kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p))
        self._callback = kind(self._serve)
        self._kind = kind

    def _serve(self, name: bytes, arguments: Any) -> int:
        called = name.decode()
        self.calls.append(called)
        if called not in self._decoders:
            self._complain(f"{called} is not served")
            return _UNSERVED
        types, handler = self._decoders[called]
        return handler(*(_value(type_, arguments[i]) for i, type_ in enumerate(types)))

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serves calls as long as the context lasts."""
        self.library.standin_serve(self._callback)
        try:
            yield
        finally:
            self.library.standin_serve(self._kind(0))


def _value(type_: Any, address: int) -> int:
    """Returns a parameter; null pointers are None to ctypes."""
    return type_.from_address(address).value or 0
