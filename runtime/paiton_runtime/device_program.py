"""Plans on one device, unrolled by the host library: run launch by launch, or added to a graph as its nodes."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Mapping, Sequence

from paiton_artifacts.errors import OutOfMemoryError, PaitonError
from paiton_artifacts.kernel_table import Kernel
from paiton_artifacts.plan import Launch, LaunchFlag, Plan
from paiton_runtime.drivers.template import pack_template
from paiton_runtime.host import REGIONS, DevicePlanRecords, PlanRecords, library

BACKENDS = ("hip", "cuda")
"""In the order of `enum paiton_backend`."""

_DEVICE_LAUNCH = struct.Struct("<8I")
_pointer = ctypes.c_void_p
_u64 = ctypes.c_uint64


class LaunchRefusedError(Exception):
    """The driver refused a launch or a node. Internal: the driver turns `code` into an error of the tree.

    Attributes:
        code: the driver's.
        index: number of the launch in the unrolled plan.
    """

    def __init__(self, code: int, index: int) -> None:
        super().__init__(f"launch {index} was refused with code {code}")
        self.code = code
        self.index = index


class DeviceTemplate:
    """A plan packed for the host library, once for all ranks.

    Args:
        plan: one that was checked against the bundle and its kernels.
        kernels: of the plan's target, by symbol.

    Attributes:
        plan: the same.
        symbols: every kernel that the plan launches, once.
    """

    def __init__(self, plan: Plan, kernels: Mapping[str, Kernel]) -> None:
        self.plan = plan
        self.symbols: tuple[str, ...] = tuple(
            dict.fromkeys(launch.symbol for segment in plan.segments for launch in segment.launches)
        )
        packed = pack_template(plan, dict.fromkeys(self.symbols, 0))
        launches, offsets = _pack_launches(plan, kernels, self.symbols)
        plain = PlanRecords(
            *(packed.segments, packed.launches, packed.relocations, packed.args), *packed.counts, len(packed.args)
        )
        # The structure keeps the bytes that it points to.
        self.records = DevicePlanRecords(
            plain, launches, struct.pack(f"<{len(offsets)}I", *offsets), len(offsets), len(self.symbols)
        )

    def describe(self, index: int, rank: int, ranks: int) -> str:
        """Returns where launch number `index` of the plan stands, unrolled for a rank of so many, for messages."""
        plan = self.plan
        prefix = f"rank {rank} of {ranks}, " if ranks > 1 else ""
        where = f"{prefix}plan {plan.family}-t{plan.tokens}-r{plan.requests} of {plan.target}"
        for segment in plan.segments:
            numbers = [n for n, launch in enumerate(segment.launches) if runs_on(launch, rank)]
            unrolled = segment.repeat * len(numbers)
            if index < unrolled:
                repeat, place = divmod(index, len(numbers))
                launch = segment.launches[numbers[place]]
                return f"{where}: {launch.symbol}, launch {numbers[place]} of repeat {repeat}, {_blocks(launch)}"
            index -= unrolled
        return where


class DeviceProgram:
    """A plan, unrolled and relocated for one rank.

    Args:
        template: the plan.
        functions: the driver's function handle of each symbol, on this rank's device.
        bases: for each rank the addresses of its regions, in the order of `Region`.
        rank: which of them.

    Raises:
        PaitonError: a record points outside the arrays; plans are checked before, so this is a defect of ours.
    """

    def __init__(
        self, template: DeviceTemplate, functions: Mapping[str, int], bases: Sequence[Sequence[int]], rank: int
    ) -> None:
        self._handle: int | None = None
        self._template = template
        self._rank = rank
        self._ranks = len(bases)
        if any(len(own) != REGIONS for own in bases):
            raise PaitonError(f"every rank has {REGIONS} region addresses")
        handles = [functions[symbol] for symbol in template.symbols]
        handle = _pointer()
        status = library().paiton_device_program_create(
            ctypes.byref(template.records),
            struct.pack(f"<{len(handles)}Q", *handles),
            struct.pack(f"<{REGIONS * len(bases)}Q", *(address for own in bases for address in own)),
            *(len(bases), rank),
            ctypes.byref(handle),
        )
        if status == -errno.ENOMEM:
            raise OutOfMemoryError("no memory is left to unroll a plan", hint="free memory on this machine")
        if status:
            raise PaitonError("a launch, argument or relocation points outside the plan")
        self._handle = handle.value
        self.launches: int = library().paiton_device_program_launches(handle)

    def run(self, launch_function: int, stream: int, first: int = 0, count: int | None = None) -> None:
        """Launches everything, or `count` launches from the `first` on, on a stream.

        Args:
            launch_function: address of cuLaunchKernel or hipModuleLaunchKernel.
            stream: the driver's handle.
            first: number of a launch in the unrolled plan.
            count: how many; None for all that follow.

        Raises:
            LaunchRefusedError: the driver refused one.
        """
        failed = _u64()
        many = self.launches - first if count is None else count
        code = library().paiton_device_program_run(
            self._handle, launch_function, stream, first, many, ctypes.byref(failed)
        )
        if code:
            raise LaunchRefusedError(code, failed.value)

    def add_to(self, graph: int, backend: str, add_function: int, last: int) -> int:
        """Adds every launch to a graph as a chain behind the node `last` (0 for none); returns the last node.

        Args:
            graph: the driver's handle.
            backend: one of BACKENDS.
            add_function: address of cuGraphAddKernelNode_v2 or hipGraphAddKernelNode.
            last: the node that the chain continues.

        Raises:
            LaunchRefusedError: the driver refused one.
        """
        node, failed = _pointer(last), _u64()
        code = library().paiton_device_program_add(
            *(self._handle, BACKENDS.index(backend), add_function, graph, ctypes.byref(node), ctypes.byref(failed))
        )
        if code:
            raise LaunchRefusedError(code, failed.value)
        return node.value or 0

    def describe(self, index: int) -> str:
        """Returns where launch number `index` of the unrolled plan stands, for messages."""
        return self._template.describe(index, self._rank, self._ranks)

    def close(self) -> None:
        """Frees it; no launch may be reading its arguments. Graphs made of it have copies."""
        if self._handle is not None:
            library().paiton_device_program_destroy(self._handle)
            self._handle = None


def runs_on(launch: Launch, rank: int) -> bool:
    """Returns whether a rank has a launch: some are rank 0's alone."""
    return not (launch.flags & LaunchFlag.RANK0_ONLY and rank)


def _pack_launches(plan: Plan, kernels: Mapping[str, Kernel], symbols: Sequence[str]) -> tuple[bytes, list[int]]:
    """Returns the records beside the template's launches, and the offsets of all their arguments."""
    functions = {symbol: number for number, symbol in enumerate(symbols)}
    firsts: list[int] = []  # of each function's arguments within `offsets`
    offsets: list[int] = []
    for symbol in symbols:
        firsts.append(len(offsets))
        offsets += [argument.offset for argument in kernels[symbol].arguments]
    records = bytearray()
    for segment in plan.segments:
        for launch in segment.launches:
            kernel, number = kernels[launch.symbol], functions[launch.symbol]
            arguments = (firsts[number], len(kernel.arguments))
            records += _DEVICE_LAUNCH.pack(*launch.grid, kernel.threads, kernel.shared_bytes, *arguments, number)
    return bytes(records), offsets


def _blocks(launch: Launch) -> str:
    return " x ".join(map(str, launch.grid)) + " blocks"
