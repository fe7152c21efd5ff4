"""Scalar instructions of the emulator against plain integer arithmetic, and branches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from tests.emulated.cdna.snippets import run_lanes

Scalar = Callable[[int, int], int]
WORD, WIDE = 1 << 32, 1 << 64
VALUES = (0, 1, 2, 31, 32, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0x12345678, 0x00ABCDEF)


def signed(x: int, bits: int = 32) -> int:
    return x - (1 << bits) if x >> (bits - 1) & 1 else x


def field(x: int, place: int) -> int:
    return (x >> (place & 31)) & ((1 << min(place >> 16 & 127, 32)) - 1)


def signed_field(x: int, place: int) -> int:
    width = min(place >> 16 & 127, 32)
    return signed(field(x, place), width) if width else 0


TWO_SOURCES: dict[str, tuple[Scalar, Scalar | None]] = {
    "s_add_u32": (lambda a, b: a + b, lambda a, b: a + b >= WORD),
    "s_sub_u32": (lambda a, b: a - b, lambda a, b: a < b),
    "s_add_i32": (lambda a, b: a + b, lambda a, b: not -(1 << 31) <= signed(a) + signed(b) < 1 << 31),
    "s_sub_i32": (lambda a, b: a - b, lambda a, b: not -(1 << 31) <= signed(a) - signed(b) < 1 << 31),
    "s_mul_i32": (lambda a, b: a * b, None),
    "s_mul_hi_u32": (lambda a, b: a * b >> 32, None),
    "s_mul_hi_i32": (lambda a, b: signed(a) * signed(b) >> 32, None),
    "s_min_i32": (lambda a, b: min(signed(a), signed(b)), None),
    "s_max_i32": (lambda a, b: max(signed(a), signed(b)), None),
    "s_min_u32": (min, None),
    "s_max_u32": (max, None),
    "s_and_b32": (lambda a, b: a & b, lambda a, b: a & b != 0),
    "s_or_b32": (lambda a, b: a | b, lambda a, b: a | b != 0),
    "s_xor_b32": (lambda a, b: a ^ b, lambda a, b: a != b),
    "s_andn2_b32": (lambda a, b: a & ~b, lambda a, b: a & ~b != 0),
    "s_orn2_b32": (lambda a, b: a | (~b & (WORD - 1)), None),
    "s_nand_b32": (lambda a, b: ~(a & b), None),
    "s_nor_b32": (lambda a, b: ~(a | b), None),
    "s_xnor_b32": (lambda a, b: ~(a ^ b), None),
    "s_lshl_b32": (lambda a, b: a << (b & 31), lambda a, b: (a << (b & 31)) % WORD != 0),
    "s_lshr_b32": (lambda a, b: a >> (b & 31), lambda a, b: a >> (b & 31) != 0),
    "s_ashr_i32": (lambda a, b: signed(a) >> (b & 31), lambda a, b: signed(a) >> (b & 31) != 0),
    "s_bfm_b32": (lambda a, b: ((1 << (a & 31)) - 1) << (b & 31), None),
    "s_bfe_u32": (field, lambda a, b: field(a, b) != 0),
    "s_bfe_i32": (signed_field, lambda a, b: signed_field(a, b) != 0),
    "s_lshl2_add_u32": (lambda a, b: (a << 2) + b, lambda a, b: (a << 2) + b >= WORD),
    "s_lshl4_add_u32": (lambda a, b: (a << 4) + b, lambda a, b: (a << 4) + b >= WORD),
    "s_pack_ll_b32_b16": (lambda a, b: a % 65536 + (b << 16), None),
    "s_pack_lh_b32_b16": (lambda a, b: a % 65536 + (b & 0xFFFF0000), None),
    "s_pack_hh_b32_b16": (lambda a, b: (a >> 16) + (b & 0xFFFF0000), None),
}


@pytest.mark.parametrize("name", TWO_SOURCES)
def test_two_sources(name: str) -> None:
    function, condition = TWO_SOURCES[name]
    pairs = list(product(VALUES, VALUES))
    if "bfe" in name:
        pairs = [(a, offset | width << 16) for a in VALUES for offset in (0, 5, 31) for width in (0, 1, 7, 31, 32, 64)]
    for start in range(0, len(pairs), 8):
        chosen = pairs[start : start + 8]
        lines = []
        for number, _pair in enumerate(chosen):
            lines.append(f"{name} s{40 + 2 * number}, s{8 + 2 * number}, s{9 + 2 * number}")
            lines.append(f"s_cselect_b32 s{41 + 2 * number}, 1, 0" if condition else "")
        results = [
            f"s{40 + 2 * number + extra}" for number in range(len(chosen)) for extra in range(1 + bool(condition))
        ]
        found = run_lanes("\n".join(lines), [], [x for pair in chosen for x in pair], results)[:, 0]
        expected: list[int] = []
        for a, b in chosen:
            expected += [function(a, b) % WORD] + ([int(condition(a, b))] if condition else [])
        assert found.tolist() == expected, chosen


def test_carries_chain_to_wide_arithmetic() -> None:
    for a, b in product((0x1_FFFFFFFF, WIDE - 1, 0x8000_0000_0000_0000, 5), (1, 0xFFFF_FFFF_0000_0001, WIDE - 1)):
        halves = [a % WORD, a >> 32, b % WORD, b >> 32]
        body = (
            "s_add_u32 s40, s8, s10\ns_addc_u32 s41, s9, s11\ns_cselect_b32 s42, 1, 0\n"
            "s_sub_u32 s43, s8, s10\ns_subb_u32 s44, s9, s11\ns_cselect_b32 s45, 1, 0"
        )
        low, high, carry, low2, high2, borrow = run_lanes(body, [], halves, [f"s{r}" for r in range(40, 46)])[:, 0]
        assert (int(low) | int(high) << 32, carry) == ((a + b) % WIDE, (a + b) >> 64)
        assert (int(low2) | int(high2) << 32, borrow) == ((a - b) % WIDE, a < b)


def test_one_source_and_immediates() -> None:
    body = """
        s_not_b32 s40, s8
        s_brev_b32 s41, s8
        s_bcnt1_i32_b32 s42, s8
        s_ff1_i32_b32 s43, s8
        s_flbit_i32_b32 s44, s8
        s_sext_i32_i8 s45, s8
        s_sext_i32_i16 s46, s9
        s_abs_i32 s47, s9
        s_movk_i32 s48, 0xff80
        s_mov_b32 s49, s8
        s_addk_i32 s49, 0x8000
        s_mov_b32 s50, s8
        s_mulk_i32 s50, 3
        s_ff1_i32_b32 s51, 0
    """
    results = [f"s{register}" for register in range(40, 52)]
    a, b = 0x12345680, 0xFFFF8001
    found = run_lanes(body, [], [a, b], results)[:, 0].tolist()
    assert found == [
        ~a % WORD,
        int(f"{a:032b}"[::-1], 2),
        a.bit_count(),
        7,
        3,
        0xFFFFFF80,
        0xFFFF8001,
        0x7FFF,
        0xFFFFFF80,
        a - 0x8000,
        a * 3 % WORD,
        WORD - 1,
    ]


def test_wide_shifts_and_masks() -> None:
    value = 0x8000_0001_2345_6789
    body = """
        s_lshl_b64 s[40:41], s[8:9], s10
        s_lshr_b64 s[42:43], s[8:9], s10
        s_ashr_i64 s[44:45], s[8:9], s10
        s_bfm_b64 s[46:47], s10, 4
        s_not_b64 s[48:49], s[8:9]
        s_bcnt1_i32_b64 s50, s[8:9]
        s_mov_b64 s[52:53], 0xfffffff0
        s_mov_b64 s[54:55], -3
    """
    results = [f"s{register}" for register in range(40, 56) if register != 51]
    found = run_lanes(body, [], [value % WORD, value >> 32, 36], results)[:, 0].tolist()
    wide = [found[i] | found[i + 1] << 32 for i in (0, 2, 4, 6, 8)]
    arithmetic = (signed(value, 64) >> 36) % WIDE
    assert wide == [(value << 36) % WIDE, value >> 36, arithmetic, ((1 << 36) - 1) << 4, ~value % WIDE]
    assert found[10] == value.bit_count()
    assert found[11] | found[12] << 32 == 0xFFFFFFF0  # a literal is zero-extended, an inline constant sign-extended
    assert found[13] | found[14] << 32 == WIDE - 3


@pytest.mark.parametrize("kind", ["eq", "lg", "gt", "ge", "lt", "le"])
@pytest.mark.parametrize("number", ["i32", "u32"])
def test_comparisons(kind: str, number: str) -> None:
    compare: dict[str, Callable[[int, int], bool]] = {
        "eq": int.__eq__,
        "lg": int.__ne__,
        "gt": int.__gt__,
        "ge": int.__ge__,
        "lt": int.__lt__,
        "le": int.__le__,
    }
    for a, b in product((0, 5, 0x7FFFFFFF, 0x80000000, WORD - 5), repeat=2):
        x, y, immediate = (signed(a), signed(b), -5) if number == "i32" else (a, b, 0xFFFB)
        body = (
            f"s_cmp_{kind}_{number} s8, s9\ns_cselect_b32 s40, 1, 0\n"
            f"s_cmpk_{kind}_{number} s8, 0xfffb\ns_cselect_b32 s41, 1, 0"
        )
        found = run_lanes(body, [], [a, b], ["s40", "s41"])[:, 0].tolist()
        assert found == [compare[kind](x, y), compare[kind](x, immediate)]


def test_bit_comparisons_and_conditional_moves() -> None:
    body = """
        s_bitcmp1_b32 s8, 3
        s_cselect_b32 s40, 7, 9
        s_bitcmp0_b32 s8, 3
        s_cselect_b64 s[42:43], s[8:9], -1
        s_mov_b32 s44, 1
        s_cmov_b32 s44, s9
        s_bitcmp1_b32 s8, 3
        s_cmov_b32 s44, s9
    """
    found = run_lanes(body, [], [8, 77], ["s40", "s42", "s43", "s44"])[:, 0].tolist()
    assert found == [7, WORD - 1, WORD - 1, 77]


def test_saveexec_narrows_the_lanes_and_restores_them() -> None:
    body = """
        v_mov_b32_e32 v10, 1
        v_cmp_gt_u32_e32 vcc, 20, v0
        s_and_saveexec_b64 s[40:41], vcc
        s_cbranch_execz .Lnone
        v_mov_b32_e32 v10, 2
        v_cmp_gt_u32_e64 s[42:43], 8, v0
        s_andn2_b64 exec, exec, s[42:43]
        v_mov_b32_e32 v10, 3
    .Lnone:
        s_or_b64 exec, exec, s[40:41]
        v_add_u32_e32 v10, v10, v10
    """
    lane = np.arange(128)
    expected = np.where(lane < 8, 4, np.where(lane < 20, 6, 2))
    np.testing.assert_array_equal(run_lanes(body, num_warps=2)[0], expected)


@pytest.mark.parametrize("order", [None, "fwd", "rev"])
def test_waves_that_diverge_meet_again(order: None) -> None:
    """Each wave loops as often as its number says, then all add what comes after the loop."""
    body = """
        v_readfirstlane_b32 s40, v0
        s_lshr_b32 s40, s40, 6
        s_mov_b32 s41, 0
    .Lloop:
        s_cmp_eq_u32 s40, 0
        s_cbranch_scc1 .Ldone
        s_add_i32 s41, s41, 10
        s_sub_i32 s40, s40, 1
        s_branch .Lloop
    .Ldone:
        s_barrier
        s_add_i32 s41, s41, 1
        v_mov_b32_e32 v10, s41
    """
    found = run_lanes(body, num_warps=4, order=order)[0]
    np.testing.assert_array_equal(found, np.repeat([1, 11, 21, 31], 64))
