"""Packed instructions (two values per register or register pair), mixed-precision multiply-add, dot products."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.float_arithmetic import fma32
from tests.emulated.cdna.instruction import Action, Array, Instruction, Reader
from tests.emulated.cdna.number_formats import bf16_values, f16_bits
from tests.emulated.cdna.operands import Operand
from tests.emulated.cdna.operations import DTYPES
from tests.emulated.cdna.waves import Waves

_U32 = np.uint32
_KINDS: Final = {"f16": "f16", "u16": "u16", "i16": "i16", "b16": "u16"}
_PACKED_32: Final[dict[str, Callable[..., Array]]] = {
    "v_pk_mul_f32": np.multiply,
    "v_pk_add_f32": np.add,
    "v_pk_fma_f32": fma32,
    "v_pk_mov_b32": np.positive,
}
_DOT: Final = re.compile(r"v_dot(\d)(c?)_(f32|i32)_(f16|bf16|i8|i32_i8)")


def _shift_count(count: Array) -> Array:
    result: Array = count & count.dtype.type(15)
    return result


def _fma_in_type(a: Array, b: Array, c: Array) -> Array:
    return fma32(*(x.astype(np.float32) for x in (a, b, c))).astype(a.dtype)


def _packed_16(operation: str, *, is_float: bool) -> Callable[..., Array] | None:
    table: dict[str, Callable[..., Array]] = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "mul_lo": np.multiply,
        "max": np.fmax if is_float else np.maximum,
        "min": np.fmin if is_float else np.minimum,
        "fma": _fma_in_type,
        "mad": lambda a, b, c: a * b + c,
        "lshlrev": lambda a, b: b << _shift_count(a),
        "lshrrev": lambda a, b: b >> _shift_count(a),
        "ashrrev": lambda a, b: b >> _shift_count(a),
    }
    return table.get(operation)


def decode_packed(instruction: Instruction) -> Action:
    """v_pk_*: op_sel and op_sel_hi choose which half of each source the low and the high result read."""
    if instruction.name.endswith("f32") or instruction.name == "v_pk_mov_b32":
        return _decode_packed_32(instruction)
    name, operands = instruction.name, instruction.operands
    if name == "v_pk_fmac_f16":
        name, operands = "v_pk_fma_f16", (*operands, operands[0])
    operation, _, suffix = name.removeprefix("v_pk_").rpartition("_")
    function = _packed_16(operation, is_float=suffix == "f16")
    if function is None or suffix not in _KINDS:
        raise EmulationError("unknown packed instruction")
    kind = _KINDS[suffix]
    dtype = DTYPES[kind]

    def half(select: tuple[int, ...], negate: tuple[int, ...]) -> Reader:
        sources = [instruction.read(source, kind, high=bool(select[i])) for i, source in enumerate(operands[1:])]
        signs = [bool(sign) for sign in negate]

        def compute(waves: Waves) -> Array:
            values = [-read(waves) if sign else read(waves) for read, sign in zip(sources, signs, strict=True)]
            result: Array = function(*values).astype(dtype, copy=False).view(np.uint16).astype(_U32)
            return result

        return compute

    low, high = _halves(instruction, len(operands) - 1, half)
    row = instruction.target_row(operands[0])
    return lambda waves: waves.write(row, low(waves) | (high(waves) << _U32(16)))


def _halves(
    instruction: Instruction, sources: int, half: Callable[[tuple[int, ...], tuple[int, ...]], Reader]
) -> tuple[Reader, Reader]:
    zeros, ones = (0,) * sources, (1,) * sources
    low = half(instruction.numbers("op_sel", zeros), instruction.numbers("neg_lo", zeros))
    high = half(instruction.numbers("op_sel_hi", ones), instruction.numbers("neg_hi", zeros))
    return low, high


def _decode_packed_32(instruction: Instruction) -> Action:
    name, operands = instruction.name, instruction.operands
    if name not in _PACKED_32:
        raise EmulationError("unknown packed instruction")
    function = _PACKED_32[name]
    kind = "u32" if name == "v_pk_mov_b32" else "f32"

    def half(select: tuple[int, ...], negate: tuple[int, ...]) -> Reader:
        sources = [
            instruction.read(_register_of_pair(operand, select[i], negate=bool(negate[i])), kind)
            for i, operand in enumerate(operands[1:])
        ]
        return lambda waves: function(*[read(waves) for read in sources])

    if name == "v_pk_mov_b32":  # the low result is the first source, the high one the second
        low_of, high_of = instruction.numbers("op_sel", (0, 0))
        instruction.ignore("op_sel_hi")
        low = instruction.read(_register_of_pair(operands[1], low_of), kind)
        high = instruction.read(_register_of_pair(operands[2], high_of), kind)
    else:
        low, high = _halves(instruction, len(operands) - 1, half)
    row = instruction.target_row(operands[0], 2)

    def action(waves: Waves) -> None:
        first, second = low(waves), np.array(high(waves))  # a copy: the first write may change what it views
        waves.write(row, first.view(_U32))
        waves.write(row + 1, second.view(_U32))

    return action


def _register_of_pair(operand: Operand, which: int, *, negate: bool = False) -> Operand:
    if operand.is_constant:
        if which:
            raise EmulationError("high half of a constant")
        return operand
    if operand.count != 2:
        raise EmulationError(f"{operand.text} is no pair")
    part = operand.part(which)
    return Operand(part.text, part.kind, part.index, negate=negate)


def decode_mixed(instruction: Instruction) -> Action:
    """v_fma_mix_f32 and its half-writing forms: op_sel_hi makes a source f16, op_sel then takes its high half."""
    name = instruction.name
    if name not in ("v_fma_mix_f32", "v_mad_mix_f32", "v_fma_mixlo_f16", "v_fma_mixhi_f16"):
        raise EmulationError("unknown mixed-precision instruction")
    target, *operands = instruction.operands
    is_half = instruction.numbers("op_sel_hi", (0, 0, 0))
    high = instruction.numbers("op_sel", (0, 0, 0))
    readers = [
        instruction.read(operand, "f16" if is_half[i] else "f32", high=bool(is_half[i] and high[i]))
        for i, operand in enumerate(operands)
    ]
    row = instruction.target_row(target)

    def compute(waves: Waves) -> Array:
        return fma32(*[reader(waves).astype(np.float32) for reader in readers])

    if name.endswith("f32"):
        return lambda waves: waves.write(row, compute(waves).view(_U32))
    if "lo" in name:
        return lambda waves: waves.write(row, (waves.u32[row] & _U32(0xFFFF0000)) | f16_bits(compute(waves)))
    return lambda waves: waves.write(row, (waves.u32[row] & _U32(0xFFFF)) | (f16_bits(compute(waves)) << _U32(16)))


def _element(bits: Array, index: int, kind: str) -> Array:
    """Returns element `index` of packed values, wide enough for an exact dot product."""
    if kind == "f16":
        return (bits >> _U32(16 * index)).astype(np.uint16).view(np.float16).astype(np.float64)
    if kind == "bf16":
        return bf16_values(bits >> _U32(16 * index) & _U32(0xFFFF)).astype(np.float64)
    return (bits >> _U32(8 * index)).astype(np.uint8).view(np.int8).astype(np.int64)


def decode_dot(instruction: Instruction) -> Action:
    """v_dot2, v_dot4: sum of products plus the third source (for v_dot2c, v_dot4c the destination)."""
    match = _DOT.fullmatch(instruction.name)
    if not match:
        raise EmulationError("unknown dot product")
    count, kind = int(match[1]), match[4]
    target, *operands = instruction.operands
    if match[2]:
        operands.append(target)
    first, second = (instruction.read(operand, "u32") for operand in operands[:2])
    addend = instruction.read(operands[2], match[3])
    row = instruction.target_row(target)
    dtype = DTYPES[match[3]]

    def action(waves: Waves) -> None:
        a, b = first(waves), second(waves)
        total: Any = addend(waves).astype(np.float64 if dtype.kind == "f" else np.int64)
        for index in range(count):
            total = total + _element(a, index, kind) * _element(b, index, kind)
        waves.write(row, total.astype(dtype).view(_U32))

    return action
