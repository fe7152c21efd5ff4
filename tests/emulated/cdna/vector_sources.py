"""Sources and destinations of vector instructions: DPP (data from other lanes), SDWA (parts of registers), op_sel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.instruction import Array, Instruction, Reader
from tests.emulated.cdna.operands import Operand
from tests.emulated.cdna.operations import DTYPES
from tests.emulated.cdna.waves import LANES, Waves

Writer = Callable[[Waves, Array], None]
"""Writes 32-bit patterns to a destination."""

_LANE: Final = np.arange(LANES)
_ROW: Final = _LANE // 16
_IN_ROW: Final = _LANE % 16
_ALL: Final = np.ones(LANES, bool)
_DPP_CONTROLS: Final = [
    "quad_perm",
    "row_shl",
    "row_shr",
    "row_ror",
    "row_mirror",
    "row_half_mirror",
    "row_bcast",
    "row_newbcast",
    "wave_shl",
    "wave_shr",
    "wave_rol",
    "wave_ror",
]
_PARTS: Final = {
    "BYTE_0": (0, 8),
    "BYTE_1": (8, 8),
    "BYTE_2": (16, 8),
    "BYTE_3": (24, 8),
    "WORD_0": (0, 16),
    "WORD_1": (16, 16),
}
"""Shift and width of what SDWA selects."""


@dataclass(frozen=True, slots=True)
class LaneShuffle:
    """What a DPP control does.

    Attributes:
        source: lane that each lane reads.
        valid: lanes whose source exists.
        enabled: lanes that row_mask and bank_mask let write.
        zero_fill: whether lanes without a source read 0 (bound_ctrl) instead of not writing.
    """

    source: NDArray[np.int64]
    valid: NDArray[np.bool_]
    enabled: NDArray[np.bool_]
    zero_fill: bool


def lane_shuffle(instruction: Instruction) -> LaneShuffle | None:
    """Returns the DPP control of an instruction, if it has one."""
    if not instruction.has_modifiers:
        return None
    control = next((name for name in _DPP_CONTROLS if instruction.has(name)), None)
    if control is None:
        return None
    source, valid = _dpp_lanes(instruction, control)
    rows, banks = instruction.number("row_mask", 15), instruction.number("bank_mask", 15)
    enabled = ((rows >> _ROW) & (banks >> (_IN_ROW // 4)) & 1).astype(bool)
    return LaneShuffle(np.where(valid, source, 0), valid, enabled, instruction.has("bound_ctrl"))


def _dpp_lanes(instruction: Instruction, control: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    lane, all_lanes = _LANE, _ALL
    if control == "quad_perm":
        order = np.array(instruction.numbers(control))
        return (lane & ~3) + order[lane & 3], all_lanes
    if control in ("row_mirror", "row_half_mirror"):
        return lane ^ (15 if control == "row_mirror" else 7), all_lanes
    count = instruction.number(control)
    if control == "row_bcast":
        if count == 15:
            return _ROW * 16 - 1, _ROW >= 1
        return np.full(LANES, 31), _ROW >= 2
    shuffles: dict[str, tuple[NDArray[np.int64], NDArray[np.bool_]]] = {
        "row_shl": (lane + count, _IN_ROW + count < 16),
        "row_shr": (lane - count, count <= _IN_ROW),
        "row_ror": (_ROW * 16 + (_IN_ROW - count) % 16, all_lanes),
        "row_newbcast": (_ROW * 16 + count, all_lanes),
        "wave_shl": (lane + 1, lane < LANES - 1),
        "wave_shr": (lane - 1, lane >= 1),
        "wave_rol": ((lane + 1) % LANES, all_lanes),
        "wave_ror": ((lane - 1) % LANES, all_lanes),
    }
    return shuffles[control]


class VectorOperands:
    """Readers and writers of one vector instruction, with its DPP, SDWA and op_sel modifiers applied.

    Attributes:
        shuffle: the DPP control, if there is one; it applies to the first source.
    """

    def __init__(self, instruction: Instruction) -> None:
        self.instruction = instruction
        self._plain = not instruction.has_modifiers
        self.shuffle = lane_shuffle(instruction)
        self._select = instruction.numbers("op_sel")

    def source(self, index: int, operand: Operand, kind: str) -> Reader:
        """Returns the reader of source `index` (0, 1, 2), of a type of `operations.DTYPES`."""
        if self._plain:
            return self.instruction.read(operand, kind)
        part = self.instruction.word(f"src{index}_sel", "DWORD")
        if part != "DWORD":
            reader = _part_reader(self.instruction.read(operand, "u32"), part, kind, signed=operand.sign_extend)
        else:
            high = index < len(self._select) and bool(self._select[index]) and DTYPES[kind].itemsize == 2
            reader = self.instruction.read(operand, kind, high=high)
        if index == 0 and self.shuffle is not None:
            return _shuffled_reader(reader, self.shuffle)
        return reader

    def row_writer(self, row: int) -> Writer:
        """Returns a writer of a whole register."""
        shuffle = self.shuffle
        if shuffle is None:
            return lambda waves, values: waves.write(row, values)
        if shuffle.zero_fill and shuffle.enabled.all():
            return lambda waves, values: waves.write(row, values)

        def write(waves: Waves, values: Array) -> None:
            mask = waves.active & shuffle.enabled
            if not shuffle.zero_fill:
                mask = mask & shuffle.valid & waves.active[:, shuffle.source]
            np.copyto(waves.u32[row], values, where=mask)

        return write

    def writer(self, operand: Operand, kind: str, sources: int) -> Writer:
        """Returns the writer of a 32-bit or 16-bit destination; it takes 32-bit patterns."""
        instruction = self.instruction
        if self._plain:
            return self.row_writer(instruction.target_row(operand))
        high = len(self._select) > sources and bool(self._select[sources]) and DTYPES[kind].itemsize == 2
        part = "WORD_1" if high else instruction.word("dst_sel", "DWORD")
        unused = "UNUSED_PRESERVE" if high else instruction.word("dst_unused", "UNUSED_PAD")
        if part == "DWORD":
            return self.row_writer(instruction.target_row(operand))
        if unused not in ("UNUSED_PRESERVE", "UNUSED_PAD"):
            raise EmulationError(unused)
        keeps = unused == "UNUSED_PRESERVE"
        row = instruction.target_row(operand)
        write = self.row_writer(row)
        shift, width = _PARTS[part]
        mask = np.uint32(((1 << width) - 1) << shift)

        def write_part(waves: Waves, values: Array) -> None:
            bits = (values << np.uint32(shift)) & mask
            write(waves, (waves.u32[row] & ~mask) | bits if keeps else bits)

        return write_part


def _part_reader(reader: Reader, part: str, kind: str, *, signed: bool) -> Reader:
    shift, width = _PARTS[part]
    mask, top = np.uint32((1 << width) - 1), np.uint32(1 << (width - 1))
    dtype: np.dtype[Any] = DTYPES[kind]

    def read(waves: Waves) -> Array:
        bits = (reader(waves) >> np.uint32(shift)) & mask
        if signed:
            bits = (bits ^ top) - top
        return bits.astype(np.uint16).view(dtype) if dtype.itemsize == 2 else bits.view(dtype)

    return read


def _shuffled_reader(reader: Reader, shuffle: LaneShuffle) -> Reader:
    def read(waves: Waves) -> Array:
        values = waves.spread(reader(waves))[:, shuffle.source]
        if waves.all_active and shuffle.valid.all():
            return values
        present = waves.active[:, shuffle.source] & shuffle.valid
        return np.where(present, values, values.dtype.type(0))

    return read
