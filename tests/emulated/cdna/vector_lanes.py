"""Vector instructions that move data between lanes, or between lanes and scalar registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.instruction import Action, Array, Instruction
from tests.emulated.cdna.integer_arithmetic import count_ones
from tests.emulated.cdna.waves import LANES, Waves

_LANE: Final = np.arange(LANES)
_U32, _U64 = np.uint32, np.uint64


def _read_first_lane(instruction: Instruction) -> Action:
    """v_readfirstlane_b32: the lowest active lane's value (lane 0 where none is active)."""
    target = instruction.target_scalar(instruction.operands[0])
    source = instruction.read(instruction.operands[1], "u32")

    def action(waves: Waves) -> None:
        values = waves.spread(source(waves))
        if waves.all_active:
            waves.write_scalar(target, values[:, 0])
        else:
            waves.write_scalar(target, values[np.arange(waves.count), np.argmax(waves.active, axis=1)])

    return action


def _read_lane(instruction: Instruction) -> Action:
    target = instruction.target_scalar(instruction.operands[0])
    source = instruction.read(instruction.operands[1], "u32")
    lane = instruction.read_scalar(instruction.operands[2])

    def action(waves: Waves) -> None:
        values = waves.spread(source(waves))
        waves.write_scalar(target, values[np.arange(waves.count), lane(waves) & _U32(LANES - 1)])

    return action


def _write_lane(instruction: Instruction) -> Action:
    """v_writelane_b32: ignores EXEC; the other lanes keep their values."""
    row = instruction.target_row(instruction.operands[0])
    source, lane = (instruction.read_scalar(operand) for operand in instruction.operands[1:])

    def action(waves: Waves) -> None:
        waves.u32[row][np.arange(waves.count), lane(waves) & _U32(LANES - 1)] = source(waves)

    return action


def _count_lanes_below(instruction: Instruction) -> Action:
    """v_mbcnt_lo/hi: counts the mask's bits of lower lanes (0-31 or 32-63), plus the second source."""
    mask, addend = (instruction.read(operand, "u32") for operand in instruction.operands[1:])
    row = instruction.target_row(instruction.operands[0])
    below = (_U64(1) << _LANE.astype(_U64)) - _U64(1)
    half = (below if "_lo_" in instruction.name else below >> _U64(32)).astype(_U32)[None]
    return lambda waves: waves.write(row, count_ones(mask(waves) & half) + addend(waves))


def _swap_halves(instruction: Instruction) -> Action:
    """v_permlane32_swap, v_permlane16_swap: odd groups of 32 (16) lanes of the first and even ones of the second trade.

    Raises:
        EmulationError: at run time, if a lane is inactive.
    """
    first, second = instruction.operands
    rows = instruction.source_row(first), instruction.source_row(second)
    instruction.target_row(first)
    instruction.target_row(second)
    group = 32 if "permlane32" in instruction.name else 16

    def action(waves: Waves) -> None:
        if not waves.all_active:
            raise EmulationError("lane swap with inactive lanes")
        x, y = (waves.u32[row].reshape(waves.count, -1, 2, group) for row in rows)
        odd = x[:, :, 1].copy()
        x[:, :, 1] = y[:, :, 0]
        y[:, :, 0] = odd

    return action


def _swap(instruction: Instruction) -> Action:
    first, second = (instruction.source_row(operand) for operand in instruction.operands)

    def action(waves: Waves) -> None:
        x, y = waves.u32[first].copy(), waves.u32[second].copy()
        waves.write(first, y)
        waves.write(second, x)

    return action


def decode_permute(instruction: Instruction) -> Action:
    """ds_bpermute_b32 (reads from the lane that the address names), ds_permute_b32 (writes to it).

    Addresses are lane numbers times 4. Inactive lanes give 0.
    """
    address, source = (instruction.read(operand, "u32") for operand in instruction.operands[1:])
    row = instruction.target_row(instruction.operands[0])
    offset = _U32(instruction.number("offset"))
    backward = instruction.name == "ds_bpermute_b32"

    def action(waves: Waves) -> None:
        wave = np.arange(waves.count)[:, None]
        lane = waves.spread((address(waves) + offset) >> _U32(2)) & _U32(LANES - 1)
        values = waves.spread(source(waves))
        if backward:
            result = values[wave, lane]
            present = None if waves.all_active else waves.active[wave, lane]
            waves.write(row, result if present is None else np.where(present, result, _U32(0)))
            return
        result = np.zeros(values.shape, _U32)
        for number in range(LANES):  # in order: where two lanes name the same one, the higher lane stays
            writing = np.flatnonzero(waves.active[:, number])
            result[writing, lane[writing, number]] = values[writing, number]
        waves.write(row, result)

    return action


def decode_swizzle(instruction: Instruction) -> Action:
    """ds_swizzle_b32: a fixed pattern within groups of 32 lanes (or of four)."""
    source = instruction.read(instruction.operands[1], "u32")
    row = instruction.target_row(instruction.operands[0])
    lanes = _swizzled_lanes(instruction)

    def action(waves: Waves) -> None:
        values: Array = waves.spread(source(waves))[:, lanes]
        waves.write(row, values if waves.all_active else np.where(waves.active[:, lanes], values, _U32(0)))

    return action


def _swizzled_lanes(instruction: Instruction) -> Array:
    text = instruction.word("offset", "0")
    if text.startswith("swizzle("):
        kind, *rest = text.removeprefix("swizzle(").removesuffix(")").split(",")
        numbers = [int(part) for part in rest] if kind != "BITMASK_PERM" else []
        patterns: dict[str, Callable[[], Array]] = {
            "SWAP": lambda: _LANE ^ numbers[0],
            "REVERSE": lambda: _LANE ^ (numbers[0] - 1),
            "BROADCAST": lambda: (_LANE // numbers[0]) * numbers[0] + numbers[1],
            "QUAD_PERM": lambda: (_LANE & ~3) + np.array(numbers)[_LANE & 3],
        }
        if kind not in patterns:
            raise EmulationError(f"unknown swizzle {kind}")
        return patterns[kind]()
    code = int(text)
    if code & 0x8000:
        return (_LANE & ~3) + (code >> (2 * (_LANE & 3)) & 3)
    and_mask, or_mask, xor_mask = code & 31, code >> 5 & 31, code >> 10 & 31
    return (_LANE & 32) | (((_LANE & 31 & and_mask) | or_mask) ^ xor_mask)


LANE_DECODERS: Final[dict[str, Callable[[Instruction], Action]]] = {
    "v_readfirstlane_b32": _read_first_lane,
    "v_readlane_b32": _read_lane,
    "v_writelane_b32": _write_lane,
    "v_mbcnt_lo_u32_b32": _count_lanes_below,
    "v_mbcnt_hi_u32_b32": _count_lanes_below,
    "v_permlane32_swap_b32": _swap_halves,
    "v_permlane16_swap_b32": _swap_halves,
    "v_swap_b32": _swap,
}
