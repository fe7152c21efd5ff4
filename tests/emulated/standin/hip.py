"""A machine with AMD's devices, behind libamdhip64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.emulated.standin.calls import Calls, Handler
from tests.emulated.standin.graph_calls import put
from tests.emulated.standin.hip_code import HipCode
from tests.emulated.standin.library import StandIn
from tests.emulated.standin.machine import Machine
from tests.emulated.standin.objects import INVALID_VALUE, DeviceModel, RefusedError

MIB, GIB = 1 << 20, 1 << 30

MI300X = DeviceModel("AMD Instinct MI300X", "gfx942:sramecc+:xnack-", 192 * GIB, 304, 64, 64 << 10, 4 * MIB)
MI355X = DeviceModel("AMD Instinct MI355X", "gfx950:sramecc+:xnack-", 288 * GIB, 256, 64, 160 << 10, 4 * MIB)

VERSION = 7_02_54321
"""What the stand-in says that it is: HIP 7.2.54321."""

_HOST_TO_DEVICE = 1

_COMMON = (
    *("hipInit", "hipGetDeviceCount", "hipMemGetInfo", "hipDeviceSynchronize"),
    *("hipStreamCreateWithFlags", "hipStreamDestroy", "hipStreamSynchronize", "hipStreamWaitEvent"),
    *("hipEventCreateWithFlags", "hipEventDestroy", "hipEventRecord", "hipEventSynchronize"),
    *("hipEventQuery", "hipEventElapsedTime", "hipFree", "hipHostMalloc", "hipHostFree"),
    *("hipMemcpyHtoDAsync", "hipMemcpyDtoHAsync", "hipMemcpyDtoDAsync", "hipMemsetAsync"),
    *("hipModuleLoadData", "hipModuleUnload", "hipModuleGetFunction", "hipModuleLaunchKernel"),
    *("hipGraphCreate", "hipGraphAddKernelNode", "hipGraphInstantiateWithFlags", "hipGraphDestroy"),
    *("hipGraphUpload", "hipGraphLaunch", "hipGraphExecDestroy", "hipDeviceCanAccessPeer"),
    *("hipStreamBeginCapture", "hipStreamEndCapture", "hipGraphGetNodes", "hipGraphGetEdges"),
    *("hipGraphNodeGetType", "hipGraphKernelNodeGetParams", "hipGraphKernelNodeGetAttribute"),
    "hipModuleOccupancyMaxActiveBlocksPerMultiprocessor",
)


class HipCalls(Calls):
    """What HIP does in its own way."""

    visibility = "HIP_VISIBLE_DEVICES"

    def table(self) -> dict[str, Handler]:
        """Returns all handlers by C name."""
        return self.common(_COMMON) | {
            "hipGetDevicePropertiesR0600": self.properties,
            "hipRuntimeGetVersion": self.version,
            "hipSetDevice": self.set_device,
            "hipExtMallocWithFlags": self.allocate,
            "hipGraphAddMemcpyNode1D": self.add_copy,
            "hipDeviceEnablePeerAccess": self.enable_peer,
        }

    def properties(self, out: int, ordinal: int) -> None:
        """Fills hipDeviceProp_t in."""
        model = self.machine.device(ordinal).model
        numbers = (model.memory_bytes, model.compute_units, model.warp_size, model.shared_bytes, model.l2_bytes)
        words = model.name.encode(), model.arch.encode()
        self.library.standin_properties(ctypes.c_void_p(out), *words, (ctypes.c_uint64 * 5)(*numbers))

    def version(self, out: int) -> None:
        """Writes the version of the runtime."""
        put(out, VERSION, ctypes.c_int)

    def set_device(self, ordinal: int) -> None:
        """Chooses the thread's device."""
        self.machine.set_device(ordinal)

    def allocate(self, out: int, size: int, _flags: int) -> None:
        """Allocates device memory; nothing is cached here."""
        put(out, self.machine.allocate(size))

    def add_copy(self, out: int, graph: int, dependencies: int, count: int, *copy: int) -> None:
        """Adds a copy to the device; `copy` is destination, source, size and direction."""
        *place, kind = copy
        if kind != _HOST_TO_DEVICE:
            raise RefusedError(INVALID_VALUE, f"a copy of kind {kind} is not served")
        node = self.machine.prepare_copy(*place)
        put(out, self.machine.add_node(graph, dependencies, count, node))

    def enable_peer(self, peer: int, _flags: int) -> None:
        """Lets kernels of the thread's device reach a peer."""
        self.machine.enable_peer(self.machine.current, self.machine.device(peer))


class HipStandIn:
    """A stand-in libamdhip64 with devices.

    Args:
        path: the library, as `build_library` left it.
        models: one per device.

    Attributes:
        code: where hsacos are registered with their assembly before they are loaded.
        machine: the devices.
        library: the library, with a list of the calls made.
    """

    def __init__(self, path: Path, models: Sequence[DeviceModel] = (MI300X,)) -> None:
        self.code = HipCode()
        self.machine = Machine(models, self.code.load)
        calls = HipCalls(self.machine, ctypes.CDLL(str(path)))
        self.library = StandIn(path, calls.guarded(calls.table()), self.machine.refusals.append)

    @contextmanager
    def serving(self) -> Iterator[HipStandIn]:
        """Serves calls as long as the context lasts."""
        try:
            with self.library.serving():
                yield self
        finally:
            self.machine.close()
