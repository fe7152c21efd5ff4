"""The state of waves that execute together: registers, masks, and the memories that they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.emulated.cdna.memory import DeviceMemory, Storage

LANES: Final = 64
SCALARS: Final = 128
FLAT_SCRATCH, VCC, TTMP, M0, EXEC = 102, 106, 108, 124, 126
"""Numbers of the special scalar registers, as instructions encode them."""

SCC: Final = 125
"""Where SCC stands in the mask of undefined registers (the number encodes no register)."""

ALL_LANES: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF)

POISON: Final = 0x7FDEAD01
"""What registers and LDS hold at first: a NaN, and an address that nothing has."""

Array = NDArray[Any]
Words = NDArray[np.uint32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Environment:
    """What the waves of a chunk of workgroups share.

    Attributes:
        memory: global memory.
        shared: LDS of all workgroups, one after the other.
        shared_bytes: LDS of one workgroup.
    """

    memory: DeviceMemory
    shared: Storage
    shared_bytes: int


class Waves:
    """W waves at the same instruction.

    Attributes:
        environment: memories.
        pairs: uint64[64, W], pairs of scalar registers by their encoding (which hardware wants even for 64 bits).
        scalar: uint32[64, W, 2], the same bytes as single registers.
        u32: uint32[rows, W, 64], vector registers; accumulation registers follow at the kernel's accumulator offset.
        i32: the same bytes as int32.
        f32: the same bytes as float32.
        condition: bool[W], SCC.
        mode: uint32[W], the MODE register.
        place: int64[3, W]: workgroup, wave within it, offset of its LDS in the shared storage.
        scratch: uint8[W, 64, bytes], private memory.
        undefined: bit mask of registers never written: scalars, then rows of vector registers.
        active: bool[W, 64], EXEC.
        all_active: whether EXEC is all ones.
        pc: index of the next instruction, while waiting.
    """

    __slots__ = (
        "active",
        "all_active",
        "condition",
        "environment",
        "f32",
        "i32",
        "mode",
        "pairs",
        "pc",
        "place",
        "scalar",
        "scratch",
        "u32",
        "undefined",
    )

    def __init__(
        self,
        environment: Environment,
        pairs: NDArray[np.uint64],
        vector: Words,
        condition: Mask,
        mode: Words,
        place: NDArray[np.int64],
        scratch: NDArray[np.uint8],
        undefined: int,
        pc: int = 0,
    ) -> None:
        self.environment = environment
        self.pairs = pairs
        self.scalar: Words = pairs.view(np.uint32).reshape(*pairs.shape, 2)
        self.u32 = vector
        self.i32: NDArray[np.int32] = vector.view(np.int32)
        self.f32: NDArray[np.float32] = vector.view(np.float32)
        self.condition = condition
        self.mode = mode
        self.place = place
        self.scratch = scratch
        self.undefined = undefined
        self.pc = pc
        self.refresh_active()

    @property
    def count(self) -> int:
        """The number of waves."""
        return len(self.condition)

    def refresh_active(self) -> None:
        """Recomputes the lane masks from EXEC."""
        self.active = lanes_of(self.pairs[EXEC // 2])
        self.all_active = bool((self.pairs[EXEC // 2] == ALL_LANES).all())

    def select(self, keep: Array, pc: int) -> Waves:
        """Returns a copy of some of the waves (a mask or indices) that goes on at `pc`."""
        return Waves(
            self.environment,
            np.ascontiguousarray(self.pairs[:, keep]),
            np.ascontiguousarray(self.u32[:, keep]),
            self.condition[keep],
            self.mode[keep],
            self.place[:, keep],
            self.scratch[keep],
            self.undefined,
            pc,
        )

    @staticmethod
    def merge(groups: Sequence[Waves]) -> Waves:
        """Returns waves that reached the same instruction as one group."""
        first = groups[0]
        if len(groups) == 1:
            return first
        undefined = 0
        for group in groups:
            undefined |= group.undefined
        return Waves(
            first.environment,
            np.concatenate([group.pairs for group in groups], axis=1),
            np.concatenate([group.u32 for group in groups], axis=1),
            np.concatenate([group.condition for group in groups]),
            np.concatenate([group.mode for group in groups]),
            np.concatenate([group.place for group in groups], axis=1),
            np.concatenate([group.scratch for group in groups]),
            undefined,
            first.pc,
        )

    def write(self, row: int, values: Array) -> None:
        """Writes 32-bit patterns, broadcast to [W, 64], to the active lanes of a vector register."""
        if self.all_active:
            self.u32[row] = values
        else:
            np.copyto(self.u32[row], values, where=self.active)

    def write_wide(self, row: int, values: Array) -> None:
        """Writes 64-bit patterns to the active lanes of two vector registers, the low half first."""
        bits = values.view(np.uint64)
        self.write(row, bits.astype(np.uint32))
        self.write(row + 1, (bits >> np.uint64(32)).astype(np.uint32))

    def write_scalar(self, register: int, values: Array) -> None:
        """Writes uint32, broadcast to [W], to a scalar register."""
        self.scalar[register // 2, :, register % 2] = values
        if register >= EXEC:
            self.refresh_active()

    def write_scalar_wide(self, register: int, values: Array) -> None:
        """Writes uint64 to two scalar registers."""
        self.pairs[register // 2] = values
        if register == EXEC:
            self.refresh_active()

    def write_scalars(self, register: int, values: Words) -> None:
        """Writes uint32[W, n] to n scalar registers (an aligned number of them, or one)."""
        count = values.shape[1]
        if count == 1:
            self.write_scalar(register, values[:, 0])
        else:
            first = register // 2
            self.scalar[first : first + count // 2] = values.reshape(-1, count // 2, 2).transpose(1, 0, 2)

    def write_mask(self, register: int, mask: Array) -> None:
        """Writes one bit per lane, 0 for inactive lanes, to two scalar registers."""
        bits = self.spread(mask) if self.all_active else mask & self.active
        self.pairs[register // 2] = np.packbits(bits, axis=1, bitorder="little").view(np.uint64)[:, 0]
        if register == EXEC:
            self.refresh_active()

    def spread(self, values: Array) -> Array:
        """Broadcasts to [W, 64]."""
        return values if values.shape == self.active.shape else np.broadcast_to(values, self.active.shape)

    def name_of(self, lane: int) -> str:
        """Names a lane, given its index among all lanes of the group."""
        wave, lane = divmod(lane, LANES)
        return f"workgroup {self.place[0, wave]}, wave {self.place[1, wave]}, lane {lane}"


def lanes_of(bits: NDArray[np.uint64]) -> Mask:
    """Returns the bits of uint64[W] as bool[W, 64]."""
    return np.unpackbits(bits[:, None].view(np.uint8), axis=1, bitorder="little").view(np.bool_)
