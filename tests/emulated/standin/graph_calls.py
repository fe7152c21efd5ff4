"""Calls that make, run, capture and read graphs, and mean the same in HIP and CUDA."""

from __future__ import annotations

import ctypes
from typing import Any

from tests.emulated.standin.machine import Machine
from tests.emulated.standin.objects import INVALID_VALUE, LOSSY_QUERY, ExecutableGraph, Graph, Node, RefusedError

_CAPTURE_THREAD_LOCAL = 1
_POINTER_BYTES = 8


def put(address: int, value: float, type_: Any = ctypes.c_uint64) -> None:
    """Writes to an output parameter."""
    if address == 0:
        raise RefusedError(INVALID_VALUE, "an output parameter is null")
    type_.from_address(address).value = value


class GraphCalls:
    """Handlers over a machine (see `calls.Calls`)."""

    machine: Machine
    library: ctypes.CDLL

    def create_graph(self, out: int, _flags: int) -> None:
        """Creates a graph."""
        put(out, self.machine.new(Graph()))

    def add_kernel(self, out: int, graph: int, dependencies: int, count: int, parameters: int) -> None:
        """Adds a kernel node."""
        fields = (ctypes.c_uint64 * 10)()
        self.library.standin_kernel_node(ctypes.c_void_p(parameters), fields)
        function, x, y, z, block_x, block_y, block_z, shared, pointers, extra = fields
        node = self.machine.prepare(function, (x, y, z), (block_x, block_y, block_z), shared, pointers, extra)
        put(out, self.machine.add_node(graph, dependencies, count, node))

    def instantiate_graph(self, out: int, graph: int, _flags: int) -> None:
        """Makes a graph executable."""
        put(out, self.machine.instantiate(graph))

    def destroy_graph(self, graph: int) -> None:
        """Destroys a graph."""
        self.machine.destroy_graph(graph)

    def upload_graph(self, graph: int, stream: int) -> None:
        """Only checks its handles."""
        self.machine.get(graph, ExecutableGraph)
        self.machine.stream(stream)

    def launch_graph(self, graph: int, stream: int) -> None:
        """Launches a graph."""
        self.machine.launch_graph(self.machine.get(graph, ExecutableGraph), self.machine.stream(stream))

    def destroy_executable_graph(self, graph: int) -> None:
        """Destroys an executable graph once no stream has it to do any more."""
        for device in self.machine.devices:
            if device.fault is None:
                self.machine.synchronise(device)
        self.machine.delete(graph, ExecutableGraph)

    def begin_capture(self, stream: int, mode: int) -> None:
        """Begins to capture a stream."""
        if mode != _CAPTURE_THREAD_LOCAL:
            raise RefusedError(INVALID_VALUE, f"capture mode {mode} is not served")
        self.machine.begin_capture(self.machine.stream(stream))

    def end_capture(self, stream: int, out: int) -> None:
        """Ends the capture of a stream and writes its graph."""
        put(out, self.machine.end_capture(self.machine.stream(stream)))

    def graph_nodes(self, graph: int, nodes: int, count: int) -> None:
        """Writes the nodes of a graph, the last one first: no order is promised."""
        found = [node.handle for node in reversed(self.machine.get(graph, Graph).nodes)]
        _put_list(count, (nodes, found))

    def graph_edges(self, graph: int, before: int, after: int, count: int) -> None:
        """Writes the edges of a graph, the last one first."""
        found = self.machine.get(graph, Graph)
        if found.edge_data:
            raise RefusedError(LOSSY_QUERY, "an edge carries data that this call cannot tell")
        edges = [(first.handle, node.handle) for node in reversed(found.nodes) for first in node.after]
        _put_list(count, (before, [first for first, _ in edges]), (after, [second for _, second in edges]))

    def node_type(self, node: int, out: int) -> None:
        """Writes whether a node launches a kernel or copies."""
        put(out, 0 if self.machine.get(node, Node).launch else 1, ctypes.c_int)

    def kernel_node(self, node: int, out: int) -> None:
        """Writes the parameters of a kernel node, whose arguments stay the node's."""
        found = self.machine.get(node, Node)
        launch = found.launch
        if launch is None:
            raise RefusedError(INVALID_VALUE, "the node launches no kernel")
        values = [ctypes.create_string_buffer(value, len(value)) for value in launch.arguments]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        found.values += [*values, pointers]
        numbers = (launch.function, *launch.grid, *launch.block, launch.shared_bytes, ctypes.addressof(pointers))
        self.library.standin_put_kernel_node(ctypes.c_void_p(out), (ctypes.c_uint64 * len(numbers))(*numbers))

    def node_attribute(self, node: int, which: int, out: int) -> int:
        """Writes an attribute of a kernel node, or refuses one that it does not know."""
        found = self.machine.get(node, Node)
        code: int = self.library.standin_put_attribute(ctypes.c_void_p(out), which, found.priority)
        return code


def _put_list(count: int, *lists: tuple[int, list[int]]) -> None:
    """Writes how many handles there are, or as many handles as there is room for; a list is an address and handles."""
    (first, handles), *_ = lists
    if first == 0:
        put(count, len(handles))
        return
    room = ctypes.c_uint64.from_address(count).value
    for address, values in lists:
        for place, value in enumerate([*values, *[0] * room][:room]):
            put(address + _POINTER_BYTES * place, value)
    put(count, min(room, len(handles)))
