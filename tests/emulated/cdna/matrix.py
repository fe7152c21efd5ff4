"""Matrix instructions (MFMA): D = A * B + C over the registers of a whole wave.

Each dot product is summed in float64 and rounded once; the hardware rounds in between, so results agree within a
tolerance, not in every bit. EXEC is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.instruction import Action, Array, Instruction, Reader, constant
from tests.emulated.cdna.number_formats import E2M1, SmallFloat, bf16_values, float8_formats, xf32_values
from tests.emulated.cdna.operands import Operand
from tests.emulated.cdna.waves import LANES, Waves

_U32 = np.uint32
_NAME: Final = re.compile(
    r"v_mfma_(scale_)?(f32|i32)_(\d+)x(\d+)x(\d+)_?(?:(\d+)b_)?"
    r"(f8f6f4|(?:fp8|bf8)_(?:fp8|bf8)|bf16_1k|bf16|f16|f32|xf32|i8)"
)
_SHAPES: Final = {(32, 32, 1): 16, (16, 16, 1): 4, (4, 4, 16): 4}
"""Rows, columns and independent blocks, to the registers that hold C and D."""

_ELEMENTS: Final = {"i8": 4, "fp8": 4, "bf8": 4, "f16": 2, "bf16": 2, "f32": 1, "xf32": 1, "fp4": 8}
"""Elements in one register."""

_E8M0: Final = np.append(np.exp2(np.arange(255.0) - 127), np.nan)
"""Values of the scales' codes (OCP Microscaling Formats 1.0)."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """Which element a lane holds: `groups` groups of lanes split the K dimension among them.

    Attributes:
        rows: of A and C, and columns of B and C.
        depth: K.
        blocks: independent products.
    """

    rows: int
    depth: int
    blocks: int

    @property
    def groups(self) -> int:
        return LANES // (self.rows * self.blocks)

    @property
    def per_lane(self) -> int:
        return self.depth // self.groups

    def operand(self, elements: Array, *, interleaved: bool) -> Array:
        """Arranges [W, 64, elements of a lane] as [W, blocks, rows, K].

        Args:
            elements: of A, or of B transposed.
            interleaved: each lane holds two runs of 16 elements, K / 2 apart (8-bit operands of f8f6f4).
        """
        count = len(elements)
        if self.blocks == 16:
            return elements.reshape(count, 16, self.rows, self.depth)
        if interleaved:
            runs = elements.reshape(count, self.groups, self.rows, 2, 16)
            return runs.transpose(0, 2, 3, 1, 4).reshape(count, 1, self.rows, self.depth)
        lanes = elements.reshape(count, self.groups, self.rows, self.per_lane)
        return lanes.transpose(0, 2, 1, 3).reshape(count, 1, self.rows, self.depth)

    def to_matrix(self, registers: Array) -> Array:
        """Arranges C's registers [n, W, 64] as [W, blocks, rows, columns]."""
        count = registers.shape[1]
        if self.rows == 32:
            parts = registers.reshape(4, 4, count, 2, 32).transpose(2, 0, 3, 1, 4)
        elif self.rows == 16:
            parts = registers.reshape(4, count, 4, 16).transpose(1, 2, 0, 3)
        else:
            parts = registers.reshape(4, count, 16, 4).transpose(1, 2, 0, 3)
        return parts.reshape(count, self.blocks, self.rows, self.rows)

    def from_matrix(self, matrix: Array) -> Array:
        """Undoes `to_matrix`."""
        count = len(matrix)
        if self.rows == 32:
            return matrix.reshape(count, 4, 2, 4, 32).transpose(1, 3, 0, 2, 4).reshape(16, count, LANES)
        if self.rows == 16:
            return matrix.reshape(count, 4, 4, 16).transpose(2, 0, 1, 3).reshape(4, count, LANES)
        return matrix.transpose(2, 0, 1, 3).reshape(4, count, LANES)


def decode_matrix(instruction: Instruction) -> Action:
    """Returns what a matrix instruction does.

    Raises:
        EmulationError: the shape, a type or a modifier is not known.
    """
    match = _NAME.fullmatch(instruction.name)
    if not match:
        raise EmulationError("unknown matrix instruction")
    result, kind = match[2], match[7].removesuffix("_1k")
    rows, columns, depth, blocks = int(match[3]), int(match[4]), int(match[5]), int(match[6] or 1)
    if (rows, columns, blocks) not in _SHAPES:
        raise EmulationError("unknown matrix shape")
    shape = _Shape(rows, depth, blocks)
    target, left, right, addend, *scales = instruction.operands
    kinds = _operand_kinds(instruction, kind)
    read_a = _matrix_reader(instruction, left, shape, kinds[0], interleaved=kind == "f8f6f4" and kinds[0] != "fp4")
    read_b = _matrix_reader(instruction, right, shape, kinds[1], interleaved=kind == "f8f6f4" and kinds[1] != "fp4")
    if match[1]:
        scale_a, scale_b = _scale_readers(instruction, shape, scales)
        read_a, read_b = _scaled(read_a, scale_a), _scaled(read_b, scale_b)
    registers = _SHAPES[rows, columns, blocks]
    read_c = _addend_reader(instruction, addend, shape, result, registers)
    row = instruction.target_row(target, registers)
    dtype: Any = np.float32 if result == "f32" else np.int32

    def action(waves: Waves) -> None:
        product = np.matmul(read_a(waves), read_b(waves).transpose(0, 1, 3, 2))
        if result == "i32":  # exact in float64: at most 2^14 * 64; the sum wraps
            product = product.astype(np.int64)
        total = (product + read_c(waves)).astype(dtype).view(_U32)
        waves.u32[row : row + registers] = shape.from_matrix(total)

    return action


