"""What the driver of GPU targets keeps of each rank, and of each plan that it made ready."""

from __future__ import annotations

from contextlib import ExitStack

from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Plan
from paiton_artifacts.record import dataclass, field
from paiton_runtime.device_program import DeviceProgram, DeviceTemplate
from paiton_runtime.drivers.rank_thread import RankThread


@dataclass(slots=True)
class Rank:
    """One rank: its thread, its device, its stream, where its regions are, and what frees all that, on its thread.

    Attributes:
        resident: by symbol, how many blocks its device holds of a kernel in which ranks meet.
        meetings: launches in which all ranks meet, of all steps that it was given.
    """

    number: int
    ordinal: int
    thread: RankThread
    cleanup: ExitStack = field(default_factory=ExitStack)
    stream: int = 0
    bases: dict[Region, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)
    meetings: int = 0


@dataclass(slots=True)
class DeviceGraph:
    """A plan made ready on every rank.

    Attributes:
        plan: what it is made of.
        template: likewise, packed.
        programs: by rank. A graph has copies of its launches' arguments, so that the launches themselves are forgotten
            until another executor asks for them.
        graphs: executable graphs by rank; 0 where launches are plain.
        launches: of rank 0.
        meetings: those in which all ranks meet.
    """

    plan: Plan
    template: DeviceTemplate
    programs: list[DeviceProgram | None]
    graphs: list[int]
    launches: int = 0
    meetings: int = 0
