"""Vector instructions that read or write a mask: comparisons, selection, carries, the steps of a division."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import numpy as np

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.float_arithmetic import division_scale, division_scale_back, float_class
from tests.emulated.cdna.instruction import VCC_OPERAND, Action, Array, Instruction
from tests.emulated.cdna.vector_sources import VectorOperands
from tests.emulated.cdna.waves import EXEC, Waves

_U32 = np.uint32
_COMPARE: Final = re.compile(r"v_cmp(x?)_(\w+?)_([fiu](?:16|32|64))")


def _ordered(a: Array, b: Array) -> Array:
    return ~(np.isnan(a) | np.isnan(b))


_COMPARISONS: Final[dict[str, Callable[[Array, Array], Array]]] = {
    "f": lambda a, b: (a != a) & (b != b) & False,  # noqa: PLR0124 - the shape of both
    "lt": np.less,
    "eq": np.equal,
    "le": np.less_equal,
    "gt": np.greater,
    "lg": lambda a, b: (a < b) | (a > b),
    "ne": np.not_equal,
    "ge": np.greater_equal,
    "o": _ordered,
    "u": lambda a, b: ~_ordered(a, b),
    "nge": lambda a, b: ~(a >= b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
    "ngt": lambda a, b: ~(a > b),
    "nle": lambda a, b: ~(a <= b),
    "neq": np.not_equal,
    "nlt": lambda a, b: ~(a < b),
    "t": lambda a, b: (a == a) | (b == b) | True,  # noqa: PLR0124
    "tru": lambda a, b: (a == a) | (b == b) | True,  # noqa: PLR0124
}


def decode_compare(instruction: Instruction) -> Action:
    """v_cmp_*: writes one bit per active lane, 0 for the others; v_cmpx_* writes EXEC too."""
    operands = instruction.operands
    target_operand = operands[0] if len(operands) == 3 else VCC_OPERAND  # the short encoding writes VCC
    first, second = operands[-2:]
    vector = VectorOperands(instruction)
    if vector.shuffle and not (vector.shuffle.zero_fill and vector.shuffle.enabled.all()):
        raise EmulationError("comparison with lanes that DPP keeps from writing")
    target = instruction.target_scalar(target_operand, 2)
    if instruction.name == "v_cmp_class_f32":
        value, classes = vector.source(0, first, "f32"), vector.source(1, second, "u32")
        return lambda waves: waves.write_mask(target, _in_class(value(waves), classes(waves)))
    match = _COMPARE.fullmatch(instruction.name)
    if not match or match[2] not in _COMPARISONS:
        raise EmulationError("unknown comparison")
    compare = _COMPARISONS[match[2]]
    left, right = vector.source(0, first, match[3]), vector.source(1, second, match[3])
    if not match[1]:
        return lambda waves: waves.write_mask(target, compare(left(waves), right(waves)))

    def restrict(waves: Waves) -> None:
        waves.write_mask(target, compare(left(waves), right(waves)))
        if target != EXEC:
            waves.write_scalar_wide(EXEC, waves.pairs[target // 2])

    return restrict


def _in_class(values: Array, classes: Array) -> Array:
    result: Array = ((classes >> float_class(values)) & _U32(1)) == 1
    return result


def _select(instruction: Instruction) -> Action:
    """v_cndmask_b32: the second source where the mask's bit is set, else the first."""
    target, first, second, *rest = instruction.operands
    mask = instruction.read_mask(rest[0] if rest else VCC_OPERAND)
    kind = "f32" if first.negate or first.absolute or second.negate or second.absolute else "u32"
    vector = VectorOperands(instruction)
    clear, chosen = vector.source(0, first, kind), vector.source(1, second, kind)
    write = vector.writer(target, "u32", 2)
    return lambda waves: write(waves, np.where(mask(waves), chosen(waves), clear(waves)).view(_U32))


