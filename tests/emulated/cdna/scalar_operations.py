"""What the scalar ALU's instructions compute, and what they make of the condition SCC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.emulated.cdna.integer_arithmetic import (
    count_ones,
    leading_zeros,
    reverse_bits,
    trailing_zeros,
)

Array = NDArray[Any]
_U32, _U64 = np.uint32, np.uint64
_LOW: Final = np.uint32(0xFFFF)

Condition = Callable[..., Array]
"""From the result and the sources to SCC."""


def signed(x: Array) -> Array:
    """Returns unsigned integers reinterpreted as signed ones."""
    return np.ascontiguousarray(x).view(f"i{x.dtype.itemsize}")


def _not_zero(result: Array, *_sources: Array) -> Array:
    return np.not_equal(result, 0)


def _count(count: Array, shifted: Array) -> Array:
    """Returns a shift count, modulo the width of what is shifted and in its type."""
    result: Array = count.astype(shifted.dtype) & shifted.dtype.type(8 * shifted.dtype.itemsize - 1)
    return result


def _arithmetic_shift(x: Array, count: Array) -> Array:
    shifted: Array = signed(x) >> signed(_count(count, x))
    return shifted.view(x.dtype)


def _bit_field_mask(width: Array, offset: Array) -> Array:
    one = width.dtype.type(1)
    result: Array = ((one << _count(width, width)) - one) << _count(offset, width)
    return result


def _field(x: Array, place: Array) -> tuple[Array, Array]:
    """Returns s_bfe's field, offset in bits 4:0 and width in bits 22:16 of `place`, and its top bit, as int64."""
    width = np.minimum((place >> _U32(16)) & _U32(127), _U32(32)).astype(np.int64)
    field: Array = (x >> (place & _U32(31))).astype(np.int64) & ((np.int64(1) << width) - 1)
    return field, (np.int64(1) << width) >> 1


def _extract_unsigned(x: Array, place: Array) -> Array:
    return _field(x, place)[0].astype(_U32)


def _extract_signed(x: Array, place: Array) -> Array:
    field, top = _field(x, place)
    return ((field ^ top) - top).astype(np.int32).view(_U32)


def _multiply_high_unsigned(a: Array, b: Array) -> Array:
    return ((a.astype(_U64) * b.astype(_U64)) >> _U64(32)).astype(_U32)


def _multiply_high_signed(a: Array, b: Array) -> Array:
    product = signed(a).astype(np.int64) * signed(b).astype(np.int64)
    return (product >> 32).astype(np.int32).view(_U32)


def overflow_of_add(result: Array, a: Array, b: Array) -> Array:
    """Returns whether the sum of signed 32-bit integers overflowed."""
    overflow: Array = signed(~(a ^ b) & (a ^ result)) < 0
    return overflow


def _signed_maximum(a: Array, b: Array) -> Array:
    return np.maximum(signed(a), signed(b)).view(_U32)


def _signed_minimum(a: Array, b: Array) -> Array:
    return np.minimum(signed(a), signed(b)).view(_U32)


def _overflow_of_subtract(result: Array, a: Array, b: Array) -> Array:
    overflow: Array = signed((a ^ b) & (a ^ result)) < 0
    return overflow


def _shift_left_add(count: int) -> tuple[Callable[..., Array], Condition]:
    def wide(a: Array, b: Array) -> Array:
        return (a.astype(_U64) << _U64(count)) + b.astype(_U64)

    return lambda a, b: wide(a, b).astype(_U32), lambda _result, a, b: (wide(a, b) >> _U64(32)) != 0


def _sign_extend(bits: int) -> Callable[[Array], Array]:
    shift = 32 - bits
    return lambda a: (signed(a << _U32(shift)) >> shift).view(_U32)


_LOGIC: Final[dict[str, Callable[..., Array]]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "andn2": lambda a, b: a & ~b,
    "orn2": lambda a, b: a | ~b,
    "nand": lambda a, b: ~(a & b),
    "nor": lambda a, b: ~(a | b),
    "xnor": lambda a, b: ~(a ^ b),
}
SAVE_EXEC: Final[dict[str, Callable[..., Array]]] = {
    **_LOGIC,
    "andn1": lambda a, b: ~a & b,
    "orn1": lambda a, b: ~a | b,
}
"""How s_*_saveexec combines its source (first) with EXEC (second)."""


