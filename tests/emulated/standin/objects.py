"""What handles of a stand-in refer to: streams, events, modules, kernels, graphs. Neither HIP's nor CUDA's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tests.emulated.cdna import DeviceMemory

INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALISED, NO_DEVICE, INVALID_DEVICE = 1, 2, 3, 100, 101
INVALID_IMAGE, INVALID_CONTEXT, NO_BINARY_FOR_GPU, INVALID_HANDLE, NOT_FOUND = 200, 201, 209, 400, 500
NOT_READY, ILLEGAL_ADDRESS, PEER_ALREADY_ENABLED, LAUNCH_FAILURE, UNKNOWN = 600, 700, 704, 719, 999
"""Error codes that HIP and CUDA number alike."""

Dimensions = tuple[int, int, int]


class RefusedError(Exception):
    """What a call returns instead of success."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{reason} ({code})")


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """What a device says of itself; `arch` as the vendor's library spells it."""

    name: str
    arch: str
    memory_bytes: int
    compute_units: int
    warp_size: int
    shared_bytes: int
    l2_bytes: int


@dataclass(frozen=True, slots=True)
class KernelArgument:
    """One argument in the metadata of a code object."""

    offset: int
    size: int
    pointer: bool


class Kernel(Protocol):
    """A kernel of a code object."""

    @property
    def arguments(self) -> Sequence[KernelArgument]:
        """As the metadata lists them."""

    @property
    def argument_bytes(self) -> int:
        """Size of the argument buffer."""

    @property
    def max_threads(self) -> int:
        """The block that it was compiled for."""

    def run(self, memory: DeviceMemory, arguments: bytes, grid: Dimensions, shared_bytes: int) -> None:
        """Runs it to its end."""


@dataclass(eq=False)
class Stream:
    """Operations that happen in order, once somebody waits."""

    device: Device
    pending: deque[Callable[[], None]] = field(default_factory=deque)


@dataclass(eq=False)
class Device:
    """One device; `fault` is what every later call returns, once a kernel has crashed."""

    ordinal: int
    model: DeviceModel
    memory: DeviceMemory
    streams: list[Stream] = field(default_factory=list)
    peers: set[int] = field(default_factory=set)
    fault: RefusedError | None = None

    @property
    def null_stream(self) -> Stream:
        """The stream that handle 0 names."""
        return self.streams[0]


@dataclass(eq=False)
class Event:
    """A point in a stream: `wanted` is its last record, `happened` the last one that came to pass."""

    timing: bool
    stream: Stream | None = None
    wanted: int = 0
    happened: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class Module:
    """A code object on a device, and where its caller has it: drivers may go on reading there."""

    device: Device
    kernels: Mapping[str, Kernel]
    address: int
    image: bytes
    loaded: bool = True


@dataclass(eq=False)
class Function:
    """A kernel of a module, and the dynamic shared memory that it may be launched with."""

    module: Module
    kernel: Kernel
    shared_limit: int


@dataclass(eq=False)
class Node:
    """A node of a graph: what it does on a device, after which other nodes."""

    run: Callable[[Device], None]
    after: list[Node]


@dataclass(eq=False)
class Graph:
    """Nodes, in the order in which they were added."""

    nodes: list[Node] = field(default_factory=list)


@dataclass(eq=False)
class ExecutableGraph:
    """What an instantiated graph does, in order."""

    nodes: list[Node]
