"""The kernel table of a GPU target: where each kernel lies in the code object's file, and how it is launched.

A GPU code object's file is an archive: the ELF images that the compiler made, one per kernel, each loaded as a module
of its own. The table is a container beside it (artifacts/FORMAT.md, "Kernel tables"), so that a boot of one target
reads nothing of the others. Argument layouts are those of the images' own metadata.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from paiton_artifacts import container, limits
from paiton_artifacts.errors import BoundsError, CodeObjectError, PlanError
from paiton_artifacts.layout import CODE_ALIGNMENT, align_up
from paiton_artifacts.plan import FIELD_BYTES, SYMBOL, TARGET, Launch, Plan, RelocationKind
from paiton_artifacts.record import dataclass
from paiton_artifacts.rules import Rule, apply, choice, integer, pattern, sequence
from paiton_artifacts.rules import struct as struct_rule
from paiton_artifacts.wire import to_wire

TUNING_SOURCES = ("measured", "recorded", "static", "only")
"""What chose a kernel's configuration: a measured table, a recorded one, the static ranking; or there was one only."""

ARGUMENT_KINDS = ("pointer", "integer", "float")
"""What an argument is; integers are signed."""

_LETTERS = {"pointer": {8: "Q"}, "integer": {1: "b", 2: "h", 4: "i", 8: "q"}, "float": {4: "f", 8: "d"}}

_HINT = "the bundle is damaged or was not written by paiton-build; build or fetch it again"


