"""The scalar ALU: moves, arithmetic, comparisons, branches. One value per wave; SCC holds a condition."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.instruction import BARRIER, END, EXEC_OPERAND, Action, Branch, Instruction, Reader
from tests.emulated.cdna.operands import signed16
from tests.emulated.cdna.scalar_operations import SAVE_EXEC, SCALAR_OPERATIONS, ScalarOperation, overflow_of_add, signed
from tests.emulated.cdna.waves import EXEC, VCC, Waves

Array = NDArray[Any]
_U32, _U64 = np.uint32, np.uint64

_WITHOUT_EFFECT: Final = frozenset(
    [
        "s_waitcnt",
        "s_waitcnt_depctr",
        "s_nop",
        "s_setprio",
        "s_sleep",
        "s_code_end",
        "s_icache_inv",
        "s_dcache_wb",
        "s_dcache_inv",
        "s_sethalt",
        "s_ttracedata",
        "s_sched_barrier",
    ]
)
"""Memory is immediate and there is no timing, so these do nothing."""

_COMPARE: Final = re.compile(r"s_cmp(k?)_(eq|lg|gt|ge|lt|le)_([iu])(32|64)")
_COMPARISONS: Final[dict[str, Callable[[Array, Array], Array]]] = {
    "eq": np.equal,
    "lg": np.not_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
}


def decode_scalar(instruction: Instruction) -> Action:
    """Returns what a scalar ALU instruction does.

    Raises:
        EmulationError: the instruction is not known.
    """
    name = instruction.name
    if name in _WITHOUT_EFFECT:
        return lambda _waves: None
    if name in ("s_endpgm", "s_barrier"):
        outcome = END if name == "s_endpgm" else BARRIER
        return lambda _waves: outcome
    if name == "s_branch" or name.startswith("s_cbranch_"):
        return _branch(instruction)
    if name in ("s_setreg_imm32_b32", "s_setreg_b32"):
        return _set_mode(instruction)
    if name.startswith("s_cmp"):
        return _compare(instruction)
    if name in ("s_bitcmp0_b32", "s_bitcmp1_b32"):
        return _compare_bit(instruction)
    if name.endswith("_saveexec_b64"):
        return _save_exec(instruction)
    special = {
        "s_movk_i32": _immediate,
        "s_addk_i32": _immediate,
        "s_mulk_i32": _immediate,
        "s_cmovk_i32": _immediate,
        "s_addc_u32": _with_carry,
        "s_subb_u32": _with_carry,
        "s_cselect_b32": _select,
        "s_cselect_b64": _select,
        "s_cmov_b32": _select,
        "s_cmov_b64": _select,
    }.get(name)
    if special:
        return special(instruction)
    entry = SCALAR_OPERATIONS.get(name[2:])
    if entry is None:
        raise EmulationError("unknown scalar instruction")
    return _from_table(instruction, entry)


def _from_table(instruction: Instruction, entry: ScalarOperation) -> Action:
    function, condition, widths, width = entry
    target = instruction.target_scalar(instruction.operands[0], width // 32)
    sources = instruction.operands[1:]
    if len(sources) != len(widths):
        raise EmulationError(f"{len(widths)} sources expected")
    readers = [instruction.read_scalar(source, size) for source, size in zip(sources, widths, strict=True)]
    if condition is not None:
        instruction.sets_condition()

    def action(waves: Waves) -> None:
        values = [reader(waves) for reader in readers]
        result = function(*values)
        if condition is not None:  # before the write, which may change a source
            waves.condition = _spread(waves, condition(result, *values))
        if width == 32:
            waves.write_scalar(target, result)
        else:
            waves.write_scalar_wide(target, result)

    return action


def _spread(waves: Waves, condition: Array) -> Array:
    """Gives a condition that may come from constants alone the shape [W]."""
    return condition if len(condition) == waves.count else np.repeat(condition, waves.count)


def _branch(instruction: Instruction) -> Action:
    label = instruction.operands[0].text
    if label not in instruction.layout.labels:
        raise EmulationError(f"unknown label {label}")
    target = instruction.layout.labels[label]
    kind = instruction.name.removeprefix("s_cbranch_")
    if kind == "s_branch":
        outcome = Branch(target, None)
        return lambda _waves: outcome
    if kind in ("scc0", "scc1"):
        instruction.uses_condition()
        if kind == "scc1":
            return lambda waves: Branch(target, waves.condition)
        return lambda waves: Branch(target, ~waves.condition)
    register = {"vcc": VCC, "exec": EXEC}.get(kind.removesuffix("nz").removesuffix("z"))
    if register is None:
        raise EmulationError("unknown branch")
    instruction.reads |= 3 << register
    pair = register // 2
    if kind.endswith("nz"):
        return lambda waves: Branch(target, waves.pairs[pair] != 0)
    return lambda waves: Branch(target, waves.pairs[pair] == 0)


def _set_mode(instruction: Instruction) -> Action:
    """s_setreg: writes a field of the MODE register (the only one that kernels set)."""
    field = re.fullmatch(r"hwreg\((\w+)(?:,\s*(\d+),\s*(\d+))?\)", instruction.operands[0].text)
    if not field or field[1] not in ("HW_REG_MODE", "1"):
        raise EmulationError("only HW_REG_MODE can be set")
    offset, width = (int(field[2]), int(field[3])) if field[2] else (0, 32)
    mask = ((1 << width) - 1) << offset
    source = instruction.read_scalar(instruction.operands[1])

    def action(waves: Waves) -> None:
        waves.mode = (waves.mode & _U32(~mask & 0xFFFFFFFF)) | ((source(waves) << _U32(offset)) & _U32(mask))

    return action


def _compare(instruction: Instruction) -> Action:
    match = _COMPARE.fullmatch(instruction.name)
    if not match:
        raise EmulationError("unknown comparison")
    compare, width, is_signed = _COMPARISONS[match[2]], int(match[4]), match[3] == "i"
    first, second = instruction.operands
    if match[1]:
        value = signed16(second) if is_signed else second.integer & 0xFFFF
        second = replace(second, integer=value)
    left, right = instruction.read_scalar(first, width), instruction.read_scalar(second, width)
    instruction.sets_condition()
    if is_signed:
        return _setting_condition(lambda waves: compare(signed(left(waves)), signed(right(waves))))
    return _setting_condition(lambda waves: compare(left(waves), right(waves)))


def _setting_condition(reader: Reader) -> Action:
    def action(waves: Waves) -> None:
        waves.condition = _spread(waves, reader(waves))

    return action


def _compare_bit(instruction: Instruction) -> Action:
    source, index = (instruction.read_scalar(operand) for operand in instruction.operands)
    wanted = _U32(instruction.name == "s_bitcmp1_b32")
    instruction.sets_condition()
    return _setting_condition(lambda waves: ((source(waves) >> (index(waves) & _U32(31))) & _U32(1)) == wanted)


def _save_exec(instruction: Instruction) -> Action:
    """s_*_saveexec_b64: saves EXEC, then combines it with the source; SCC says whether a lane is left."""
    name = instruction.name.removeprefix("s_").removesuffix("_saveexec_b64")
    if name not in SAVE_EXEC:
        raise EmulationError("unknown saveexec")
    function = SAVE_EXEC[name]
    target = instruction.target_scalar(instruction.operands[0], 2)
    source = instruction.read_scalar(instruction.operands[1], 64)
    current = instruction.read_scalar(EXEC_OPERAND, 64)
    instruction.sets_condition()

    def action(waves: Waves) -> None:
        old = current(waves)
        new = function(source(waves), old)
        waves.write_scalar_wide(target, old)
        waves.write_scalar_wide(EXEC, new)
        waves.condition = np.not_equal(new, 0)

    return action


def _immediate(instruction: Instruction) -> Action:
    target = instruction.target_scalar(instruction.operands[0])
    value = np.array([signed16(instruction.operands[1]) & 0xFFFFFFFF], _U32)
    if instruction.name == "s_movk_i32":
        return lambda waves: waves.write_scalar(target, value)
    current = instruction.read_scalar(instruction.operands[0])
    if instruction.name == "s_mulk_i32":
        return lambda waves: waves.write_scalar(target, current(waves) * value)
    if instruction.name == "s_cmovk_i32":
        instruction.uses_condition()
        return lambda waves: waves.write_scalar(target, np.where(waves.condition, value, current(waves)))
    instruction.sets_condition()

    def add(waves: Waves) -> None:
        old = current(waves).copy()
        result = old + value
        waves.condition = overflow_of_add(result, old, value)
        waves.write_scalar(target, result)

    return add


def _with_carry(instruction: Instruction) -> Action:
    target = instruction.target_scalar(instruction.operands[0])
    left, right = (instruction.read_scalar(operand) for operand in instruction.operands[1:])
    sign = 1 if instruction.name == "s_addc_u32" else -1
    instruction.uses_condition()
    instruction.sets_condition()

    def action(waves: Waves) -> None:
        carry = waves.condition.astype(np.int64)
        wide = left(waves).astype(np.int64) + sign * (right(waves).astype(np.int64) + carry)
        waves.condition = (wide >> 32) != 0
        waves.write_scalar(target, (wide & 0xFFFFFFFF).astype(_U32))

    return action


def _select(instruction: Instruction) -> Action:
    """s_cselect: the first source where SCC, else the second; s_cmov: the source where SCC, else nothing."""
    width = 32 if instruction.name.endswith("32") else 64
    target = instruction.target_scalar(instruction.operands[0], width // 32)
    sources = [instruction.read_scalar(operand, width) for operand in instruction.operands[1:]]
    if len(sources) == 1:
        sources.append(instruction.read_scalar(instruction.operands[0], width))
    chosen, other = sources
    instruction.uses_condition()
    if width == 32:
        return lambda waves: waves.write_scalar(target, np.where(waves.condition, chosen(waves), other(waves)))
    return lambda waves: waves.write_scalar_wide(target, np.where(waves.condition, chosen(waves), other(waves)))
