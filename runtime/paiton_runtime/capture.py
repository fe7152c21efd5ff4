"""The capture check: what a stream captures of a plan's launches is the graph that is made of the plan explicitly.

A boot makes its graphs from plans and captures nothing. This check asks the driver for a second opinion: the executor
"launch" works into a stream that is being captured, and the captured graph must equal the explicit one node by node, in
the order that its edges give; both must say what the plan says. Nothing runs on the device.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence

from paiton_artifacts.errors import CaptureMismatchError, DriverError, PaitonError
from paiton_artifacts.kernel_table import Kernel
from paiton_artifacts.plan import LaunchFlag
from paiton_artifacts.record import dataclass
from paiton_runtime.drivers.device_functions import LOSSY_QUERY
from paiton_runtime.drivers.device_graphs import COPY_NODE, KERNEL_NODE
from paiton_runtime.drivers.device_launch import HostCopy
from paiton_runtime.drivers.device_rank import DeviceGraph
from paiton_runtime.drivers.gpu import GpuDriver
from paiton_runtime.drivers.rank_plan import RankPlan

Value = str | int | bytes | tuple[int, ...] | None
Facts = Mapping[str, Value]
"""What is known of a node, by the name that messages give it, the most telling first. Bytes are little-endian."""


def check_capture(driver: GpuDriver, graph: DeviceGraph) -> int:
    """Compares what every rank's stream captures of a plan with the plan's explicit graph; nothing runs.

    Args:
        driver: with an executor other than "serial", which waits for each launch.
        graph: a plan that this driver built.

    Returns:
        How many nodes were compared, on all ranks together.

    Raises:
        CaptureMismatchError: they differ; names plan, node, kernel and what differs.
        DriverError: the driver cannot capture, or cannot tell what it captured.
    """
    if driver.executor == "serial":
        raise PaitonError("the executor serial waits for each launch, which cannot be captured")
    return sum(driver.for_every_rank(graph, _check_rank))


def _check_rank(ours: RankPlan) -> int:
    planned = list(_planned(ours))
    with ours.library.explicit_graph(ours.copies, ours.program.add_to) as graph:
        explicit = _Reader(ours, "explicit").read(graph, planned[0])
    with ours.library.captured(ours.stream, ours.launch) as graph:
        captured = _Reader(ours, "captured").read(graph, planned[0])
    _compare(ours, ("explicit", explicit), ("planned", planned))
    _compare(ours, ("captured", captured), ("planned", planned))
    _compare(ours, ("captured", captured), ("explicit", explicit))
    return len(captured)


def _planned(ours: RankPlan) -> Iterator[Facts]:
    """Yields what the plan says of its nodes: all but attributes, and values that are known after relocation only."""
    for copy in ours.copies:
        yield _copy_facts(copy)
    for segment in ours.plan.segments:
        for _ in range(segment.repeat):
            for launch in segment.launches:
                if launch.flags & LaunchFlag.RANK0_ONLY and ours.rank:
                    continue
                kernel = ours.kernels[launch.symbol]
                threads = kernel.threads, 1, 1
                yield _launch_facts(launch.symbol, launch.grid, threads, kernel.shared_bytes)


def _launch_facts(kernel: str, grid: tuple[int, ...], block: tuple[int, ...], shared_bytes: int) -> dict[str, Value]:
    return {"type": "kernel", "kernel": kernel, "grid": grid, "block": block, "shared memory": shared_bytes}


def _copy_facts(copy: HostCopy | None) -> Facts:
    if copy is None:
        return {"type": "copy"}
    return {
        "type": "copy",
        "destination": f"{copy.destination:#x}",
        "source": f"{copy.source:#x}",
        "size": copy.size,
    }


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the nodes of a graph of a plan; `what` names the graph in messages."""

    ours: RankPlan
    what: str

    def read(self, graph: int, first: Facts) -> list[Facts]:
        """Returns the nodes in the order of the edges; `first` is what the first one is expected to be."""
        symbols = {handle: symbol for symbol, handle in self.ours.functions.items()}
        facts = {node: self._facts(node, symbols) for node in self.ours.library.nodes(graph)}
        edges = self._edges(graph)
        following: dict[int, list[int]] = {node: [] for node in facts}
        for before, after in edges:
            following[before].append(after)
        entered = {after for _, after in edges}
        roots = [node for node in facts if node not in entered]
        # Where an edge is missing there are several: follow the one that begins as the plan does.
        roots.sort(key=lambda node: _difference(facts[node], first) is not None)
        order = _follow(roots[0], following) if roots else []
        if len(order) != len(facts) or len(edges) != len(facts) - 1:
            counts = f"which has {len(facts)} nodes and {len(edges)} edges"
            if not order:
                raise _mismatch(self.ours, f"no node is the first of the {self.what} graph, {counts}")
            problem = f"{len(following[order[-1]])} edges lead on in the {self.what} graph, {counts} and is no chain"
            raise _mismatch(self.ours, problem, len(order) - 1, facts[order[-1]])
        return [facts[node] for node in order]

    def _edges(self, graph: int) -> list[tuple[int, int]]:
        try:
            return self.ours.library.edges(graph)
        except DriverError as error:
            if error.code != LOSSY_QUERY:
                raise
            problem = f"an edge of the {self.what} graph does not wait for the whole of the node before it"
            raise _mismatch(self.ours, problem) from error

    def _facts(self, node: int, symbols: Mapping[int, str]) -> Facts:
        library = self.ours.library
        type_ = library.node_type(node)
        if type_ == COPY_NODE:
            return _copy_facts(library.copy_node(node))
        if type_ != KERNEL_NODE:
            return {"type": f"number {type_}"}
        found = library.kernel_node(node)
        symbol = symbols.get(found.function)
        name = f"unknown, with handle {found.function:#x}" if symbol is None else symbol
        facts = _launch_facts(name, found.grid, found.block, found.shared_bytes)
        if symbol is not None:
            # As many as the kernel that it really is has: others would not be there to be read.
            facts |= _arguments(self.ours.kernels[symbol], found.pointers)
        return facts | {f"attribute {name}": value for name, value in library.attributes(node).items()}


