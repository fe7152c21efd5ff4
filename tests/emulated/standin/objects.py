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
ILLEGAL_STATE, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_WRONG_THREAD = 401, 900, 901, 908
"""Error codes that HIP and CUDA number alike."""

LOSSY_QUERY = 402
"""CUDA's alone."""

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

    def run(
        self,
        memory: DeviceMemory,
        arguments: bytes,
        grid: Dimensions,
        shared_bytes: int,
        on_poll: Callable[[], None],
    ) -> None:
        """Runs it to its end; `on_poll` is called while it waits for another device."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a kernel node says of itself; `arguments` in the order of the metadata."""

    function: int
    grid: Dimensions
    block: Dimensions
    shared_bytes: int
    arguments: tuple[bytes, ...]


@dataclass(eq=False)
class Node:
    """A node of a graph: what it does on a device, after which other nodes.

    Attributes:
        launch: of a kernel node.
        copy: destination, source and size of a copy node.
        priority: of a kernel node.
        values: memory that was handed out to describe the node.
    """

    run: Callable[[Device], None]
    launch: Launch | None = None
    copy: Dimensions | None = None
    after: list[Node] = field(default_factory=list)
    handle: int = 0
    priority: int = 0
    values: list[object] = field(default_factory=list)


@dataclass(eq=False)
class Graph:
    """Nodes, in the order in which they were added; `edge_data` where an edge is another than a plain one."""

    nodes: list[Node] = field(default_factory=list)
    edge_data: bool = False


@dataclass(eq=False)
class Capture:
    """What a stream makes of its operations instead of doing them."""

    thread: int
    graph: Graph = field(default_factory=Graph)
    valid: bool = True


@dataclass(eq=False)
class Stream:
    """Operations that happen in order, once somebody waits."""

    device: Device
    pending: deque[Callable[[], None]] = field(default_factory=deque)
    capture: Capture | None = None

    def give(self, operation: Callable[[], None]) -> None:
        """Takes an operation that the stand-in cannot capture."""
        self.refuse_in_capture("this operation is not captured")
        self.pending.append(operation)

    def give_node(self, node: Node, new: Callable[[Node], int]) -> None:
        """Takes an operation that may be captured; `new` makes handles."""
        if self.capture is None:
            self.pending.append(lambda: node.run(self.device))
            return
        nodes = self.capture.graph.nodes
        node.after = nodes[-1:]
        node.handle = new(node)
        nodes.append(node)

    def refuse_in_capture(self, reason: str) -> None:
        """Refuses what a stream that is being captured must not be asked for, and spoils the capture."""
        if self.capture is not None:
            self.capture.valid = False
            raise RefusedError(CAPTURE_UNSUPPORTED, reason)


@dataclass(eq=False)
class Device:
    """One device.

    Attributes:
        fault: what every later call returns, once a kernel has crashed.
        stalled: nothing more happens on its streams for now.
    """

    ordinal: int
    model: DeviceModel
    memory: DeviceMemory
    streams: list[Stream] = field(default_factory=list)
    peers: set[int] = field(default_factory=set)
    fault: RefusedError | None = None
    stalled: bool = False

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
class ExecutableGraph:
    """What an instantiated graph does, in order."""

    nodes: list[Node]