class ScalarOperation(NamedTuple):
    """A scalar instruction that needs nothing but its sources.

    Attributes:
        function: from the sources, uint32[W] or uint64[W], to the result.
        condition: what SCC becomes; None where it stays.
        source_widths: of the sources.
        width: of the result.
    """

    function: Callable[..., Array]
    condition: Condition | None
    source_widths: tuple[int, ...]
    width: int = 32


_Table = dict[str, ScalarOperation]


def _logic(width: int) -> _Table:
    one, two, shift = (width,), (width, width), (width, 32)
    return {
        **{f"{name}_b{width}": ScalarOperation(function, _not_zero, two, width) for name, function in _LOGIC.items()},
        f"mov_b{width}": ScalarOperation(np.positive, None, one, width),
        f"not_b{width}": ScalarOperation(np.invert, _not_zero, one, width),
        f"lshl_b{width}": ScalarOperation(lambda a, b: a << _count(b, a), _not_zero, shift, width),
        f"lshr_b{width}": ScalarOperation(lambda a, b: a >> _count(b, a), _not_zero, shift, width),
        f"ashr_i{width}": ScalarOperation(_arithmetic_shift, _not_zero, shift, width),
        f"bcnt1_i32_b{width}": ScalarOperation(count_ones, _not_zero, one),
        f"bcnt0_i32_b{width}": ScalarOperation(lambda a: count_ones(~a), _not_zero, one),
        f"ff1_i32_b{width}": ScalarOperation(trailing_zeros, None, one),
    }


def _arithmetic() -> _Table:
    two = (32, 32)
    return {
        "mul_i32": ScalarOperation(np.multiply, None, two),
        "mul_hi_u32": ScalarOperation(_multiply_high_unsigned, None, two),
        "mul_hi_i32": ScalarOperation(_multiply_high_signed, None, two),
        "add_u32": ScalarOperation(np.add, lambda result, a, _b: result < a, two),
        "add_i32": ScalarOperation(np.add, overflow_of_add, two),
        "sub_u32": ScalarOperation(np.subtract, lambda _result, a, b: a < b, two),
        "sub_i32": ScalarOperation(np.subtract, _overflow_of_subtract, two),
        "max_u32": ScalarOperation(np.maximum, lambda _result, a, b: a > b, two),
        "min_u32": ScalarOperation(np.minimum, lambda _result, a, b: a < b, two),
        "max_i32": ScalarOperation(_signed_maximum, lambda _result, a, b: signed(a) > signed(b), two),
        "min_i32": ScalarOperation(_signed_minimum, lambda _result, a, b: signed(a) < signed(b), two),
        "abs_i32": ScalarOperation(lambda a: np.abs(signed(a)).view(_U32), _not_zero, (32,)),
        **{f"lshl{count}_add_u32": ScalarOperation(*_shift_left_add(count), two) for count in range(1, 5)},
    }


SCALAR_OPERATIONS: Final[_Table] = {
    **_logic(32),
    **_logic(64),
    **_arithmetic(),
    "bfm_b32": ScalarOperation(_bit_field_mask, None, (32, 32)),
    "bfm_b64": ScalarOperation(lambda a, b: _bit_field_mask(a.astype(_U64), b.astype(_U64)), None, (32, 32), 64),
    "bfe_u32": ScalarOperation(_extract_unsigned, _not_zero, (32, 32)),
    "bfe_i32": ScalarOperation(_extract_signed, _not_zero, (32, 32)),
    "brev_b32": ScalarOperation(reverse_bits, None, (32,)),
    "flbit_i32_b32": ScalarOperation(leading_zeros, None, (32,)),
    "sext_i32_i8": ScalarOperation(_sign_extend(8), None, (32,)),
    "sext_i32_i16": ScalarOperation(_sign_extend(16), None, (32,)),
    "pack_ll_b32_b16": ScalarOperation(lambda a, b: (a & _LOW) | (b << _U32(16)), None, (32, 32)),
    "pack_lh_b32_b16": ScalarOperation(lambda a, b: (a & _LOW) | (b & ~_LOW), None, (32, 32)),
    "pack_hh_b32_b16": ScalarOperation(lambda a, b: (a >> _U32(16)) | (b & ~_LOW), None, (32, 32)),
}
"""By the mnemonic without its ``s_``."""
