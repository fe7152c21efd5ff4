"""Graphs of a driver library before they are executable: captured from a stream, and read back node by node.

Nothing here is used by a boot, which makes its graphs from plans and never captures (see `paiton_runtime.capture`).
"""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from paiton_artifacts.record import dataclass
from paiton_runtime.drivers.device_functions import INVALID_VALUE, NOT_SUPPORTED, FunctionTable
from paiton_runtime.drivers.device_launch import HostCopy

KERNEL_NODE, COPY_NODE = 0, 1
"""Types of nodes; HIP and CUDA number them alike."""

CAPTURE_THREAD_LOCAL = 1
"""What other threads do, such as those of other ranks, does not disturb the capture."""

ATTRIBUTE_BYTES = 64
"""Size of the union that holds the value of any attribute of a kernel node."""


@dataclass(frozen=True, slots=True)
class KernelNode:
    """What a driver says about a kernel node.

    Attributes:
        function: the handle of the kernel.
        grid: blocks along x, y and z.
        block: threads along x, y and z.
        shared_bytes: dynamic shared memory of a block.
        pointers: address of the array of pointers to the arguments, both the node's own; 0 where it has none.
    """

    function: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    pointers: int


class GraphLibrary(FunctionTable):
    """The part of a driver library that captures streams and reads graphs."""

    node_attributes: ClassVar[Mapping[str, tuple[int, int]]]
    """The attributes that kernel nodes may have, by their names in messages: number, and bytes of the value."""

    @contextmanager
    def captured(self, stream: int, work: Callable[[], None]) -> Iterator[int]:
        """Yields the graph of what `work` gives to a stream, of which nothing runs; destroys it at the end.

        Only the calling thread may use the stream meanwhile.
        """
        graph = ctypes.c_void_p()
        self._call("begin_capture", "beginning to capture a stream", stream, CAPTURE_THREAD_LOCAL)
        try:
            work()
        except BaseException:
            # The stream has to leave its capture, which may be invalid by now: the error that counts is `work`'s.
            self._functions["end_capture"](stream, ctypes.byref(graph))
            if graph.value:
                self._functions["destroy_graph"](graph)
            raise
        self._call("end_capture", "ending the capture of a stream", stream, ctypes.byref(graph))
        try:
            yield graph.value or 0
        finally:
            self._call("destroy_graph", "destroying a captured graph", graph)

    def nodes(self, graph: int) -> list[int]:
        """Returns the nodes of a graph, in no particular order."""
        count, what = ctypes.c_size_t(), "listing the nodes of a graph"
        self._call("graph_nodes", what, graph, None, ctypes.byref(count))
        if not count.value:
            return []
        nodes = (ctypes.c_void_p * count.value)()
        self._call("graph_nodes", what, graph, nodes, ctypes.byref(count))
        return [node or 0 for node in nodes[: count.value]]

    def edges(self, graph: int) -> list[tuple[int, int]]:
        """Returns the edges of a graph, each from the node that comes first, in no particular order.

        Raises:
            DriverError: among others, with code LOSSY_QUERY, an edge does not wait for the whole of a node.
        """
        count, what = ctypes.c_size_t(), "listing the edges of a graph"
        self._call("graph_edges", what, graph, None, None, ctypes.byref(count))
        if not count.value:
            return []
        before, after = (ctypes.c_void_p * count.value)(), (ctypes.c_void_p * count.value)()
        self._call("graph_edges", what, graph, before, after, ctypes.byref(count))
        pairs = zip(before[: count.value], after[: count.value], strict=True)
        return [(first or 0, second or 0) for first, second in pairs]

    def node_type(self, node: int) -> int:
        """Returns the type of a node, such as KERNEL_NODE."""
        type_ = ctypes.c_int()
        self._call("node_type", "reading the type of a node", node, ctypes.byref(type_))
        return type_.value

    @abstractmethod
    def kernel_node(self, node: int) -> KernelNode:
        """Returns the parameters of a kernel node."""

    @abstractmethod
    def copy_node(self, node: int) -> HostCopy | None:
        """Returns what a node copies from where to where; None where the driver has no way to tell."""

    def attributes(self, node: int) -> dict[str, bytes | None]:
        """Returns the attributes of a kernel node by name; None for those that the driver does not offer."""
        found: dict[str, bytes | None] = {}
        for name, (number, size) in self.node_attributes.items():
            value = ctypes.create_string_buffer(ATTRIBUTE_BYTES)
            code = self._functions["node_attribute"](node, number, value)
            if code not in {INVALID_VALUE, NOT_SUPPORTED}:
                self.check(code, f"reading attribute {number} of a node ({self.functions['node_attribute'][0]})")
            found[name] = None if code else value.raw[:size]
        return found