def _arguments(kernel: Kernel, pointers: int) -> dict[str, Value]:
    """Returns the value of every argument that the kernel's metadata lists."""
    if not pointers:
        return {"arguments": None}
    places = (ctypes.c_void_p * len(kernel.arguments)).from_address(pointers)
    return {
        f"argument {index} ({argument.name or 'scratch'})": ctypes.string_at(place, argument.size) if place else None
        for index, (argument, place) in enumerate(zip(kernel.arguments, places, strict=True))
    }


def _follow(root: int, following: Mapping[int, Sequence[int]]) -> list[int]:
    """Returns the nodes from a root on, up to one that does not lead on to exactly one other."""
    order, seen = [root], {root}
    while len(following[order[-1]]) == 1:
        (node,) = following[order[-1]]
        if node in seen:
            break
        seen.add(node)
        order.append(node)
    return order


def _compare(ours: RankPlan, left: tuple[str, Sequence[Facts]], right: tuple[str, Sequence[Facts]]) -> None:
    """Compares two lists of nodes; each is called by its name."""
    (found_name, found), (wanted_name, wanted) = left, right
    for index, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if fact := _difference(one, other):
            values = f"{fact} is {_shown(one[fact])} in the {found_name} graph, {wanted_name} is {_shown(other[fact])}"
            raise _mismatch(ours, values, index, other)
    if len(found) != len(wanted):
        index = min(len(found), len(wanted))
        problem = f"the {found_name} graph has {len(found)} nodes, {wanted_name} are {len(wanted)}"
        raise _mismatch(ours, problem, index, (wanted if len(wanted) > len(found) else found)[index])


def _difference(one: Facts, other: Facts) -> str | None:
    """Returns the first fact that both know and that differs."""
    return next((fact for fact in one if fact in other and one[fact] != other[fact]), None)


def _shown(value: Value) -> str:
    if value is None:
        return "absent"
    if isinstance(value, bytes):
        return f"{int.from_bytes(value, 'little'):#x}"
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _mismatch(
    ours: RankPlan, problem: str, index: int | None = None, facts: Facts | None = None
) -> CaptureMismatchError:
    plan = ours.plan
    where = f"plan {plan.family}-t{plan.tokens}-r{plan.requests} of {plan.target}, rank {ours.rank}"
    if facts is not None:
        where += f", node {index} ({_shown(facts.get('kernel', facts['type']))})"
    hint = f"report it with the driver's version, {ours.library.version()}; until then use --executor launch"
    return CaptureMismatchError(f"{where}: {problem}", hint=hint)
