"""Launches a kernel on emulated waves."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.memory import DeviceMemory, DevicePointer, Storage
from tests.emulated.cdna.program import Program, program_of
from tests.emulated.cdna.scheduler import ORDERS, Execution
from tests.emulated.cdna.waves import ALL_LANES, EXEC, LANES, POISON, SCALARS, Environment, Waves

Order = str | None
"""A key of `scheduler.ORDERS`."""
Argument = NDArray[Any] | DevicePointer | int | float | None

_SCALARS: Final = {
    "i1": "b",
    "i8": "b",
    "i16": "h",
    "i32": "i",
    "i64": "q",
    "u8": "B",
    "u16": "H",
    "u32": "I",
    "u64": "Q",
    "fp32": "f",
    "fp64": "d",
}
"""Triton's names of scalar types, as `struct` formats."""

_USER_REGISTERS: Final = (
    ("private_segment_buffer", 4),
    ("dispatch_ptr", 2),
    ("queue_ptr", 2),
    ("kernarg_segment_ptr", 2),
    ("dispatch_id", 2),
    ("flat_scratch_init", 2),
    ("private_segment_size", 1),
)
"""What the kernel descriptor may ask for in the first scalar registers, in this order, and how many it takes."""

_MODE: Final = 0x2F0  # round to nearest even, denormals kept
_HIDDEN_ARGUMENTS: Final = 64  # readable bytes after the explicit arguments
_SHARED_ALIGNMENT: Final = 256


