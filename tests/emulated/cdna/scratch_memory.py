"""Scratch: each lane's private memory, where registers are spilled."""

from __future__ import annotations

from typing import Final

import numpy as np

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.instruction import Action, Array, Instruction, Reader
from tests.emulated.cdna.memory import LaneFaultError, Storage
from tests.emulated.cdna.operands import Operand
from tests.emulated.cdna.waves import LANES, Waves

_U32 = np.uint32
_LANE: Final = np.arange(LANES, dtype=np.int64)


def decode_scratch(instruction: Instruction, kind: str, nbytes: int, *, partial: bool) -> Action:
    """scratch_load_*, scratch_store_*: address from a vector register, a scalar register, both or neither.

    Args:
        instruction: being decoded.
        kind: ``load`` or ``store``.
        nbytes: of each access.
        partial: whether a load keeps a half or extends a sign, which no kernel has needed.

    Raises:
        EmulationError: a form that is not known.
    """
    if partial:
        raise EmulationError("partial scratch access")
    words = max(nbytes // 4, 1)
    if kind == "load":
        data, address, base = instruction.operands
    else:
        address, data, base = instruction.operands
    places = _place_reader(instruction, address, base, nbytes)
    if kind == "store":
        source = instruction.source_row(data, words)

        def store(waves: Waves) -> None:
            values = waves.u32[source : source + words].transpose(1, 2, 0)[waves.active]
            _storage(waves).scatter(places(waves)[waves.active], values, nbytes)

        return store
    target = instruction.target_row(data, words)

    def load(waves: Waves) -> None:
        found = _storage(waves).gather(places(waves), nbytes)
        for word in range(words):
            waves.write(target + word, found[..., word])

    return load


def _storage(waves: Waves) -> Storage:
    return Storage.of(waves.scratch.reshape(-1))


def _place_reader(instruction: Instruction, address: Operand, base: Operand, nbytes: int) -> Reader:
    offset = instruction.number("offset")
    lane_part = instruction.read(address, "u32") if address.is_vector else None
    scalar_part = instruction.read(base, "u32") if base.kind == "scalar" else None

    def read(waves: Waves) -> Array:
        start: Array = np.full((1, 1), offset & 0xFFFFFFFF, _U32)
        for part in (lane_part, scalar_part):
            if part is not None:
                start = start + part(waves)
        places = np.where(waves.active, waves.spread(start).astype(np.int64), 0)
        size = waves.scratch.shape[2]
        outside = (places + nbytes > size) & waves.active
        if outside.any():
            lane = int(np.flatnonzero(outside)[0])
            place = f"{int(places.reshape(-1)[lane]):#x}; scratch is {size} bytes"
            raise LaneFaultError(f"out-of-bounds scratch access of {nbytes} bytes at {place}", lane)
        wave = np.arange(waves.count, dtype=np.int64)[:, None]
        result: Array = places + (wave * LANES + _LANE) * size
        return result

    return read
