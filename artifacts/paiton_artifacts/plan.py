"""A plan: the launches of one step, their arguments packed, every address a relocation (artifacts/FORMAT.md, "Plans").

The same plan serves every rank and every level of its target. A plan is a list of segments; a segment is a list of
launches that runs `repeat` times, its relocations advancing by their stride each time, so that the layers of a model
are stored once. Offsets and symbols in a plan file are attacker-controlled: `decode_plan` checks what can be checked
from the file alone, `check_plan` everything else, and nothing may be unrolled before both.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from enum import IntEnum, IntFlag

from paiton_artifacts import container, limits
from paiton_artifacts.errors import BoundsError, PlanError
from paiton_artifacts.layout import Region
from paiton_artifacts.record import dataclass
from paiton_artifacts.rules import RejectedError, Rule, apply, binary, choice, integer, pattern, sequence
from paiton_artifacts.rules import struct as struct_rule

RELOCATION = struct.Struct("<HBBBBHqQQQ")
"""A relocation on the wire: arg_offset, kind, region, access, 0, rank, offset, stride, size, 0; 40 bytes."""

FIELD_BYTES = 8
"""Width of every argument field."""


class RelocationKind(IntEnum):
    """How the 8-byte field of a relocation is computed, in repeat i of the segment."""

    LOCAL = 0  # pointer: base[own rank][region] + offset + i * stride
    PEER = 1  # pointer: base[rank][region] + offset + i * stride
    RANK = 2  # integer: own rank * offset; region, rank, stride and size are 0


class Access(IntFlag):
    """What a launch does with the bytes that a relocation points to."""

    NONE = 0
    READ = 1
    WRITE = 2


class LaunchFlag(IntFlag):
    """How a launch is ordered with the other ranks."""

    NONE = 0
    GROUP_BARRIER = 1  # all workers of all ranks meet before this launch
    RANK0_ONLY = 2  # the other ranks skip it


@dataclass(frozen=True, slots=True)
class Relocation:
    """An 8-byte argument field that is known only once the regions have addresses."""

    arg_offset: int  # bytes from the start of the launch's arguments; a multiple of 8
    kind: RelocationKind
    region: Region
    access: Access
    rank: int  # of the peer; 0 for the other kinds
    offset: int  # bytes from the region's start; for RANK the factor of the rank, which may be negative
    stride: int  # bytes added for each repeat of the segment
    size: int  # bytes that the launch may touch there, for bounds


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel: run by every worker of a rank's team (cpu), or by `grid` blocks (GPUs), after the one before it."""

    symbol: str
    flags: LaunchFlag
    args: bytes  # little-endian; relocated fields hold 0; cpu: 8 bytes each, GPUs: as the kernel table says
    relocations: tuple[Relocation, ...]
    grid: tuple[int, ...] = (1, 1, 1)  # blocks along x, y and z


