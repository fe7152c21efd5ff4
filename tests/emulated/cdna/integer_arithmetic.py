"""What the vector ALU's integer and bit instructions compute."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.emulated.cdna.operations import Operation, Table

Array = NDArray[Any]
_U32, _U64 = np.uint32, np.uint64


def shift_count(count: Array, bits: int) -> Array:
    """Returns a shift count modulo a power of two, as the shifters take it."""
    result: Array = count & count.dtype.type(bits - 1)
    return result


def count_ones(x: Array) -> Array:
    """Returns the number of set bits, uint32."""
    return np.bitwise_count(x).astype(_U32)


def leading_zeros(x: Array) -> Array:
    """Returns the number of zeros before the highest set bit of uint32, or all ones where there is none."""
    return np.where(x == 0, _U32(0xFFFFFFFF), (32 - np.frexp(x.astype(np.float64))[1]).astype(_U32))


def trailing_zeros(x: Array) -> Array:
    """Returns the index of the lowest set bit, or all ones where there is none; uint32."""
    lowest = x & (~x + x.dtype.type(1))
    return np.where(x == 0, _U32(0xFFFFFFFF), count_ones(lowest - x.dtype.type(1)))


def reverse_bits(x: Array) -> Array:
    """Returns uint32 with the order of its bits reversed."""
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0x0000FFFF)):
        x = ((x >> _U32(shift)) & _U32(mask)) | ((x & _U32(mask)) << _U32(shift))
    return x


def extract_unsigned(x: Array, offset: Array, width: Array) -> Array:
    """Returns `width` (modulo 32) bits of uint32 from `offset` (modulo 32) on."""
    return (x >> shift_count(offset, 32)) & ((_U32(1) << shift_count(width, 32)) - _U32(1))


def extract_signed(x: Array, offset: Array, width: Array) -> Array:
    """Returns `width` (modulo 32) bits from `offset` (modulo 32) on, sign-extended to int32."""
    bits = shift_count(width, 32).astype(np.int64)
    field = ((x.astype(np.int64) & 0xFFFFFFFF) >> shift_count(offset, 32).astype(np.int64)) & (
        (np.int64(1) << bits) - 1
    )
    top = np.int64(1) << np.maximum(bits - 1, 0)
    return np.where(bits == 0, 0, (field ^ top) - top).astype(np.int32)


def _concatenate(high: Array, low: Array) -> Array:
    return (high.astype(_U64) << _U64(32)) | low.astype(_U64)


def permute_bytes(high: Array, low: Array, selectors: Array) -> Array:
    """``v_perm_b32``: each byte of the result is picked from the 8 bytes of high:low by a selector byte.

    0-7 take that byte, 8-11 the sign of byte 1, 3, 5 or 7 as 0x00 or 0xFF, 12 gives 0x00, more gives 0xFF.
    """
    first = int(selectors.flat[0])
    if selectors.size == 1 or (selectors == first).all():
        result: Array = _U32(0) | _permuted_byte(high, low, first & 255)
        for place in range(1, 4):
            byte = _permuted_byte(high, low, (first >> (8 * place)) & 255)
            result = result | (byte << _U32(8 * place))
        return result
    wide, selectors = np.broadcast_arrays(_concatenate(high, low), selectors)
    table = np.empty((*wide.shape, 16), np.uint8)
    table[..., :8] = np.ascontiguousarray(wide)[..., None].view(np.uint8)
    table[..., 8:12] = np.where(table[..., 1:8:2] >= 128, 255, 0)
    table[..., 12] = 0
    table[..., 13:] = 255
    chosen = np.minimum(np.ascontiguousarray(selectors)[..., None].view(np.uint8), 15)
    return np.take_along_axis(table, chosen.astype(np.intp), -1).view(_U32)[..., 0]


def _permuted_byte(high: Array, low: Array, selector: int) -> Array:
    if selector < 8:
        source = low if selector < 4 else high
        return (source >> _U32(8 * (selector & 3))) & _U32(255)
    if selector < 12:
        source = low if selector < 10 else high
        return (source >> _U32(15 + 16 * (selector & 1)) & _U32(1)) * _U32(255)
    return np.full((1, 1), 0 if selector == 12 else 255, _U32)


def _low24(x: Array) -> Array:
    return x & _U32(0xFFFFFF) if x.dtype == _U32 else (x << 8) >> 8


def _multiply_high(a: Array, b: Array) -> Array:
    wide = np.uint64 if a.dtype == _U32 else np.int64
    return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)


def _median(a: Array, b: Array, c: Array) -> Array:
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def _shift_left_reversed(a: Array, b: Array) -> Array:
    result: Array = b << shift_count(a, 8 * b.dtype.itemsize).astype(b.dtype)
    return result


def _shift_right_reversed(a: Array, b: Array) -> Array:
    result: Array = b >> shift_count(a, 8 * b.dtype.itemsize).astype(b.dtype)
    return result


def _align(unit: int, modulus: int) -> Any:
    def align(high: Array, low: Array, count: Array) -> Array:
        shift = shift_count(count, modulus).astype(_U64) * _U64(unit)
        result: Array = (_concatenate(high, low) >> shift).astype(_U32)
        return result

    return align


def _extremes() -> Table:
    table: Table = {}
    for name in ("i32", "u32", "i16", "u16"):
        table[f"v_max_{name}"] = Operation(name, (name,) * 2, np.maximum)
        table[f"v_min_{name}"] = Operation(name, (name,) * 2, np.minimum)
        table[f"v_max3_{name}"] = Operation(name, (name,) * 3, lambda a, b, c: np.maximum(np.maximum(a, b), c))
        table[f"v_min3_{name}"] = Operation(name, (name,) * 3, lambda a, b, c: np.minimum(np.minimum(a, b), c))
        table[f"v_med3_{name}"] = Operation(name, (name,) * 3, _median)
    return table


def _sixteen_bit() -> Table:
    table: Table = {}
    for name, function in (("add", np.add), ("sub", np.subtract), ("mul_lo", np.multiply)):
        table[f"v_{name}_u16"] = Operation("u16", ("u16", "u16"), function)
    for suffix in ("u16", "b16"):
        table[f"v_lshlrev_{suffix}"] = Operation("u16", ("u16", "u16"), _shift_left_reversed)
        table[f"v_lshrrev_{suffix}"] = Operation("u16", ("u16", "u16"), _shift_right_reversed)
    table["v_ashrrev_i16"] = Operation("i16", ("i16", "i16"), _shift_right_reversed)
    table["v_subrev_u16"] = Operation("u16", ("u16", "u16"), lambda a, b: b - a)
    for name in ("v_mad_u16", "v_mad_legacy_u16"):
        table[name] = Operation("u16", ("u16",) * 3, lambda a, b, c: a * b + c)
    return table


def _byte_to_float(byte: int) -> Operation:
    return Operation("f32", ("u32",), lambda a: ((a >> _U32(8 * byte)) & _U32(255)).astype(np.float32))


def _u32(sources: int, function: Any) -> Operation:
    return Operation("u32", ("u32",) * sources, function)


INTEGER_OPERATIONS: Table = {
    **_extremes(),
    **_sixteen_bit(),
    **{f"v_cvt_f32_ubyte{byte}": _byte_to_float(byte) for byte in range(4)},
    "v_mov_b32": _u32(1, np.positive),
    "v_accvgpr_read_b32": _u32(1, np.positive),
    "v_accvgpr_write_b32": _u32(1, np.positive),
    "v_accvgpr_mov_b32": _u32(1, np.positive),
    "v_mov_b64": Operation("u64", ("u64",), np.positive),
    "v_not_b32": _u32(1, np.invert),
    "v_bfrev_b32": _u32(1, reverse_bits),
    "v_ffbh_u32": _u32(1, leading_zeros),
    "v_ffbl_b32": _u32(1, trailing_zeros),
    "v_bcnt_u32_b32": _u32(2, lambda a, b: count_ones(a) + b),
    "v_add_u32": _u32(2, np.add),
    "v_sub_u32": _u32(2, np.subtract),
    "v_subrev_u32": _u32(2, lambda a, b: b - a),
    "v_add_i32": Operation("i32", ("i32", "i32"), np.add),
    "v_sub_i32": Operation("i32", ("i32", "i32"), np.subtract),
    "v_mul_lo_u32": _u32(2, np.multiply),
    "v_mul_hi_u32": _u32(2, _multiply_high),
    "v_mul_hi_i32": Operation("i32", ("i32", "i32"), _multiply_high),
    "v_mul_u32_u24": _u32(2, lambda a, b: _low24(a) * _low24(b)),
    "v_mad_u32_u24": _u32(3, lambda a, b, c: _low24(a) * _low24(b) + c),
    "v_mul_i32_i24": Operation("i32", ("i32", "i32"), lambda a, b: _low24(a) * _low24(b)),
    "v_mad_i32_i24": Operation("i32", ("i32",) * 3, lambda a, b, c: _low24(a) * _low24(b) + c),
    "v_and_b32": _u32(2, np.bitwise_and),
    "v_or_b32": _u32(2, np.bitwise_or),
    "v_xor_b32": _u32(2, np.bitwise_xor),
    "v_xnor_b32": _u32(2, lambda a, b: ~(a ^ b)),
    "v_lshlrev_b32": _u32(2, _shift_left_reversed),
    "v_lshrrev_b32": _u32(2, _shift_right_reversed),
    "v_ashrrev_i32": Operation("i32", ("i32", "i32"), _shift_right_reversed),
    "v_lshlrev_b64": Operation("u64", ("u32", "u64"), _shift_left_reversed),
    "v_lshrrev_b64": Operation("u64", ("u32", "u64"), _shift_right_reversed),
    "v_ashrrev_i64": Operation("i64", ("u32", "i64"), _shift_right_reversed),
    "v_lshl_add_u32": _u32(3, lambda a, b, c: (a << shift_count(b, 32)) + c),
    "v_lshl_or_b32": _u32(3, lambda a, b, c: (a << shift_count(b, 32)) | c),
    "v_add_lshl_u32": _u32(3, lambda a, b, c: (a + b) << shift_count(c, 32)),
    "v_add3_u32": _u32(3, lambda a, b, c: a + b + c),
    "v_or3_b32": _u32(3, lambda a, b, c: a | b | c),
    "v_and_or_b32": _u32(3, lambda a, b, c: (a & b) | c),
    "v_xad_u32": _u32(3, lambda a, b, c: (a ^ b) + c),
    "v_bfi_b32": _u32(3, lambda a, b, c: (a & b) | (~a & c)),
    "v_bfm_b32": _u32(2, lambda a, b: ((_U32(1) << shift_count(a, 32)) - _U32(1)) << shift_count(b, 32)),
    "v_bfe_u32": _u32(3, extract_unsigned),
    "v_bfe_i32": Operation("i32", ("i32", "u32", "u32"), extract_signed),
    "v_lshl_add_u64": Operation(
        "u64", ("u64", "u32", "u64"), lambda a, b, c: (a << shift_count(b, 8).astype(_U64)) + c
    ),
    "v_alignbit_b32": _u32(3, _align(1, 32)),
    "v_alignbyte_b32": _u32(3, _align(8, 4)),
    "v_perm_b32": _u32(3, permute_bytes),
    "v_sad_u32": _u32(3, lambda a, b, c: np.where(a > b, a - b, b - a) + c),
}
"""Integer instructions of the vector ALU whose lanes are independent and that need nothing but their sources."""
