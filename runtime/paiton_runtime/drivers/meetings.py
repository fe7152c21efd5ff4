"""Launches in which all ranks meet: they store into each other's comm region, and poll for what the others store.

Such a launch has the flag GROUP_BARRIER. Its kernel finds the others' comm regions in a table of the own io region,
which is filled at boot, and polls so often and no more: then it notes in the own io region what it waited for, and
ends, as do at once all that follow. The host reads those notes after every step.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence

from paiton_artifacts.errors import PlanError, RankStalledError, UnsupportedHostError
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import LaunchFlag, Plan
from paiton_artifacts.record import dataclass
from paiton_artifacts.schema import IoField, MemoryPlan
from paiton_runtime.device_program import runs_on
from paiton_runtime.drivers.device_library import DeviceLibrary
from paiton_runtime.drivers.device_rank import DeviceGraph, Rank

PEERS = "comm_peers"
"""Io field u64[ranks]: how far each rank's comm region is from the own one, in bytes, modulo 2^64."""

ERROR = "comm_error"
"""Io field i32[4 or more]: the note of the first launch that waited in vain (see `_NOTE`); zeros if none did."""

_NOTE = struct.Struct("<4i")
"""1, the launch's number among all of its kind that the rank has had, from 1, the rank that did not come, a block."""

_SLOT_BYTES = 64


@dataclass(frozen=True, slots=True)
class _Note:
    launch: int
    peer: int
    block: int


class Meetings:
    """The host's side of them, for ranks that share a model.

    Args:
        library: the backend's; the calling thread has chosen a device.
        memory: the bundle's plan.
        ranks: how many there are.

    Raises:
        PlanError: the plan has no io fields for them.
    """

    def __init__(self, library: DeviceLibrary, memory: MemoryPlan, ranks: int) -> None:
        fields = {field.name: field for field in memory.io}
        self._library = library
        self._table = _field(fields, PEERS, ranks)
        self._error = _field(fields, ERROR, 4)
        self._notes = library.allocate_pinned(_SLOT_BYTES * ranks)
        ctypes.memset(self._notes, 0, _SLOT_BYTES * ranks)

    def connect(self, rank: Rank, ranks: Sequence[Rank]) -> None:
        """Tells a rank's kernels where the comm regions of all ranks are."""
        own = rank.bases[Region.COMM]
        peers = (ctypes.c_uint64 * len(ranks))(*(other.bases[Region.COMM] - own for other in ranks))
        address = rank.bases[Region.IO] + self._table.offset
        self._library.copy_to_device(address, ctypes.addressof(peers), ctypes.sizeof(peers), rank.stream)
        self._library.synchronise_stream(rank.stream)

    def fetch(self, rank: Rank) -> None:
        """Lets a rank's stream copy its note, after what it was given so far."""
        source = rank.bases[Region.IO] + self._error.offset
        self._library.copy_to_host(self._slot(rank), source, _NOTE.size, rank.stream)

    def check(self, rank: Rank, graphs: Sequence[DeviceGraph]) -> None:
        """Raises what a rank's note says; its stream is done with `graphs`, the last step.

        Raises:
            RankStalledError: a launch waited in vain; names it, its rank, and the rank that did not come.
        """
        code, *words = _NOTE.unpack(ctypes.string_at(self._slot(rank), _NOTE.size))
        first = rank.meetings
        rank.meetings += sum(graph.meetings for graph in graphs)
        if not code:
            return
        note = _Note(*words)
        where = _find(graphs, note.launch - first - 1, rank)
        raise RankStalledError(
            f"rank {rank.number} waited in vain for rank {note.peer}, in block {note.block} of {where}",
            hint="look for what held that rank or its device up, and start this process again",
        )

    def _slot(self, rank: Rank) -> int:
        return self._notes + _SLOT_BYTES * rank.number

    def close(self) -> None:
        """Frees what the notes are copied to."""
        self._library.free_pinned(self._notes)


def _field(fields: dict[str, IoField], name: str, count: int) -> IoField:
    field = fields.get(name)
    if field is None or field.count < count:
        raise PlanError(
            f"the memory plan has no io field {name} of {count} elements, which ranks that share a model need",
            hint="build or fetch the bundle again",
        )
    return field


def _find(graphs: Sequence[DeviceGraph], number: int, rank: Rank) -> str:
    """Returns where meeting number `number` of a step stands."""
    for graph in graphs:
        if 0 <= number < graph.meetings:
            index = meetings_of(graph.plan, rank.number)[number]
            return graph.template.describe(index, rank.number, len(graph.graphs))
        number -= graph.meetings
    return "an earlier step"


def meetings_of(plan: Plan, rank: int) -> list[int]:
    """Returns which launches of a plan, unrolled for a rank, are meetings."""
    found, index = [], 0
    for segment in plan.segments:
        own = [launch for launch in segment.launches if runs_on(launch, rank)]
        places = [place for place, launch in enumerate(own) if launch.flags & LaunchFlag.GROUP_BARRIER]
        if places:
            found += [index + repeat * len(own) + place for repeat in range(segment.repeat) for place in places]
        index += segment.repeat * len(own)
    return found


def check_resident(plan: Plan, resident: Callable[[str], int]) -> None:
    """Checks that a device holds all blocks of every meeting at once: each polls until its peers have run.

    Args:
        plan: whose launches run one after the other, on one stream.
        resident: returns how many blocks of a kernel, given by its symbol, the device holds.

    Raises:
        UnsupportedHostError: some launch has more blocks than that.
    """
    for segment in plan.segments:
        for launch in segment.launches:
            blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
            if launch.flags & LaunchFlag.GROUP_BARRIER and blocks > (room := resident(launch.symbol)):
                raise UnsupportedHostError(
                    f"plan {plan.family}-t{plan.tokens}-r{plan.requests}: {launch.symbol} waits for other ranks in"
                    f" {blocks} blocks at once, and the device holds {room} of them",
                    hint="build the bundle with the --profile of this device",
                )