class Kernel:
    """A kernel, from the assembly text that the compiler emits.

    Args:
        assembly: text with one kernel and its descriptor.
        arch: ``gfx942`` or ``gfx950``.

    Attributes:
        name: of the kernel.
        program: its instructions.
        count: instructions of the last launch, one for all waves that execute it together.
        wave_count: instructions of the last launch, counted for every wave.

    Raises:
        EmulationError: the text holds no kernel, or the architecture is not known.
    """

    def __init__(self, assembly: str, arch: str) -> None:
        self.program: Program = program_of(assembly, arch)
        self.name = self.program.name
        self.count = 0
        self.wave_count = 0

    def launch(
        self,
        grid: Sequence[int],
        arguments: Sequence[Argument],
        types: Sequence[str],
        num_warps: int,
        shared_bytes: int = 0,
        chunk_waves: int = 64,
        max_instructions: int = 20_000_000,
        order: Order = None,
    ) -> int:
        """Runs the kernel on numpy arrays, in place and without copying them.

        Args:
            grid: workgroups along up to three axes.
            arguments: one for each type: arrays or device pointers (of one memory) or None for pointers, numbers.
            types: Triton's types, such as ``*fp32`` and ``i32``.
            num_warps: waves of a workgroup.
            shared_bytes: LDS of a workgroup; 0 for what the kernel descriptor says.
            chunk_waves: about how many waves run at a time; the workgroups of a chunk are interleaved.
            max_instructions: after which the launch counts as endless.
            order: None: all waves of a chunk in lockstep. ``fwd``, ``rev``: one wave at a time up to each barrier, the
                first or last one first. A result that depends on it shows a race.

        Returns:
            Instructions executed (`count`).

        Raises:
            EmulationError: the kernel did what it must not do, or used an instruction that is not known.
        """
        memories = {argument.memory for argument in arguments if isinstance(argument, DevicePointer)}
        if len(memories) > 1:
            raise EmulationError("device pointers of several memories")
        memory = memories.pop() if memories else DeviceMemory()
        mapped: dict[tuple[int, int], int] = {}
        try:
            for index, argument in enumerate(arguments):
                if isinstance(argument, np.ndarray):
                    key = argument.ctypes.data, argument.nbytes
                    if key not in mapped:
                        mapped[key] = memory.map(argument, name=f"argument {index}")
            block = bytearray()
            for argument, kind in zip(arguments, types, strict=True):
                block += packed(argument, kind, len(block), mapped)
            return self.launch_raw(
                memory, bytes(block), grid, num_warps, shared_bytes, chunk_waves, max_instructions, order
            )
        finally:
            for address in mapped.values():
                memory.free(address)

    def launch_raw(
        self,
        memory: DeviceMemory,
        kernarg: bytes,
        grid: Sequence[int],
        num_warps: int,
        shared_bytes: int = 0,
        chunk_waves: int = 64,
        max_instructions: int = 20_000_000,
        order: Order = None,
        on_poll: Callable[[], None] | None = None,
    ) -> int:
        """Runs the kernel as a driver would: its arguments are bytes, its pointers addresses in `memory`.

        Args:
            memory: of the device that runs it; it may have peers.
            kernarg: the argument block.
            grid: workgroups along up to three axes.
            num_warps: as in `launch`, like the rest.
            shared_bytes: see `launch`.
            chunk_waves: see `launch`.
            max_instructions: see `launch`.
            order: see `launch`.
            on_poll: called at every turn of a loop that has an atomic in it, so that other devices can go on.

        Returns:
            Instructions executed (`count`).

        Raises:
            EmulationError: as in `launch`.
        """
        if order not in ORDERS:
            raise EmulationError(f"unknown order {order}; known: {ORDERS}")
        size = max(self.program.number("kernarg_size"), len(kernarg)) + _HIDDEN_ARGUMENTS
        block = np.zeros(size, np.uint8)
        block[: len(kernarg)] = np.frombuffer(kernarg, np.uint8)
        block.flags.writeable = False
        arguments = memory.map(block, name="kernel arguments")
        x, y, z = (*grid, 1, 1)[:3]
        execution = Execution(self.program, max_instructions, on_poll)
        try:
            chunks = _chunks(x * y * z, max(1, chunk_waves // num_warps))
            for workgroups in chunks if order != "rev" else reversed(chunks):
                waves = self.new_waves(memory, arguments, workgroups, (x, y), num_warps, shared_bytes)
                with np.errstate(all="ignore"):
                    if order is None:
                        execution.run_together(waves)
                    else:
                        execution.run_one_by_one(waves, reverse=order == "rev")
        finally:
            memory.free(arguments)
            self.count, self.wave_count = execution.count, execution.wave_count
        return self.count

    def new_waves(
        self,
        memory: DeviceMemory,
        arguments: int,
        workgroups: NDArray[np.int64],
        grid: tuple[int, int],
        num_warps: int,
        shared_bytes: int,
    ) -> Waves:
        """Returns the waves of some workgroups at the start of a launch.

        Args:
            memory: that they see.
            arguments: address of the argument block.
            workgroups: their numbers, int64[n].
            grid: workgroups along x and y.
            num_warps: waves of a workgroup.
            shared_bytes: as in `launch`.
        """
        program = self.program
        count = len(workgroups) * num_warps
        shared_bytes = shared_bytes or program.number("group_segment_fixed_size")
        stride = -(-shared_bytes // _SHARED_ALIGNMENT) * _SHARED_ALIGNMENT
        words = np.full(max(stride * len(workgroups), _SHARED_ALIGNMENT) // 4, POISON, np.uint32)
        workgroup = np.repeat(workgroups, num_warps)
        wave = np.tile(np.arange(num_warps), len(workgroups))
        pairs, defined = self._initial_scalars(arguments, workgroup, grid)
        vector = np.full((program.layout.rows, count, LANES), POISON, np.uint32)
        vector[0] = wave[:, None] * LANES + np.arange(LANES)
        undefined = (1 << (SCALARS + program.layout.rows)) - 1 & ~defined & ~(1 << SCALARS)
        return Waves(
            Environment(memory, Storage.of(words.view(np.uint8)), shared_bytes),
            pairs,
            vector,
            np.zeros(count, bool),
            np.full(count, _MODE, np.uint32),
            np.stack([workgroup, wave, np.repeat(np.arange(len(workgroups)) * stride, num_warps)]),
            np.zeros((count, LANES, program.number("private_segment_fixed_size")), np.uint8),
            undefined,
        )

    def _initial_scalars(
        self, arguments: int, workgroup: NDArray[np.int64], grid: tuple[int, int]
    ) -> tuple[NDArray[np.uint64], int]:
        """Returns the pairs of scalar registers at the start, uint64[64, W], and which of them are defined.

        Arguments that firmware may preload are left undefined: the compiler's entry code then loads them itself.
        """
        program = self.program
        pairs = np.full((SCALARS // 2, len(workgroup)), POISON << 32 | POISON, np.uint64)
        scalar = pairs.view(np.uint32).reshape(*pairs.shape, 2)
        pairs[EXEC // 2] = ALL_LANES
        defined = 3 << EXEC
        register = 0
        for name, size in _USER_REGISTERS:
            if not program.number(f"user_sgpr_{name}"):
                continue
            if name == "kernarg_segment_ptr":
                pairs[register // 2] = arguments
                defined |= 3 << register
            register += size
        register = max(register, program.number("user_sgpr_count"))
        x, y = grid
        for axis, index in (("x", workgroup % x), ("y", workgroup // x % y), ("z", workgroup // (x * y))):
            if program.number(f"system_sgpr_workgroup_id_{axis}"):
                scalar[register // 2, :, register % 2] = index
                defined |= 1 << register
                register += 1
        return pairs, defined


def _chunks(workgroups: int, size: int) -> list[NDArray[np.int64]]:
    return [np.arange(first, min(workgroups, first + size)) for first in range(0, workgroups, size)]


def packed(argument: Argument, kind: str, position: int, mapped: dict[tuple[int, int], int]) -> bytes:
    """Returns an argument's bytes, after the padding that aligns it."""
    value: int | float
    if kind.startswith("*"):
        code = "Q"
        if argument is None:
            value = 0
        elif isinstance(argument, np.ndarray):
            value = mapped[argument.ctypes.data, argument.nbytes]
        elif isinstance(argument, DevicePointer):
            value = argument.address
        else:
            raise EmulationError(f"{argument!r} for a pointer")
    else:
        code = _SCALARS[kind]
        if argument is None or isinstance(argument, (np.ndarray, DevicePointer)):
            raise EmulationError(f"{type(argument).__name__} for a {kind}")
        value = argument
    size = struct.calcsize(code)
    return b"\0" * (-position % size) + struct.pack("<" + code, value)
