"""Global memory: scalar loads, global and flat accesses, buffers, scratch, and loads straight into LDS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from tests.emulated.cdna.atomics import apply_in_order, combine, operand_words
from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.instruction import Action, Array, Instruction, Reader
from tests.emulated.cdna.memory import LaneFaultError
from tests.emulated.cdna.operands import Operand
from tests.emulated.cdna.scratch_memory import decode_scratch
from tests.emulated.cdna.shared_memory import merge_half, write_shared
from tests.emulated.cdna.waves import LANES, M0, Waves

_U32, _U64 = np.uint32, np.uint64
_CACHE_POLICY: Final = ("sc0", "sc1", "nt", "glc", "slc", "dlc", "scc", "swz")
_WITHOUT_EFFECT: Final = frozenset(
    ["buffer_inv", "buffer_wbl2", "buffer_gl0_inv", "buffer_wbinvl1", "buffer_wbinvl1_vol", "global_wb", "global_inv"]
)
"""Caches are not emulated: memory is always coherent."""

_NAME: Final = re.compile(r"(global|flat|buffer|scratch)_(load|store|atomic)_(lds_)?(\w+)")
_SCALAR_LOAD: Final = re.compile(r"s_(buffer_)?load_dword(?:x(\d+))?")
_LANE: Final = np.arange(LANES, dtype=np.int64)
_SIZES: Final = {"byte": 1, "ubyte": 1, "sbyte": 1, "short": 2, "ushort": 2, "sshort": 2, "dword": 4} | {
    f"dwordx{count}": 4 * count for count in (2, 3, 4)
}
_ATOMIC_NAMES: Final = {
    "add_f32": ("fadd", 1),
    "add_f64": ("fadd", 2),
    "max_f64": ("fmax", 2),
    "min_f64": ("fmin", 2),
    "pk_add_f16": ("pk_add_f16", 1),
    "pk_add_bf16": ("pk_add_bf16", 1),
}


class Access(NamedTuple):
    """What lanes access.

    Attributes:
        addresses: uint64[W, 64].
        room: int64[W, 64], bytes from there to the end of the buffer; None where nothing limits it.
    """

    addresses: Array
    room: Array | None


AccessReader = Callable[[Waves], Access]


def decode_memory(instruction: Instruction) -> Action:
    """Returns what an instruction on global memory, buffers or scratch does.

    Raises:
        EmulationError: the instruction is not known.
    """
    name = instruction.name
    instruction.ignore(*_CACHE_POLICY)
    if name in _WITHOUT_EFFECT:
        return lambda _waves: None
    match = _NAME.fullmatch(name)
    if not match:
        raise EmulationError("unknown memory instruction")
    segment, kind, to_shared, what = match.groups()
    if kind == "atomic":
        return _atomic(instruction, segment, what)
    size, _, half = what.partition("_d16")
    if size not in _SIZES:
        raise EmulationError("unknown memory instruction")
    if segment == "scratch":
        return decode_scratch(instruction, kind, _SIZES[size], partial=bool(half) or size[0] == "s")
    half_name = "_d16" + half if "_d16" in what else None
    if kind == "store":
        return _store(instruction, segment, _SIZES[size], high=half_name == "_d16_hi")
    if to_shared or instruction.has("lds"):
        return _load_to_shared(instruction, segment, _SIZES[size])
    return _load(instruction, segment, _SIZES[size], signed=size in ("sbyte", "sshort"), half=half_name)


# ---------------------------------------------------------------------- addresses


def _access_reader(instruction: Instruction, segment: str, operands: tuple[Operand, ...]) -> AccessReader:
    """Returns a reader of addresses, from the operands without data and destination."""
    if segment == "buffer":
        return _buffer_access(instruction, *operands)
    address, base = operands[0], operands[1] if len(operands) > 1 else None
    offset = np.array([[instruction.number("offset") & 0xFFFFFFFFFFFFFFFF]], _U64)
    if base is not None and base.kind == "scalar":
        low, start = instruction.read(address, "u32"), instruction.read(base, "u64")
        return lambda waves: Access(waves.spread(start(waves) + low(waves) + offset), None)
    whole = instruction.read(address, "u64")
    return lambda waves: Access(waves.spread(whole(waves) + offset), None)


def _buffer_access(instruction: Instruction, address: Operand, resource: Operand, scalar: Operand) -> AccessReader:
    """Raw buffers: base (48 bits), offset from a register, and a limit beyond which loads give 0 and stores nothing."""
    if instruction.has("idxen"):
        raise EmulationError("indexed buffer")
    base = instruction.read_scalar(resource.part(0, 2), 64)
    limit = instruction.read_scalar(resource.part(2))
    scalar_offset = instruction.read_scalar(scalar)
    offset = np.array([[instruction.number("offset")]], _U64)
    lane_offset: Reader | None = instruction.read(address, "u32") if instruction.has("offen") else None

    def access(waves: Waves) -> Access:
        places = waves.spread(offset if lane_offset is None else lane_offset(waves) + offset)
        extra = scalar_offset(waves)
        start = (base(waves) & _U64(0xFFFFFFFFFFFF)) + extra
        room = (limit(waves).astype(np.int64) - extra)[:, None] - places.view(np.int64)
        return Access(places + start[:, None], room)

    return access


def _reachable(waves: Waves, access: Access, nbytes: int) -> Array | None:
    """Returns which lanes access memory: active, and inside the buffer. None: all."""
    if access.room is None:
        return None if waves.all_active else waves.active
    inside = access.room >= nbytes
    return inside if waves.all_active else inside & waves.active


def _words_at_the_end(waves: Waves, access: Access, nbytes: int) -> Iterator[tuple[int, Array]]:
    """Yields, where a buffer ends inside lanes' accesses, each word that lies before the end, and for which lanes."""
    if access.room is None or nbytes <= 4:
        return
    cut = waves.active & (access.room >= 4) & (access.room < nbytes)
    if cut.any():
        for word in range(nbytes // 4):
            yield word, cut & (access.room >= 4 * word + 4)


def _load_words(waves: Waves, access: Access, nbytes: int) -> Array:
    """Returns uint32[W, 64, words]; of a buffer's last element, the words that lie inside."""
    memory = waves.environment.memory
    mask = _reachable(waves, access, nbytes)
    result = memory.load(access.addresses, nbytes, mask)
    for word, inside in _words_at_the_end(waves, access, nbytes):
        part = memory.load(access.addresses + _U64(4 * word), 4, inside)[..., 0]
        result[..., word] = np.where(inside, part, result[..., word])
    return result


# ---------------------------------------------------------------------- instructions


def decode_scalar_load(instruction: Instruction) -> Action:
    """s_load_dword*, s_buffer_load_dword*: the same address for all lanes of a wave."""
    match = _SCALAR_LOAD.fullmatch(instruction.name)
    if not match:
        raise EmulationError("unknown scalar memory instruction")
    count = int(match[2] or 1)
    instruction.ignore(*_CACHE_POLICY)
    target_operand, base_operand, *rest = instruction.operands
    base = instruction.read_scalar(base_operand.part(0, 2), 64)
    mask = _U64(0xFFFFFFFFFFFF if match[1] else 0xFFFFFFFFFFFFFFFF)
    offset = _U64(instruction.number("offset"))
    register = instruction.read_scalar(rest[0]) if rest and rest[0].kind != "off" else None
    target = instruction.target_scalar(target_operand, count)

    def action(waves: Waves) -> None:
        addresses = (base(waves) & mask) + offset
        if register is not None:
            addresses = addresses + register(waves)
        try:
            words = waves.environment.memory.load(addresses, 4 * count)
        except LaneFaultError as fault:
            raise LaneFaultError(str(fault), fault.lane * LANES) from None
        waves.write_scalars(target, words)

    return action


def _load(instruction: Instruction, segment: str, nbytes: int, *, signed: bool, half: str | None) -> Action:
    words = max(nbytes // 4, 1)
    access = _access_reader(instruction, segment, instruction.operands[1:])
    row = instruction.target_row(instruction.operands[0], words)
    shift = 32 - 8 * nbytes

    def action(waves: Waves) -> None:
        found = _load_words(waves, access(waves), nbytes)
        for word in range(words):
            values = found[..., word]
            if signed:
                values = ((values << _U32(shift)).view(np.int32) >> shift).view(_U32)
            waves.write(row + word, values if half is None else merge_half(waves, row, values, half))

    return action


def _load_to_shared(instruction: Instruction, segment: str, nbytes: int) -> Action:
    """Loads of consecutive lanes go to consecutive places in LDS, from M0 plus the instruction's offset on."""
    access = _access_reader(instruction, segment, instruction.operands)
    offset = instruction.number("offset") & 0xFFFF
    instruction.reads |= 1 << M0

    def action(waves: Waves) -> None:
        found = _load_words(waves, access(waves), nbytes)
        start = waves.scalar[M0 // 2, :, 0, None].astype(np.int64) + offset
        write_shared(waves, start + _LANE * nbytes, found, nbytes)

    return action


def _store(instruction: Instruction, segment: str, nbytes: int, *, high: bool) -> Action:
    words = max(nbytes // 4, 1)
    if segment == "buffer":
        data, *rest = instruction.operands
    else:
        address, data, *others = instruction.operands
        rest = [address, *others]
    access = _access_reader(instruction, segment, tuple(rest))
    row = instruction.source_row(data, words)

    def action(waves: Waves) -> None:
        where = access(waves)
        memory = waves.environment.memory
        values = waves.u32[row : row + words].transpose(1, 2, 0)
        if high:
            values = values >> _U32(16)
        memory.store(where.addresses, values, nbytes, _reachable(waves, where, nbytes))
        for word, inside in _words_at_the_end(waves, where, nbytes):
            memory.store(where.addresses + _U64(4 * word), values[..., word : word + 1], 4, inside)

    return action


def _atomic(instruction: Instruction, segment: str, what: str) -> Action:
    if what in _ATOMIC_NAMES:
        operation, words = _ATOMIC_NAMES[what]
    else:
        operation, words = what.removesuffix("_x2"), 2 if what.endswith("_x2") else 1
    function = combine(operation, words)
    operands = list(instruction.operands)
    returns = instruction.has("sc0")
    if segment == "buffer":
        data = operands.pop(0)
        target = data.part(0, words) if returns else None
    else:
        target = operands.pop(0) if returns else None
        data = operands.pop(1)
    access = _access_reader(instruction, segment, tuple(operands))
    count = operand_words(operation, words)
    source = instruction.source_row(data, count)
    row = instruction.target_row(target, words) if target is not None else None

    def action(waves: Waves) -> None:
        where = access(waves)
        mask = _reachable(waves, where, 4 * words)
        mask = waves.active if mask is None else mask
        if not mask.any():
            return
        memory = waves.environment.memory
        values = waves.u32[source : source + count].transpose(1, 2, 0)[mask]
        addresses = where.addresses[mask]
        try:
            memory.check(addresses, 4 * words, "atomic", writing=True)
        except LaneFaultError as fault:
            raise fault.among(mask) from None
        old = apply_in_order(
            addresses,
            values,
            lambda places: memory.load(places, 4 * words),
            lambda places, new: memory.store(places, new, 4 * words),
            function,
        )
        if row is not None:
            for word in range(words):
                waves.u32[row + word][waves.active] = 0
                waves.u32[row + word][mask] = old[:, word]

    return action
