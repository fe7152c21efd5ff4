"""A machine with NVIDIA's devices, behind libcuda. Nothing runs their code: launches are recorded."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paiton_artifacts.errors import CompilerError
from paiton_kernels.gpu.code_object import read_code_object
from tests.emulated.cdna import DeviceMemory
from tests.emulated.standin.calls import Calls, Handler
from tests.emulated.standin.graph_calls import put
from tests.emulated.standin.library import StandIn
from tests.emulated.standin.machine import Machine
from tests.emulated.standin.objects import (
    INVALID_IMAGE,
    INVALID_VALUE,
    NO_BINARY_FOR_GPU,
    Device,
    DeviceModel,
    Dimensions,
    Function,
    Kernel,
    KernelArgument,
    Node,
    RefusedError,
)

MIB = 1 << 20

H200 = DeviceModel("NVIDIA H200", "90", 150_754_820_096, 132, 32, 227 << 10, 50 * MIB)

VERSION = 13010
"""What the stand-in says that it is: CUDA 13.1."""

_PLAIN_SHARED_BYTES = 48 << 10

_COMMON = (
    *("cuInit", "cuDeviceGetCount", "cuMemGetInfo_v2", "cuCtxSynchronize"),
    *("cuStreamCreate", "cuStreamDestroy_v2", "cuStreamSynchronize", "cuStreamWaitEvent"),
    *("cuEventCreate", "cuEventDestroy_v2", "cuEventRecord", "cuEventSynchronize"),
    *("cuEventQuery", "cuEventElapsedTime", "cuMemFree_v2", "cuMemHostAlloc", "cuMemFreeHost"),
    *("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoDAsync_v2", "cuMemsetD8Async"),
    *("cuModuleLoadData", "cuModuleUnload", "cuModuleGetFunction", "cuLaunchKernel"),
    *("cuGraphCreate", "cuGraphAddKernelNode_v2", "cuGraphInstantiateWithFlags", "cuGraphDestroy"),
    *("cuGraphUpload", "cuGraphLaunch", "cuGraphExecDestroy", "cuDeviceCanAccessPeer"),
    *("cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphGetNodes", "cuGraphGetEdges"),
    *("cuGraphNodeGetType", "cuGraphKernelNodeGetParams_v2", "cuGraphKernelNodeGetAttribute"),
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
)


@dataclass(eq=False)
class Context:
    """A device's primary context, and how often it was retained."""

    device: Device
    handle: int = 0
    retained: int = 0


@dataclass(frozen=True, slots=True)
class RecordedLaunch:
    """A launch that a real device would have run."""

    device: int
    symbol: str
    grid: Dimensions
    shared_bytes: int
    arguments: bytes


@dataclass(frozen=True, slots=True)
class CudaKernel:
    """A kernel of a cubin."""

    symbol: str
    device: int
    arguments: tuple[KernelArgument, ...]
    argument_bytes: int
    max_threads: int
    launches: list[RecordedLaunch]

    def run(
        self,
        _memory: DeviceMemory,
        arguments: bytes,
        grid: Dimensions,
        shared_bytes: int,
        _on_poll: Callable[[], None],
    ) -> None:
        """Records that it would have run."""
        self.launches.append(RecordedLaunch(self.device, self.symbol, grid, shared_bytes, arguments))


