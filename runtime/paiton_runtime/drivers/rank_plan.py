"""A plan on one rank, as the executors of the GPU driver give it to the driver library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from paiton_artifacts.kernel_table import Kernel
from paiton_artifacts.plan import Plan
from paiton_artifacts.record import dataclass
from paiton_runtime.device_program import DeviceProgram
from paiton_runtime.drivers.device_launch import HostCopy
from paiton_runtime.drivers.device_library import DeviceLibrary


@dataclass(frozen=True, slots=True)
class RankPlan:
    """A plan on one rank, in the two forms that executors give to the driver library.

    Attributes:
        plan: what was built.
        rank: which of them.
        library: the backend's; the rank's device is the calling thread's.
        stream: the rank's.
        functions: the handle of each kernel on the rank's device.
        kernels: of the plan's target, by symbol.
        copies: what precedes the kernels.
        program: the kernels.
        launch: gives all of it to the stream, as the executor "launch" does.
    """

    plan: Plan
    rank: int
    library: DeviceLibrary
    stream: int
    functions: Mapping[str, int]
    kernels: Mapping[str, Kernel]
    copies: Sequence[HostCopy]
    program: DeviceProgram
    launch: Callable[[], None]