@dataclass(frozen=True, slots=True)
class KernelArgument:
    """One argument: bytes `offset` .. `offset + size` of the packed arguments.

    Attributes:
        name: of the kernel's parameter, or "" for one that the compiler added; those are 0.
        kind: one of ARGUMENT_KINDS.
        offset: a multiple of `size`.
        size: 1, 2, 4 or 8.
        divisor: what the value is a multiple of, as the code was compiled for it: 1 or 16.
    """

    name: str
    kind: str
    offset: int
    size: int
    divisor: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a code object's archive.

    Attributes:
        symbol: name of the entry point.
        offset: of its image in the archive, in bytes; a multiple of CODE_ALIGNMENT.
        size: of its image, in bytes.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        args_bytes: size of the packed arguments.
        arguments: in order of offset.
        tuning: one of TUNING_SOURCES.
    """

    symbol: str
    offset: int
    size: int
    threads: int
    shared_bytes: int
    args_bytes: int
    arguments: tuple[KernelArgument, ...]
    tuning: str


@dataclass(frozen=True, slots=True)
class KernelTable:
    """The kernels of one GPU target, by symbol."""

    target: str
    kernels: tuple[Kernel, ...]


def encode_kernel_table(table: KernelTable, code_bytes: int) -> bytes:
    """Returns the bytes of a kernel table's file.

    Args:
        table: what to write.
        code_bytes: size of the archive that it describes.

    Raises:
        CodeObjectError, BoundsError: the table breaks a rule that `decode_kernel_table` enforces.
    """
    data = container.pack(container.KERNELS, to_wire(table))
    decode_kernel_table(data, code_bytes, f"kernel table of {table.target}")
    return data


def decode_kernel_table(data: bytes, code_bytes: int, what: str = "kernel table") -> KernelTable:
    """Returns the table in a file, typed, within limits and consistent with the archive's size.

    Raises:
        UnsupportedVersionError: the file has another major version.
        DigestMismatchError: its payload is damaged.
        CodeObjectError: a field is malformed, or two contradict each other.
        BoundsError: an image lies outside of the archive.
    """
    table = apply(_TABLE, container.unpack(container.KERNELS, data, what), CodeObjectError, what)
    symbols = [kernel.symbol for kernel in table.kernels]
    if symbols != sorted(set(symbols)):
        raise CodeObjectError(f"{what}: symbols are out of order or twice", hint=_HINT)
    for kernel in table.kernels:
        _check_kernel(kernel, code_bytes, f"{what}: kernel {kernel.symbol}")
    return table


def check_launches(plan: Plan, kernels: Mapping[str, Kernel]) -> None:
    """Checks that every launch of a plan fits the kernel that it launches.

    Args:
        plan: one that `check_plan` accepts.
        kernels: of the plan's target, by symbol.

    Raises:
        PlanError: arguments of another size than the kernel's, a relocation that is not an 8-byte argument, or a value
            that breaks what the kernel was compiled for.
    """
    for s, segment in enumerate(plan.segments):
        for n, launch in enumerate(segment.launches):
            where = f"plan {plan.family}-t{plan.tokens}-r{plan.requests}: segment {s}, launch {n} ({launch.symbol})"
            _check_launch(launch, kernels[launch.symbol], where)


def _check_kernel(kernel: Kernel, code_bytes: int, what: str) -> None:
    if kernel.offset % CODE_ALIGNMENT:
        raise CodeObjectError(f"{what}: starts at byte {kernel.offset}, not a multiple of {CODE_ALIGNMENT}", hint=_HINT)
    if kernel.offset + kernel.size > code_bytes:
        raise BoundsError(f"{what}: ends at byte {kernel.offset + kernel.size} of {code_bytes}", hint=_HINT)
    end = 0
    for argument in kernel.arguments:
        if argument.size not in _LETTERS[argument.kind] or argument.offset < end or argument.offset % argument.size:
            raise CodeObjectError(
                f"{what}: argument {argument.name!r}, a {argument.kind} of {argument.size} bytes, cannot be at byte"
                f" {argument.offset}",
                hint=_HINT,
            )
        end = argument.offset + argument.size
    if end > kernel.args_bytes:
        raise BoundsError(f"{what}: arguments end at byte {end} of {kernel.args_bytes}", hint=_HINT)


def _check_launch(launch: Launch, kernel: Kernel, where: str) -> None:
    wanted = align_up(kernel.args_bytes, FIELD_BYTES)
    if len(launch.args) != wanted:
        raise PlanError(f"{where}: {len(launch.args)} bytes of arguments, the kernel takes {wanted}", hint=_HINT)
    relocations = {relocation.arg_offset: relocation for relocation in launch.relocations}
    for argument in kernel.arguments:
        relocation = relocations.pop(argument.offset, None)
        if relocation is None:
            value = int.from_bytes(launch.args[argument.offset : argument.offset + argument.size], "little")
            if argument.divisor > 1 and value % argument.divisor:
                raise PlanError(
                    f"{where}: {argument.name} is {value}, not a multiple of {argument.divisor}", hint=_HINT
                )
            continue
        if argument.size != FIELD_BYTES:
            raise PlanError(f"{where}: {argument.name} has {argument.size} bytes and a relocation", hint=_HINT)
        steps = (relocation.offset, relocation.stride)
        if any(step % argument.divisor for step in steps):
            kind = "factor" if relocation.kind is RelocationKind.RANK else "offset"
            raise PlanError(
                f"{where}: {argument.name} has {kind} {steps[0]} and stride {steps[1]}, not multiples of"
                f" {argument.divisor}",
                hint=_HINT,
            )
    if relocations:
        raise PlanError(f"{where}: a relocation at byte {min(relocations)} is no argument of the kernel", hint=_HINT)


def pack_arguments(kernel: Kernel, values: Mapping[str, int | float]) -> bytes:
    """Returns the packed arguments of a launch; what is not given is 0.

    Args:
        kernel: whose layout to follow.
        values: by argument name.

    Raises:
        PlanError: a name that the kernel does not have, or a value that does not fit.
    """
    packed = bytearray(align_up(kernel.args_bytes, FIELD_BYTES))
    places = {argument.name: argument for argument in kernel.arguments if argument.name}
    for name, value in values.items():
        if name not in places:
            raise PlanError(f"kernel {kernel.symbol} has no argument {name}", hint="this is a bug in the planner")
        argument = places[name]
        try:
            struct.pack_into(f"<{_LETTERS[argument.kind][argument.size]}", packed, argument.offset, value)
        except struct.error as error:
            raise PlanError(
                f"kernel {kernel.symbol}: {value!r} does not fit {name}, a {argument.kind} of {argument.size} bytes",
                hint="this is a bug in the planner",
            ) from error
    return bytes(packed)


def unpack_argument(argument: KernelArgument, args: bytes) -> int | float:
    """Returns the value of one packed argument."""
    letter = _LETTERS[argument.kind][argument.size]
    value: int | float = struct.unpack_from(f"<{letter}", args, argument.offset)[0]
    return value


_NAME: Rule[str] = pattern(r"[A-Za-z0-9_]*", 64, "a parameter's name")

_ARGUMENT = struct_rule(
    KernelArgument,
    exact=True,
    name=_NAME,
    kind=choice(*ARGUMENT_KINDS),
    offset=integer(0, limits.MAX_ARGUMENT_BYTES),
    size=integer(1, FIELD_BYTES),
    divisor=integer(1, 16),
)

_KERNEL = struct_rule(
    Kernel,
    exact=True,
    symbol=SYMBOL,
    offset=integer(0, limits.MAX_CODE_OBJECT_BYTES),
    size=integer(1, limits.MAX_CODE_OBJECT_BYTES),
    threads=integer(1, limits.MAX_THREADS),
    shared_bytes=integer(0, limits.MAX_SHARED_BYTES),
    args_bytes=integer(0, limits.MAX_ARGUMENT_BYTES),
    arguments=sequence(_ARGUMENT, limits.MAX_ARGUMENTS),
    tuning=choice(*TUNING_SOURCES),
)

_TABLE = struct_rule(KernelTable, exact=True, target=TARGET, kernels=sequence(_KERNEL, limits.MAX_SYMBOLS))
