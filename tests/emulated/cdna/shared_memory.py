"""LDS: reads, writes, transposing reads and atomics in a workgroup's shared memory."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from tests.emulated.cdna.atomics import apply_in_order, combine, operand_words
from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.instruction import Action, Array, Instruction, Reader
from tests.emulated.cdna.memory import LaneFaultError
from tests.emulated.cdna.vector_lanes import decode_permute, decode_swizzle
from tests.emulated.cdna.waves import LANES, Waves

_U32 = np.uint32
_ACCESS: Final = re.compile(r"ds_(read|write)(2?)(st64)?_(b|u|i)(\d+)(_d16|_d16_hi)?")
_TRANSPOSE: Final = re.compile(r"ds_read_b64_tr_b(8|16)")
_ATOMIC: Final = re.compile(r"ds_(add|sub|max|min|and|or|xor|wrxchg|inc|dec)(_rtn)?_(u32|i32|f32|b32|u64|i64|b64|f64)")
_SHARED_TARGET: Final = {"wrxchg": "swap"}


def decode_shared(instruction: Instruction) -> Action:
    """Returns what an LDS instruction does.

    Raises:
        EmulationError: the instruction is not known.
    """
    name = instruction.name
    if name in ("ds_bpermute_b32", "ds_permute_b32"):
        return decode_permute(instruction)
    if name == "ds_swizzle_b32":
        return decode_swizzle(instruction)
    access, transpose, atomic = _ACCESS.fullmatch(name), _TRANSPOSE.fullmatch(name), _ATOMIC.fullmatch(name)
    if transpose:
        return _transposing_read(instruction, int(transpose[1]))
    if atomic:
        return _atomic(instruction, atomic[1], atomic[3], returns=bool(atomic[2]))
    if not access:
        raise EmulationError("unknown LDS instruction")
    nbytes = int(access[5]) // 8
    offsets = [instruction.number("offset")]
    if access[2]:
        unit = nbytes * (64 if access[3] else 1)
        offsets = [instruction.number("offset0") * unit, instruction.number("offset1") * unit]
    if access[1] == "write":
        return _write(instruction, nbytes, offsets, high=access[6] == "_d16_hi")
    return _read(instruction, nbytes, offsets, signed=access[4] == "i", half=access[6])


def shared_places(waves: Waves, addresses: Array, nbytes: int, what: str) -> Array:
    """Checks LDS addresses of the active lanes and returns their places in the shared storage, int64[W, 64].

    Args:
        waves: whose lanes.
        addresses: in the workgroup's LDS, of any integer type, broadcasting to [W, 64].
        nbytes: of each access.
        what: for the message.

    Raises:
        LaneFaultError: an active lane's bytes are not all inside the workgroup's LDS.
    """
    places = waves.spread(addresses).astype(np.int64)
    if not waves.all_active:
        places = np.where(waves.active, places, 0)
    limit = waves.environment.shared_bytes - nbytes
    if int(places.max()) > limit and not _all_fit(places, limit, waves):
        lane = int(np.flatnonzero((places > limit) & waves.active)[0])
        place = f"{int(places.reshape(-1)[lane]):#x}; LDS is {limit + nbytes} bytes"
        raise LaneFaultError(f"out-of-bounds LDS {what} of {nbytes} bytes at {place}", lane)
    result: Array = places + waves.place[2][:, None]
    return result


def _all_fit(places: Array, limit: int, waves: Waves) -> bool:
    return not bool(((places > limit) & waves.active).any())


def write_shared(waves: Waves, addresses: Array, values: Array, nbytes: int) -> None:
    """Writes uint32[W, 64, words] of the active lanes to LDS."""
    places = shared_places(waves, addresses, nbytes, "write")
    storage = waves.environment.shared
    if waves.all_active:
        storage.scatter(places.reshape(-1), values.reshape(-1, values.shape[-1]), nbytes)
    else:
        storage.scatter(places[waves.active], values[waves.active], nbytes)


def _addresses(instruction: Instruction, index: int) -> Reader:
    return instruction.read(instruction.operands[index], "u32")


def _read(instruction: Instruction, nbytes: int, offsets: list[int], *, signed: bool, half: str | None) -> Action:
    address = _addresses(instruction, 1)
    words = max(nbytes // 4, 1)
    row = instruction.target_row(instruction.operands[0], words * len(offsets))
    shift = 32 - 8 * nbytes

    def action(waves: Waves) -> None:
        base, next_row = address(waves), row
        found = [
            waves.environment.shared.gather(shared_places(waves, base + _U32(offset), nbytes, "read"), nbytes)
            for offset in offsets
        ]
        for part in found:
            for word in range(words):
                values = part[..., word]
                if signed:
                    values = ((values << _U32(shift)).view(np.int32) >> shift).view(_U32)
                waves.write(next_row, values if half is None else merge_half(waves, next_row, values, half))
                next_row += 1

    return action


def merge_half(waves: Waves, row: int, values: Array, half: str) -> Array:
    """Returns a register with one half (``_d16``: the low one, ``_d16_hi``) replaced by the low bits of `values`."""
    result: Array = waves.u32[row].copy()
    halves = result.view(np.uint16)
    halves[..., half == "_d16_hi" :: 2] = values
    return result


def _write(instruction: Instruction, nbytes: int, offsets: list[int], *, high: bool) -> Action:
    address = _addresses(instruction, 0)
    words = max(nbytes // 4, 1)
    sources = instruction.operands[1 : 1 + len(offsets)]
    rows = [instruction.source_row(source, words) for source in sources]

    def action(waves: Waves) -> None:
        base = address(waves)
        for offset, row in zip(offsets, rows, strict=True):
            values = waves.u32[row : row + words].transpose(1, 2, 0)
            write_shared(waves, base + _U32(offset), values >> _U32(16) if high else values, nbytes)

    return action


def _transposing_read(instruction: Instruction, bits: int) -> Action:
    """ds_read_b64_tr: 16 lanes fetch 64 bits each; their matrix of 16 x (64 / bits) elements is transposed.

    Raises:
        EmulationError: at run time, if a lane is inactive.
    """
    address = _addresses(instruction, 1)
    row = instruction.target_row(instruction.operands[0], 2)
    offset, elements = _U32(instruction.number("offset")), 64 // bits
    dtype = np.dtype(f"u{bits // 8}")

    def action(waves: Waves) -> None:
        if not waves.all_active:
            raise EmulationError("transposing read with inactive lanes")
        places = shared_places(waves, address(waves) + offset, 8, "read")
        fetched = np.ascontiguousarray(waves.environment.shared.gather(places, 8)).view(dtype)
        tiles = fetched.reshape(waves.count, LANES // 16, elements, 16).transpose(0, 1, 3, 2)
        result = np.ascontiguousarray(tiles).view(_U32).reshape(waves.count, LANES, 2)
        waves.write(row, result[..., 0])
        waves.write(row + 1, result[..., 1])

    return action


def _atomic(instruction: Instruction, operation: str, number: str, *, returns: bool) -> Action:
    words = int(number[1:]) // 32
    prefix = {"f": "f", "i": "s", "u": "u"}.get(number[0], "") if operation in ("max", "min") else ""
    if number[0] == "f" and operation == "add":
        prefix = "f"
    full_name = _SHARED_TARGET.get(operation, prefix + operation)
    function = combine(full_name, words)
    first = 1 if returns else 0
    address = _addresses(instruction, first)
    count = operand_words(full_name, words)
    source = instruction.source_row(instruction.operands[first + 1], count)
    row = instruction.target_row(instruction.operands[0], words) if returns else None
    offset = _U32(instruction.number("offset"))

    def action(waves: Waves) -> None:
        if not waves.active.any():
            return
        storage = waves.environment.shared
        places = shared_places(waves, address(waves) + offset, 4 * words, "atomic")[waves.active]
        operands = waves.u32[source : source + count].transpose(1, 2, 0)[waves.active]
        old = apply_in_order(
            places,
            operands,
            lambda lanes: storage.gather(lanes, 4 * words),
            lambda lanes, values: storage.scatter(lanes, values, 4 * words),
            function,
        )
        if row is not None:
            for word in range(words):
                waves.u32[row + word][waves.active] = old[:, word]

    return action