def _operand_kinds(instruction: Instruction, kind: str) -> tuple[str, str]:
    if kind == "f8f6f4":
        codes = {0: "fp8", 1: "bf8", 4: "fp4"}
        chosen = instruction.number("cbsz"), instruction.number("blgp")
        if not set(chosen) <= set(codes):
            raise EmulationError("6-bit matrix operand")
        return codes[chosen[0]], codes[chosen[1]]
    if any(instruction.number(modifier) for modifier in ("cbsz", "abid", "blgp")):
        raise EmulationError("broadcast or negation of a matrix operand")
    if "_" in kind:
        first, second = kind.split("_")
        return first, second
    return kind, kind


def _matrix_reader(
    instruction: Instruction, operand: Operand, shape: _Shape, kind: str, *, interleaved: bool
) -> Reader:
    """Returns a reader of A, or of B transposed: float64[W, blocks, rows, K]."""
    registers = shape.per_lane // _ELEMENTS[kind]
    row = instruction.source_row(operand, registers)
    unpack = _unpacker(kind, {**float8_formats(instruction.layout.arch), "fp4": E2M1})

    def read(waves: Waves) -> Array:
        lanes = np.ascontiguousarray(waves.u32[row : row + registers].transpose(1, 2, 0))
        return shape.operand(unpack(lanes), interleaved=interleaved)

    return read


def _unpacker(kind: str, formats: dict[str, SmallFloat]) -> Callable[[Array], Array]:
    """Returns the function from registers uint32[W, 64, n] to elements float64[W, 64, elements]."""
    if kind == "fp4":
        values = formats[kind].values

        def unpack_nibbles(lanes: Array) -> Array:
            raw = lanes.view(np.uint8)
            nibbles = np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:2], -1)
            return values.take(nibbles)

        return unpack_nibbles
    if kind in formats:
        table = formats[kind].values
        return lambda lanes: table.take(lanes.view(np.uint8))
    if kind == "bf16":
        return lambda lanes: bf16_values(lanes.view(np.uint16)).astype(np.float64)
    if kind == "xf32":
        return lambda lanes: xf32_values(lanes.view(np.float32)).astype(np.float64)
    dtype = {"i8": np.int8, "f16": np.float16, "f32": np.float32}[kind]
    return lambda lanes: lanes.view(dtype).astype(np.float64)


def _addend_reader(instruction: Instruction, operand: Operand, shape: _Shape, result: str, registers: int) -> Reader:
    wide: Any = np.float64 if result == "f32" else np.int64
    dtype: Any = np.float32 if result == "f32" else np.int32
    if operand.is_constant:
        value = constant(operand, result).astype(wide)
        return lambda _waves: value
    row = instruction.source_row(operand, registers)
    return lambda waves: shape.to_matrix(waves.u32[row : row + registers].view(dtype)).astype(wide)


def _scale_readers(instruction: Instruction, shape: _Shape, operands: list[Operand]) -> list[Reader]:
    """Returns readers of A's and B's scales, [W, 1, rows, K]: e8m0, one byte of a register for 32 elements of K."""
    if len(operands) != 2:
        raise EmulationError("two scales expected")
    low, high = instruction.numbers("op_sel", (0, 0, 0)), instruction.numbers("op_sel_hi", (0, 0, 0))
    return [
        _scale_reader(instruction.read(operand, "u32"), shape, low[i] + 2 * high[i])
        for i, operand in enumerate(operands)
    ]


def _scale_reader(bits: Reader, shape: _Shape, byte: int) -> Reader:
    def read(waves: Waves) -> Array:
        codes = (waves.spread(bits(waves)) >> _U32(8 * byte)) & _U32(255)
        lanes = _E8M0.take(codes).reshape(waves.count, shape.groups, shape.rows).transpose(0, 2, 1)
        return np.repeat(lanes, shape.per_lane, axis=2)[:, None]

    return read


def _scaled(matrix: Reader, scale: Reader) -> Reader:
    return lambda waves: matrix(waves) * scale(waves)
