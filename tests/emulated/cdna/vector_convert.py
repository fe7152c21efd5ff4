"""Conversions from and to 8-bit and 4-bit floats, with and without a scale."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.instruction import Action, Array, Instruction, Reader
from tests.emulated.cdna.number_formats import (
    E2M1,
    SmallFloat,
    bf16_bits,
    bf16_values,
    f16_bits,
    float8_formats,
)
from tests.emulated.cdna.operands import Operand
from tests.emulated.cdna.waves import Waves

_U32 = np.uint32
_SATURATE: Final = _U32(23)
"""Bit of the MODE register (FP16_OVFL) that makes narrowing conversions saturate."""

_NARROW: Final = re.compile(r"v_cvt_pk_(fp8|bf8)_f32")
_WIDEN: Final = re.compile(r"v_cvt_(pk_)?f32_(fp8|bf8)")
_SCALED: Final = re.compile(r"v_cvt_scalef32_(pk_)?(f32|f16|bf16|fp8|bf8|fp4)_(f32|f16|bf16|fp8|bf8|fp4)")
_PARTS: Final = {"DWORD": 0, "BYTE_0": 0, "BYTE_1": 8, "BYTE_2": 16, "BYTE_3": 24, "WORD_0": 0, "WORD_1": 16}


def is_conversion(name: str) -> bool:
    """Returns whether `decode_convert` is responsible for an instruction."""
    return any(pattern.fullmatch(name) for pattern in (_NARROW, _WIDEN, _SCALED))


def decode_convert(instruction: Instruction) -> Action:
    """Returns what a conversion does."""
    narrow, widen = _NARROW.fullmatch(instruction.name), _WIDEN.fullmatch(instruction.name)
    if narrow:
        sources = [instruction.read(operand, "f32") for operand in instruction.operands[1:3]]
        return _pack_bytes(instruction, float8_formats(instruction.layout.arch)[narrow[1]], sources)
    if widen:
        return _widen(instruction, float8_formats(instruction.layout.arch)[widen[2]], packed=bool(widen[1]))
    scaled = _SCALED.fullmatch(instruction.name)
    if not scaled:
        raise EmulationError("unknown conversion")
    packed, to, source = scaled.groups()
    if to in ("fp8", "bf8", "fp4"):
        return _narrow_scaled(instruction, to, source, packed=bool(packed))
    return _widen_scaled(instruction, to, source, packed=bool(packed))


def _saturates(waves: Waves) -> Array:
    return ((waves.mode >> _SATURATE) & _U32(1)).astype(bool)[:, None]


def _pack_bytes(instruction: Instruction, format_: SmallFloat, sources: list[Reader]) -> Action:
    """Writes two codes to one half of the destination (op_sel's last element: the high one); the other half stays."""
    select = instruction.numbers("op_sel")
    shift = _U32(16 if select and select[-1] else 0)
    kept = _U32(0xFFFF if select and select[-1] else 0xFFFF0000)
    row = instruction.target_row(instruction.operands[0])
    first, second = sources

    def action(waves: Waves) -> None:
        saturate = _saturates(waves)
        low, high = format_.encode(np.stack(np.broadcast_arrays(first(waves), second(waves))), saturate)
        waves.write(row, (waves.u32[row] & kept) | ((low | (high << _U32(8))) << shift))

    return action


def _widen(instruction: Instruction, format_: SmallFloat, *, packed: bool) -> Action:
    table = format_.values.astype(np.float32).view(_U32)
    source = instruction.read(instruction.operands[1], "u32")
    shift = _U32(_PARTS[instruction.word("src0_sel", "DWORD")])
    if instruction.has("op_sel"):
        word, byte = instruction.numbers("op_sel", (0, 0))[:2]
        shift = _U32(16 * word if packed else 8 * (word + 2 * byte))
    row = instruction.target_row(instruction.operands[0], 2 if packed else 1)

    def action(waves: Waves) -> None:
        bits = source(waves) >> shift
        waves.write(row, table[bits & _U32(255)])
        if packed:
            waves.write(row + 1, table[(bits >> _U32(8)) & _U32(255)])

    return action


def _scale_exponent(instruction: Instruction, operand: Operand) -> Reader:
    """Reads the exponent of a float32 scale, whose mantissa is ignored."""
    bits = instruction.read(operand, "u32")
    return lambda waves: ((bits(waves) >> _U32(23)) & _U32(255)).astype(np.int32) - 127


def _halves(instruction: Instruction, operand: Operand, source: str, count: int) -> list[Reader]:
    """Returns readers of the f16 or bf16 values in a register, as float32."""
    if source == "f16":
        return [_as_float32(instruction.read(operand, "f16", high=bool(index))) for index in range(count)]
    return [_bf16_reader(instruction.read(operand, "u16", high=bool(index))) for index in range(count)]


def _as_float32(reader: Reader) -> Reader:
    return lambda waves: reader(waves).astype(np.float32)


def _bf16_reader(reader: Reader) -> Reader:
    return lambda waves: bf16_values(reader(waves))


def _narrow_scaled(instruction: Instruction, to: str, source: str, *, packed: bool) -> Action:
    """v_cvt_scalef32_pk_*: element / 2^e, e the scale's exponent, rounded to the small format."""
    if not packed:
        raise EmulationError("narrowing conversion of one value")
    operands = instruction.operands
    if source == "f32":
        values = [instruction.read(operand, "f32") for operand in operands[1:3]]
    elif source in ("f16", "bf16"):
        values = _halves(instruction, operands[1], source, 2)
    else:
        raise EmulationError("unknown conversion")
    exponent = _scale_exponent(instruction, operands[-1])
    sources = [_divided(value, exponent) for value in values]
    if to != "fp4":
        return _pack_bytes(instruction, float8_formats(instruction.layout.arch)[to], sources)
    select = instruction.numbers("op_sel", (0, 0, 0, 0))
    shift = _U32(8 * (select[2] + 2 * select[3]))
    row = instruction.target_row(operands[0])

    def action(waves: Waves) -> None:
        low, high = (E2M1.encode(read(waves), saturate=True) for read in sources)
        waves.write(row, (waves.u32[row] & ~(_U32(255) << shift)) | ((low | (high << _U32(4))) << shift))

    return action


def _divided(value: Reader, exponent: Reader) -> Reader:
    return lambda waves: np.ldexp(value(waves).astype(np.float64), -exponent(waves))


def _widen_scaled(instruction: Instruction, to: str, source: str, *, packed: bool) -> Action:
    """v_cvt_scalef32_*: element * 2^e, e the scale's exponent."""
    formats = {**float8_formats(instruction.layout.arch), "fp4": E2M1}
    if source not in formats or (to != "f32" and not packed):
        raise EmulationError("unknown conversion")
    table, width, count = formats[source].values, 4 if source == "fp4" else 8, 2 if packed else 1
    bits = instruction.read(instruction.operands[1], "u32")
    exponent = _scale_exponent(instruction, instruction.operands[2])
    low, high = instruction.numbers("op_sel", (0, 0))[:2]
    shift = 8 * (low + 2 * high) if source == "fp4" or not packed else 16 * low
    row = instruction.target_row(instruction.operands[0], count if to == "f32" else 1)

    def element(waves: Waves, index: int) -> Array:
        code = (bits(waves) >> _U32(shift + width * index)) & _U32((1 << width) - 1)
        result: Array = np.ldexp(table[code], exponent(waves)).astype(np.float32)
        return result

    def action(waves: Waves) -> None:
        values = [element(waves, index) for index in range(count)]
        if to == "f32":
            for index, value in enumerate(values):
                waves.write(row + index, value.view(_U32))
        else:
            low_bits, high_bits = (bf16_bits(value) if to == "bf16" else f16_bits(value) for value in values)
            waves.write(row, low_bits | (high_bits << _U32(16)))

    return action
