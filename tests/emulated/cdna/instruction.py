"""An instruction being decoded: hands out readers of its operands, and notes which registers it reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.operands import Modifier, Operand
from tests.emulated.cdna.operations import DTYPES
from tests.emulated.cdna.waves import EXEC, SCALARS, SCC, VCC, Waves, lanes_of

Array = NDArray[Any]
Reader = Callable[[Waves], Array]
"""Reads an operand; the result broadcasts to [W, 64] (vector instructions) or [W] (scalar ones)."""


class Branch(NamedTuple):
    """Where waves go on: at `target` where `taken`, else at the next instruction. None: all are taken."""

    target: int
    taken: NDArray[np.bool_] | None


END: Final = "end"
BARRIER: Final = "barrier"
Outcome = str | Branch | None
Action = Callable[[Waves], Outcome]
"""Executes a decoded instruction."""

VCC_OPERAND: Final = Operand("vcc", "scalar", VCC, 2)
EXEC_OPERAND: Final = Operand("exec", "scalar", EXEC, 2)


@dataclass(frozen=True, slots=True)
class Layout:
    """What decoding needs to know about the program.

    Attributes:
        arch: ``gfx942`` or ``gfx950``.
        accumulators: row of accumulation register 0.
        rows: vector and accumulation registers of a lane.
        labels: index of the instruction after each label.
    """

    arch: str
    accumulators: int
    rows: int
    labels: dict[str, int]


class Instruction:
    """One instruction, while it is decoded.

    Attributes:
        name: mnemonic without its encoding suffix.
        operands: destinations first, as written.
        reads: bit mask of registers whose contents matter: scalars, then rows of vector registers.
        writes: likewise, of registers that are written.
    """

    def __init__(
        self, name: str, operands: tuple[Operand, ...], modifiers: dict[str, Modifier], layout: Layout
    ) -> None:
        self.name = name
        self.operands = operands
        self.layout = layout
        self.reads = 0
        self.writes = 0
        self._modifiers = modifiers
        self._unused = set(modifiers)

    # ------------------------------------------------------------------ modifiers

    @property
    def has_modifiers(self) -> bool:
        """Whether any modifier is given."""
        return bool(self._modifiers)

    def has(self, name: str) -> bool:
        """Returns whether a modifier is given."""
        self._unused.discard(name)
        return name in self._modifiers

    def number(self, name: str, default: int = 0) -> int:
        """Returns an integer modifier.

        Raises:
            EmulationError: it is given, but is no integer.
        """
        value = self._modifiers[name] if self.has(name) else default
        if isinstance(value, bool) or not isinstance(value, int):
            raise EmulationError(f"modifier {name}:{value}")
        return value

    def numbers(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Returns a list modifier, filled up from `default` where it is shorter.

        Raises:
            EmulationError: it is given, but is no list.
        """
        value = self._modifiers[name] if self.has(name) else default
        if not isinstance(value, tuple):
            raise EmulationError(f"modifier {name}:{value}")
        return value + default[len(value) :]

    def word(self, name: str, default: str) -> str:
        """Returns a modifier as text."""
        return str(self._modifiers[name]) if self.has(name) else default

    def ignore(self, *names: str) -> None:
        """Accepts modifiers that mean nothing here, such as cache policies."""
        self._unused.difference_update(names)

    def finish(self) -> None:
        """Checks that every modifier was understood.

        Raises:
            EmulationError: one was not.
        """
        if self._unused:
            raise EmulationError(f"unknown modifier {', '.join(sorted(self._unused))}")

    # ------------------------------------------------------------------ registers

    def row(self, operand: Operand, count: int = 1) -> int:
        """Returns the row of a vector operand's first register.

        Raises:
            EmulationError: it is no vector register, has not `count` registers, or the kernel has not allocated it.
        """
        if not operand.is_vector or operand.count != count:
            raise EmulationError(f"{operand.text} is not {count} vector registers")
        accumulator = operand.kind == "accumulator"
        row = operand.index + (self.layout.accumulators if accumulator else 0)
        limit = self.layout.rows if accumulator else min(self.layout.rows, self.layout.accumulators)
        if row + count > limit:
            raise EmulationError(f"{operand.text} lies beyond the registers that the kernel allocates")
        return row

    def bits(self, operand: Operand) -> int:
        """Returns the bit mask of an operand's registers, 0 for a constant."""
        if operand.is_vector or operand.kind == "scalar":
            return self._bits(operand, operand.count)
        return 0

    def _bits(self, operand: Operand, count: int) -> int:
        first = SCALARS + self.row(operand, count) if operand.is_vector else operand.index
        return ((1 << count) - 1) << first

    def source_row(self, operand: Operand, count: int = 1) -> int:
        """Returns the row of a vector operand that is read."""
        self.reads |= self._bits(operand, count)
        return self.row(operand, count)

    def target_row(self, operand: Operand, count: int = 1) -> int:
        """Returns the row of a vector operand that is written."""
        self.writes |= self._bits(operand, count)
        return self.row(operand, count)

    def target_scalar(self, operand: Operand, count: int = 1) -> int:
        """Returns the number of a scalar register that is written.

        Raises:
            EmulationError: it is no scalar register, or has not `count` registers.
        """
        _check_scalar(operand, count)
        self.writes |= self._bits(operand, count)
        return operand.index

    def uses_condition(self) -> None:
        """Notes that SCC is read."""
        self.reads |= 1 << SCC

    def sets_condition(self) -> None:
        """Notes that SCC is written."""
        self.writes |= 1 << SCC

    # ------------------------------------------------------------------ readers

    def read(self, operand: Operand, kind: str, *, high: bool = False) -> Reader:
        """Returns a reader of a vector instruction's source.

        Args:
            operand: register or constant.
            kind: the type to read it as, of `operations.DTYPES`.
            high: for 16-bit types, the high half.

        Raises:
            EmulationError: the operand cannot be read so.
        """
        if operand.is_constant:
            reader = _constant_reader(constant(operand, kind, high=high))
        elif operand.is_vector:
            reader = self._vector_reader(operand, kind, high=high)
        elif operand.kind == "scalar":
            reader = self._scalar_as_vector(operand, kind, high=high)
        else:
            raise EmulationError(f"operand {operand.text}")
        if not (operand.negate or operand.absolute):
            return reader
        if kind[0] != "f":
            raise EmulationError(f"sign modifier of an integer: {operand.text}")
        return _with_sign(reader, negate=operand.negate, absolute=operand.absolute)

    def _vector_reader(self, operand: Operand, kind: str, *, high: bool) -> Reader:
        dtype = DTYPES[kind]
        if dtype.itemsize == 8:
            row = self.source_row(operand, 2)
            return lambda waves: _join(waves.u32[row], waves.u32[row + 1]).view(dtype)
        row = self.source_row(operand)
        if dtype.itemsize == 2:
            shift = np.uint32(16 if high else 0)
            return lambda waves: (waves.u32[row] >> shift).astype(np.uint16).view(dtype)
        readers: dict[str, Reader] = {
            "u32": lambda waves: waves.u32[row],
            "i32": lambda waves: waves.i32[row],
            "f32": lambda waves: waves.f32[row],
        }
        return readers[kind]

    def _scalar_as_vector(self, operand: Operand, kind: str, *, high: bool) -> Reader:
        dtype = DTYPES[kind]
        count = 2 if dtype.itemsize == 8 else 1
        pair, odd = self._scalar_place(operand, count)
        if count == 2:
            return lambda waves: waves.pairs[pair, :, None].view(dtype)
        if dtype.itemsize == 2:
            shift = np.uint32(16 if high else 0)
            return lambda waves: (waves.scalar[pair, :, odd, None] >> shift).astype(np.uint16).view(dtype)
        return lambda waves: waves.scalar[pair, :, odd, None].view(dtype)

    def _scalar_place(self, operand: Operand, count: int) -> tuple[int, int]:
        """Returns the pair that a scalar operand is in, and which half of it; notes that it is read."""
        _check_scalar(operand, count)
        self.reads |= self._bits(operand, count)
        return divmod(operand.index, 2)

    def read_scalar(self, operand: Operand, width: int = 32) -> Reader:
        """Returns a reader of a scalar operand: uint32[W] or uint64[W], or one element for a constant.

        Raises:
            EmulationError: it is neither scalar register nor constant, or has the wrong size.
        """
        if operand.is_constant:
            return _constant_reader(constant(operand, "u32" if width == 32 else "u64")[0])
        pair, odd = self._scalar_place(operand, width // 32)
        if width == 32:
            return lambda waves: waves.scalar[pair, :, odd]
        return lambda waves: waves.pairs[pair]

    def read_mask(self, operand: Operand) -> Reader:
        """Returns a reader of two scalar registers as bool[W, 64]."""
        pair, _ = self._scalar_place(operand, 2)
        return lambda waves: lanes_of(waves.pairs[pair])


def _check_scalar(operand: Operand, count: int) -> None:
    if operand.kind != "scalar" or operand.count != count or (count > 1 and operand.index % 2):
        raise EmulationError(f"{operand.text} is not {count} scalar registers, aligned")


def _join(low: Array, high: Array) -> Array:
    both = np.empty((*low.shape, 2), np.uint32)
    both[..., 0] = low
    both[..., 1] = high
    return both.view(np.uint64)[..., 0]


def constant(operand: Operand, kind: str, *, high: bool = False) -> Array:
    """Returns the value that a constant has for a type, [1, 1].

    Inline integers are sign-extended. Inline reals have the format of the operand (float32 for 32-bit integers).
    A 32-bit literal of a 64-bit operand is the high half of a float64, zero-extended for bits and unsigned integers,
    sign-extended for signed ones.
    """
    dtype = DTYPES[kind]
    if operand.kind == "real":
        format_ = {2: np.float16, 4: np.float32, 8: np.float64}[dtype.itemsize]
        bits = int(np.array(operand.real, format_).view(f"u{dtype.itemsize}"))
    elif operand.is_literal and kind == "f64":
        bits = (operand.integer & 0xFFFFFFFF) << 32
    elif operand.is_literal and kind == "i64":
        bits = ((operand.integer & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
    elif operand.is_literal:
        bits = operand.integer & 0xFFFFFFFF
    else:
        bits = operand.integer
    if high:  # a packed operand's constant is one 32-bit pattern: a real has zeros above it
        bits >>= 16
    bits &= (1 << (8 * dtype.itemsize)) - 1
    return np.array([[bits]], f"u{dtype.itemsize}").view(dtype)


def _constant_reader(value: Array) -> Reader:
    return lambda _waves: value


def _with_sign(reader: Reader, *, negate: bool, absolute: bool) -> Reader:
    if not absolute:
        return lambda waves: -reader(waves)
    if not negate:
        return lambda waves: np.abs(reader(waves))
    return lambda waves: -np.abs(reader(waves))