@dataclass(frozen=True, slots=True)
class Segment:
    """Launches that run in order, the whole list `repeat` times."""

    repeat: int
    launches: tuple[Launch, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """One family of launches for steps of up to `tokens` tokens from up to `requests` requests."""

    target: str
    profile: str
    family: str  # one of FAMILIES
    tokens: int
    requests: int
    segments: tuple[Segment, ...]

    @property
    def launches(self) -> int:
        """How many launches a step makes, segments unrolled."""
        return sum(segment.repeat * len(segment.launches) for segment in self.segments)


SAMPLING_FAMILIES = ("sample", "greedy")
"""Those that leave tokens."""

FAMILIES = ("forward", *SAMPLING_FAMILIES, "history")
"""What a plan can be for."""

_PLANNER = "this is a bug in the planner"
_REBUILD = "the bundle is damaged or was not written by paiton-build; build or fetch it again"

# Indexing a tuple is several times quicker than calling an enumeration, and a plan has thousands of relocations.
_KINDS = tuple(RelocationKind)
_REGIONS = tuple(Region)
_ACCESSES = tuple(Access(value) for value in range(4))
_FLAGS = tuple(LaunchFlag(value) for value in range(4))


def pack_relocations(relocations: Iterable[Relocation]) -> bytes:
    """Returns relocations as packed records of 40 bytes, the form of the wire and of the host library.

    Raises:
        PlanError: a field exceeds its width.
    """
    try:
        return b"".join(
            RELOCATION.pack(r.arg_offset, r.kind, r.region, r.access, 0, r.rank, r.offset, r.stride, r.size, 0)
            for r in relocations
        )
    except struct.error as error:
        raise PlanError(f"a relocation does not fit its record: {error}", hint=_PLANNER) from error


def encode_plan(plan: Plan) -> bytes:
    """Returns the bytes of a plan file, container included.

    Raises:
        PlanError: the plan breaks a rule or a limit that `decode_plan` enforces.
    """
    segments = [
        {
            "repeat": segment.repeat,
            "launches": [
                {
                    "symbol": launch.symbol,
                    "flags": int(launch.flags),
                    "args": launch.args,
                    "relocations": pack_relocations(launch.relocations),
                    "grid": list(launch.grid),
                }
                for launch in segment.launches
            ],
        }
        for segment in plan.segments
    ]
    data = container.pack(
        container.PLAN,
        {
            "target": plan.target,
            "profile": plan.profile,
            "family": plan.family,
            "tokens": plan.tokens,
            "requests": plan.requests,
            "segments": segments,
        },
    )
    # What is written can be read: a planner's mistake surfaces at the build, not at somebody's boot.
    decode_plan(data, f"plan {plan.family} of {plan.tokens} tokens and {plan.requests} requests")
    return data


def decode_plan(data: bytes, what: str = "plan") -> Plan:
    """Returns the plan in a plan file, typed and within the limits; `check_plan` does the rest.

    Args:
        data: the whole file.
        what: names the file in messages.

    Raises:
        UnsupportedVersionError: the file has another major version.
        DigestMismatchError: its payload is damaged.
        PlanError: anything else is wrong with it.
    """
    plan = apply(_PLAN, container.unpack(container.PLAN, data, what), PlanError, what)
    if plan.launches > limits.MAX_UNROLLED_LAUNCHES:
        raise PlanError(
            f"{what}: {plan.launches} launches once unrolled, more than {limits.MAX_UNROLLED_LAUNCHES}",
            hint="the file was not written by paiton-build; build or fetch the bundle again",
        )
    return plan


def check_plan(plan: Plan, extents: Mapping[Region, int], tp: int, symbols: Collection[str]) -> None:
    """Checks a plan against the bundle that it belongs to.

    Args:
        plan: as decoded, or as planned.
        extents: bytes of each region of a rank; for KV those of one block, as block numbers are data of the step.
        tp: number of ranks.
        symbols: what every code object of the target has.

    Raises:
        BoundsError: a relocation reaches outside its region, in some repeat.
        PlanError: a symbol or a rank does not exist, a relocation lies outside the arguments or overlaps another, or
            the weights would be written.
    """
    for s, segment in enumerate(plan.segments):
        for n, launch in enumerate(segment.launches):
            where = f"plan {plan.family}-t{plan.tokens}-r{plan.requests}: segment {s}, launch {n} ({launch.symbol})"
            if launch.symbol not in symbols:
                raise PlanError(f"{where}: no such symbol in the code objects of {plan.target}", hint=_REBUILD)
            _check_fields(launch, where)
            for relocation in launch.relocations:
                if relocation.kind is not RelocationKind.RANK:
                    _check_pointer(relocation, segment.repeat, extents, tp, where)


def _check_fields(launch: Launch, where: str) -> None:
    """Every relocation has a field of its own."""
    last = len(launch.args) - FIELD_BYTES
    taken = set()
    for relocation in launch.relocations:
        offset = relocation.arg_offset
        if offset % FIELD_BYTES or not 0 <= offset <= last:
            raise PlanError(
                f"{where}: a relocation at byte {offset} is not a field of the {len(launch.args)} argument bytes",
                hint=_REBUILD,
            )
        if offset in taken:
            raise PlanError(f"{where}: two relocations of the field at byte {offset}", hint=_REBUILD)
        taken.add(offset)


def _check_pointer(relocation: Relocation, repeat: int, extents: Mapping[Region, int], tp: int, where: str) -> None:
    """A pointer stays inside its region in every repeat. Python's integers do not overflow; the executor's would."""
    region = relocation.region
    extent = extents.get(region, 0)
    end = relocation.offset + (repeat - 1) * relocation.stride + relocation.size
    if relocation.offset < 0 or end > extent:
        raise BoundsError(
            f"{where}: argument {relocation.arg_offset} reaches bytes {relocation.offset} .. {end}"
            f" of the {region.name.lower()} region, which has {extent}",
            hint=_REBUILD,
        )
    if relocation.rank >= tp:
        raise PlanError(
            f"{where}: argument {relocation.arg_offset} points to rank {relocation.rank} of {tp}", hint=_REBUILD
        )
    if region is Region.WEIGHTS and relocation.access & Access.WRITE:
        raise PlanError(f"{where}: argument {relocation.arg_offset} writes to the weights", hint=_REBUILD)


def _relocations(value: object) -> tuple[Relocation, ...]:
    """Accepts packed relocation records."""
    data = binary(limits.MAX_RELOCATIONS * RELOCATION.size)(value)
    if len(data) % RELOCATION.size:
        raise RejectedError(f"has {len(data)} bytes, not a multiple of {RELOCATION.size}")
    relocations: list[Relocation] = []
    for record in RELOCATION.iter_unpack(data):
        try:
            relocations.append(_relocation(*record))
        except RejectedError as rejected:
            raise rejected.inside(f"[{len(relocations)}]") from None
    return tuple(relocations)


def _relocation(
    arg_offset: int,
    kind: int,
    region: int,
    access: int,
    zero: int,
    rank: int,
    offset: int,
    stride: int,
    size: int,
    last_zero: int,
) -> Relocation:
    if kind >= len(_KINDS) or region >= len(_REGIONS) or access >= len(_ACCESSES):
        raise RejectedError(f"has kind {kind}, region {region}, access {access}, of which one is unknown")
    if zero or last_zero:
        raise RejectedError("has a reserved field that is not 0")
    if stride > limits.MAX_BYTES or size > limits.MAX_BYTES or not -limits.MAX_BYTES <= offset <= limits.MAX_BYTES:
        raise RejectedError(
            f"has offset {offset}, stride {stride}, size {size}, of which one exceeds {limits.MAX_BYTES}"
        )
    if kind == RelocationKind.RANK:
        if region or access or rank or stride or size:
            raise RejectedError("of kind RANK has a region, access, rank, stride or size")
    elif offset < 0:
        raise RejectedError(f"has the negative offset {offset}")
    if kind == RelocationKind.LOCAL and rank:
        raise RejectedError(f"of kind LOCAL names rank {rank}")
    return Relocation(arg_offset, _KINDS[kind], _REGIONS[region], _ACCESSES[access], rank, offset, stride, size)


def _flags(value: object) -> LaunchFlag:
    """Accepts the flags of a launch: an unknown one may change what the launch means, so it is refused."""
    return _FLAGS[integer(0, len(_FLAGS) - 1)(value)]


def _arguments(value: object) -> bytes:
    """Accepts packed arguments: whole fields."""
    data = binary(limits.MAX_ARGUMENT_BYTES)(value)
    if len(data) % FIELD_BYTES:
        raise RejectedError(f"has {len(data)} bytes, not a multiple of {FIELD_BYTES}")
    return data


_BLOCKS = sequence(integer(1, limits.MAX_GRID), 3, low=3)


def _grid(value: object) -> tuple[int, ...]:
    """Accepts the blocks of a launch along three axes."""
    grid = _BLOCKS(value)
    if max(grid[1:]) > limits.MAX_GRID_YZ:
        raise RejectedError(f"is {list(grid)}, more than {limits.MAX_GRID_YZ} blocks along y or z")
    return grid


SYMBOL: Rule[str] = pattern(r"[A-Za-z_][A-Za-z0-9_]*", limits.MAX_NAME, "a C identifier")
WORD: Rule[str] = pattern(r"[A-Za-z0-9][A-Za-z0-9._-]*", 64, "a word of letters, digits, '.', '_' and '-'")

TARGET: Rule[str] = pattern(r"[A-Za-z0-9][A-Za-z0-9._:-]*", 64, "a word of letters, digits, '.', '_', ':' and '-'")

_LAUNCH = struct_rule(
    Launch, exact=True, symbol=SYMBOL, flags=_flags, args=_arguments, relocations=_relocations, grid=_grid
)
_SEGMENT = struct_rule(
    Segment,
    exact=True,
    repeat=integer(1, limits.MAX_REPEAT),
    launches=sequence(_LAUNCH, limits.MAX_LAUNCHES),
)
_PLAN = struct_rule(
    Plan,
    exact=True,
    target=TARGET,
    profile=WORD,
    family=choice(*FAMILIES),
    tokens=integer(1, limits.MAX_TOKENS),
    requests=integer(1, limits.MAX_TOKENS),
    segments=sequence(_SEGMENT, limits.MAX_SEGMENTS),
)
