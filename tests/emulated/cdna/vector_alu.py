"""The vector ALU: finds an instruction's meaning and applies its modifiers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.float_arithmetic import FLOAT_OPERATIONS
from tests.emulated.cdna.instruction import Action, Array, Instruction, Reader
from tests.emulated.cdna.integer_arithmetic import INTEGER_OPERATIONS
from tests.emulated.cdna.matrix import decode_matrix
from tests.emulated.cdna.operations import DTYPES, Operation
from tests.emulated.cdna.vector_compare import COMPARE_DECODERS, decode_compare
from tests.emulated.cdna.vector_convert import decode_convert, is_conversion
from tests.emulated.cdna.vector_lanes import LANE_DECODERS
from tests.emulated.cdna.vector_packed import decode_dot, decode_mixed, decode_packed
from tests.emulated.cdna.vector_sources import VectorOperands, Writer
from tests.emulated.cdna.waves import Waves

_OPERATIONS: Final = {**FLOAT_OPERATIONS, **INTEGER_OPERATIONS}
_ENCODING: Final = re.compile(r"_(?:e32|e64|sdwa|dpp|e64_dpp)$")
_ACCUMULATING: Final = {"v_fmac_f32": "v_fma_f32", "v_mac_f32": "v_fma_f32", "v_fmac_f64": "v_fma_f64"}
"""The destination is the third source."""

_FUSED: Final = dict.fromkeys(("v_mad_f32", "v_fmamk_f32", "v_madmk_f32", "v_fmaak_f32", "v_madak_f32"), "v_fma_f32")
_SATURATING: Final = frozenset(("v_add_u32", "v_sub_u32", "v_add_i32", "v_sub_i32"))


def plain_name(mnemonic: str) -> str:
    """Returns a mnemonic without the suffix that names its encoding."""
    return _ENCODING.sub("", mnemonic)


def decode_vector(instruction: Instruction) -> Action:
    """Returns what a vector ALU or matrix instruction does.

    Raises:
        EmulationError: the instruction, or this form of it, is not known.
    """
    name = instruction.name
    special = LANE_DECODERS.get(name) or COMPARE_DECODERS.get(name)
    if special:
        return special(instruction)
    if name == "v_nop":
        return lambda _waves: None
    if name.startswith("v_cmp"):
        return decode_compare(instruction)
    if name.startswith(("v_mfma", "v_smfmac")):
        return decode_matrix(instruction)
    if is_conversion(name):
        return decode_convert(instruction)
    if name.startswith("v_dot"):
        return decode_dot(instruction)
    if name.startswith("v_pk_"):
        return decode_packed(instruction)
    if "_mix" in name:
        return decode_mixed(instruction)
    return _independent_lanes(instruction)


def _independent_lanes(instruction: Instruction) -> Action:
    name, operands = instruction.name, instruction.operands
    if name in _ACCUMULATING:
        name, operands = _ACCUMULATING[name], (*operands, operands[0])
    operation = _OPERATIONS.get(_FUSED.get(name, name))
    if operation is None:
        raise EmulationError("unknown vector instruction")
    if len(operands) != 1 + len(operation.sources):
        raise EmulationError(f"{len(operation.sources)} sources expected")
    vector = VectorOperands(instruction)
    readers = [vector.source(i, operands[1 + i], kind) for i, kind in enumerate(operation.sources)]
    finish = _output_modifiers(instruction, operation)
    if DTYPES[operation.result].itemsize == 8:
        if finish or vector.shuffle:
            raise EmulationError("modifier of a 64-bit instruction")
        return _wide(instruction, operation, readers)
    if finish:
        operation = operation._replace(function=finish)
    write = vector.writer(operands[0], operation.result, len(readers))
    if DTYPES[operation.result].itemsize == 2:
        return _narrow(operation, readers, write)
    plain = vector.shuffle is None and not instruction.has("dst_sel")
    if plain and isinstance(operation.function, np.ufunc) and len(readers) == 2:
        return _in_place(operation, readers, instruction.row(operands[0]))
    return _generic(operation, readers, write)


def _output_modifiers(instruction: Instruction, operation: Operation) -> Callable[..., Array] | None:
    """Returns the function with omod (mul, div) and clamp applied, or None where there are none."""
    if not instruction.has_modifiers:
        return None
    function, clamp = operation.function, instruction.has("clamp")
    factor = instruction.number("mul", 1) / instruction.number("div", 1)
    if not clamp and factor == 1:
        return None
    if operation.result == "f32":
        return lambda *values: _clamped(function(*values) * np.float32(factor), clamp=clamp)
    if instruction.name not in _SATURATING:
        raise EmulationError("clamp or scaling of this instruction")
    limits = np.iinfo(DTYPES[operation.result])
    function = np.add if "add" in instruction.name else np.subtract

    def saturate(a: Array, b: Array) -> Array:
        exact = function(a.astype(np.int64), b.astype(np.int64))
        return np.clip(exact, limits.min, limits.max).astype(limits.dtype)

    return saturate


def _clamped(values: Array, *, clamp: bool) -> Array:
    return np.clip(np.nan_to_num(values, nan=0.0), np.float32(0), np.float32(1)) if clamp else values


def _in_place(operation: Operation, readers: list[Reader], row: int) -> Action:
    function: Any = operation.function
    first, second = readers
    view = operation.result

    def action(waves: Waves) -> None:
        target = getattr(waves, view)[row]
        if waves.all_active:
            function(first(waves), second(waves), out=target)
        else:
            np.copyto(target, function(first(waves), second(waves)), where=waves.active)

    return action


def _generic(operation: Operation, readers: list[Reader], write: Writer) -> Action:
    function, dtype = operation.function, DTYPES[operation.result]
    if len(readers) == 1:
        only = readers[0]
        return lambda waves: write(waves, function(only(waves)).astype(dtype, copy=False).view(np.uint32))

    def action(waves: Waves) -> None:
        result = function(*[reader(waves) for reader in readers])
        write(waves, result.astype(dtype, copy=False).view(np.uint32))

    return action


def _narrow(operation: Operation, readers: list[Reader], write: Writer) -> Action:
    function, dtype = operation.function, DTYPES[operation.result]

    def action(waves: Waves) -> None:
        result = function(*[reader(waves) for reader in readers])
        write(waves, result.astype(dtype, copy=False).view(np.uint16).astype(np.uint32))

    return action


def _wide(instruction: Instruction, operation: Operation, readers: list[Reader]) -> Action:
    function, dtype = operation.function, DTYPES[operation.result]
    row = instruction.target_row(instruction.operands[0], 2)
    return lambda waves: waves.write_wide(
        row, function(*[reader(waves) for reader in readers]).astype(dtype, copy=False)
    )