def _with_carry(instruction: Instruction) -> Action:
    """v_add_co, v_addc_co and their subtracting kin: the carry (borrow) goes to a mask."""
    target, carry_out, first, second, *rest = instruction.operands
    vector = VectorOperands(instruction)
    left, right = vector.source(0, first, "u32"), vector.source(1, second, "u32")
    carry_in = instruction.read_mask(rest[0]) if rest else None
    out = instruction.target_scalar(carry_out, 2)
    write = vector.writer(target, "u32", 2)
    subtract, reverse = "sub" in instruction.name, "rev" in instruction.name

    def action(waves: Waves) -> None:
        x, y = left(waves).astype(np.int64), right(waves).astype(np.int64)
        if reverse:
            x, y = y, x
        if carry_in is not None:
            y = y + carry_in(waves)
        wide = x - y if subtract else x + y
        waves.write_mask(out, (wide >> 32) != 0)
        write(waves, (wide & 0xFFFFFFFF).astype(_U32))

    return action


def _multiply_add_wide(instruction: Instruction) -> Action:
    """v_mad_u64_u32, v_mad_i64_i32: a 32 x 32 bit product plus a 64-bit addend, and the unsigned carry out."""
    target, carry_out, first, second, third = instruction.operands
    kind, wide = ("u32", np.uint64) if "u64" in instruction.name else ("i32", np.int64)
    left, right = instruction.read(first, kind), instruction.read(second, kind)
    addend = instruction.read(third, "u64")
    row = instruction.target_row(target, 2)
    out = instruction.target_scalar(carry_out, 2)

    def action(waves: Waves) -> None:
        product = (left(waves).astype(wide) * right(waves).astype(wide)).view(np.uint64)
        total = product + addend(waves)
        waves.write_mask(out, total < product)
        waves.write_wide(row, total)

    return action


def _division_scale(instruction: Instruction) -> Action:
    target, scaled, *sources = instruction.operands
    a, b, c = (instruction.read(source, "f32") for source in sources)
    row, mask = instruction.target_row(target), instruction.target_scalar(scaled, 2)

    def action(waves: Waves) -> None:
        values, was_scaled = division_scale(a(waves), b(waves), c(waves))
        waves.write_mask(mask, was_scaled)
        waves.write(row, values.view(_U32))

    return action


def _division_scale_back(instruction: Instruction) -> Action:
    target, *sources = instruction.operands
    a, b, c = (instruction.read(source, "f32") for source in sources)
    mask = instruction.read_mask(VCC_OPERAND)
    row = instruction.target_row(target)
    return lambda waves: waves.write(row, division_scale_back(a(waves), b(waves), c(waves), mask(waves)).view(_U32))


def _any_logic(instruction: Instruction) -> Action:
    """v_bitop3: any function of three bits, given by its truth table (first source: bit 2 of the index)."""
    target, *operands = instruction.operands
    readers = [instruction.read(operand, "u32") for operand in operands]
    truth = instruction.number("bitop3")
    width = _U32(0xFFFF if instruction.name.endswith("b16") else 0xFFFFFFFF)
    row = instruction.target_row(target)

    def action(waves: Waves) -> None:
        a, b, c = (reader(waves) for reader in readers)
        result: Array = np.zeros((1, 1), _U32)
        for case in range(8):
            if truth >> case & 1:
                result = result | ((a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c))
        waves.write(row, result & width)

    return action


COMPARE_DECODERS: Final[dict[str, Callable[[Instruction], Action]]] = {
    "v_cndmask_b32": _select,
    "v_mad_u64_u32": _multiply_add_wide,
    "v_mad_i64_i32": _multiply_add_wide,
    "v_div_scale_f32": _division_scale,
    "v_div_fmas_f32": _division_scale_back,
    "v_bitop3_b16": _any_logic,
    "v_bitop3_b32": _any_logic,
    **{f"v_{kind}_co_u32": _with_carry for kind in ("add", "sub", "subrev", "addc", "subb", "subbrev")},
}