class CudaCalls(Calls):
    """What CUDA does in its own way: contexts, attributes, opting in to shared memory."""

    def __init__(self, machine: Machine, library: ctypes.CDLL) -> None:
        super().__init__(machine, library)
        self._contexts = [Context(device) for device in machine.devices]

    def table(self) -> dict[str, Handler]:
        """Returns all handlers by C name."""
        return self.common(_COMMON) | {
            "cuDriverGetVersion": self.version,
            "cuDeviceGet": self.get_device,
            "cuDeviceGetName": self.name,
            "cuDeviceTotalMem_v2": self.total_memory,
            "cuDeviceGetAttribute": self.attribute,
            "cuDevicePrimaryCtxRetain": self.retain,
            "cuDevicePrimaryCtxRelease_v2": self.release,
            "cuCtxSetCurrent": self.set_current,
            "cuCtxGetCurrent": self.get_current,
            "cuMemAlloc_v2": self.allocate,
            "cuFuncSetAttribute": self.set_attribute,
            "cuGraphAddMemcpyNode": self.add_copy,
            "cuGraphMemcpyNodeGetParams": self.copy_node,
            "cuCtxEnablePeerAccess": self.enable_peer,
        }

    def version(self, out: int) -> None:
        """Writes the driver's CUDA version."""
        put(out, VERSION, ctypes.c_int)

    def get_device(self, out: int, ordinal: int) -> None:
        """Writes a device's handle, which is its ordinal."""
        put(out, self.machine.device(ordinal).ordinal, ctypes.c_int)

    def name(self, out: int, size: int, device: int) -> None:
        """Writes a device's name."""
        text = self.machine.device(device).model.name.encode()[: size - 1] + b"\0"
        ctypes.memmove(out, text, len(text))

    def total_memory(self, out: int, device: int) -> None:
        """Writes a device's memory."""
        put(out, self.machine.device(device).model.memory_bytes)

    def attribute(self, out: int, which: int, device: int) -> None:
        """Writes an attribute of a device."""
        model = self.machine.device(device).model
        major, minor = divmod(int(model.arch), 10)
        numbers = (model.compute_units, model.warp_size, model.shared_bytes, model.l2_bytes, major, minor)
        value = self.library.standin_attribute(which, (ctypes.c_int * len(numbers))(*numbers))
        if value < 0:
            raise RefusedError(INVALID_VALUE, f"device attribute {which} is not served")
        put(out, value, ctypes.c_int)

    def retain(self, out: int, device: int) -> None:
        """Opens a device's primary context."""
        context = self._contexts[self.machine.device(device).ordinal]
        context.retained += 1
        context.handle = context.handle or self.machine.new(context)
        put(out, context.handle)

    def release(self, device: int) -> None:
        """Closes a primary context that is retained no more."""
        context = self._contexts[self.machine.device(device).ordinal]
        context.retained -= 1
        if context.retained == 0:
            self.machine.delete(context.handle, Context)
            context.handle = 0

    def set_current(self, context: int) -> None:
        """Chooses the thread's context."""
        self.machine.set_device(self.machine.get(context, Context).device.ordinal)

    def get_current(self, out: int) -> None:
        """Writes the thread's context."""
        put(out, self._contexts[self.machine.current.ordinal].handle)

    def allocate(self, out: int, size: int) -> None:
        """Allocates device memory."""
        put(out, self.machine.allocate(size))

    def set_attribute(self, function: int, attribute: int, value: int) -> None:
        """Allows a kernel more shared memory."""
        found = self.machine.get(function, Function)
        limit = found.module.device.model.shared_bytes
        if attribute != self.library.standin_shared_attribute() or not 0 <= value <= limit:
            raise RefusedError(INVALID_VALUE, f"function attribute {attribute} = {value}, of {limit} bytes")
        found.shared_limit = value

    def add_copy(self, out: int, graph: int, dependencies: int, count: int, parameters: int, context: int) -> None:
        """Adds a copy from the host to the device."""
        self.machine.get(context, Context)
        fields = (ctypes.c_uint64 * 4)()
        self.library.standin_copy_node(ctypes.c_void_p(parameters), fields)
        *copy, plain = fields
        if not plain:
            raise RefusedError(INVALID_VALUE, "only plain copies from the host to a device are served")
        put(out, self.machine.add_node(graph, dependencies, count, self.machine.prepare_copy(*copy)))

    def copy_node(self, node: int, out: int) -> None:
        """Writes the parameters of a copy node."""
        copy = self.machine.get(node, Node).copy
        if copy is None:
            raise RefusedError(INVALID_VALUE, "the node copies nothing")
        self.library.standin_put_copy_node(ctypes.c_void_p(out), (ctypes.c_uint64 * 3)(*copy))

    def enable_peer(self, context: int, _flags: int) -> None:
        """Lets kernels of the thread's device reach a peer."""
        self.machine.enable_peer(self.machine.current, self.machine.get(context, Context).device)


class CudaStandIn:
    """A stand-in libcuda with devices.

    Args:
        path: the library, as `build_library` left it.
        models: one per device.

    Attributes:
        machine: the devices.
        library: the library, with a list of the calls made.
        launches: every kernel that came to run.
    """

    def __init__(self, path: Path, models: Sequence[DeviceModel] = (H200,)) -> None:
        self.launches: list[RecordedLaunch] = []
        self.machine = Machine(models, self._load, _PLAIN_SHARED_BYTES, implicit_device=False)
        calls = CudaCalls(self.machine, ctypes.CDLL(str(path)))
        self.library = StandIn(path, calls.guarded(calls.table()), self.machine.refusals.append)

    def _load(self, code: bytes, device: Device) -> Mapping[str, Kernel]:
        try:
            facts = read_code_object(code, "cuda")
        except CompilerError as error:
            raise RefusedError(INVALID_IMAGE, error.message) from error
        arch = int.from_bytes(code[48:50], "little") >> 8 & 0xFF  # e_flags: the SM version in bits 8 to 15
        if str(arch) != device.model.arch:
            raise RefusedError(NO_BINARY_FOR_GPU, f"code for sm_{arch} on sm_{device.model.arch}")
        # A cubin does not say which arguments are pointers.
        arguments = tuple(KernelArgument(arg.offset, arg.size, pointer=False) for arg in facts.args)
        shape = (arguments, facts.args_bytes, facts.max_threads)
        return {facts.symbol: CudaKernel(facts.symbol, device.ordinal, *shape, self.launches)}

    @contextmanager
    def serving(self) -> Iterator[CudaStandIn]:
        """Serves calls as long as the context lasts."""
        try:
            with self.library.serving():
                yield self
        finally:
            self.machine.close()
