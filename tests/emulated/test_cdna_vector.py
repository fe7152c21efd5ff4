"""Vector instructions of the emulator against arithmetic on single lanes."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulated.cdna.snippets import run_lanes

WORD, WIDE = 1 << 32, 1 << 64
EDGES = [0, 1, 2, 31, 32, 33, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFF, 0x800000, 0xFFFFFF, 0x1000000]
EDGES += [0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF]


def integers(seed: int) -> NDArray[np.uint32]:
    """64 patterns: edge cases and random ones, in another order for every seed."""
    random = np.random.default_rng(seed)
    values = np.concatenate([EDGES, random.integers(0, WORD, 64 - len(EDGES))])
    return random.permutation(values).astype(np.uint32)


A, B, C = integers(1), integers(2), integers(3)


def s(x: int, bits: int = 32) -> int:
    x %= 1 << bits
    return x - (1 << bits) if x >> (bits - 1) else x


def by_name(function: Callable[..., Any], **values: Any) -> Any:
    """Calls a reference with the sources that its parameters name."""
    return function(**{name: values[name] for name in signature(function).parameters})


def median(a: int, b: int, c: int) -> int:
    return sorted((a, b, c))[1]


def bytes_of(a: int, b: int, c: int) -> int:
    wide, result = a << 32 | b, 0
    for place in range(4):
        selector = c >> (8 * place) & 255
        if selector < 8:
            byte = wide >> (8 * selector) & 255
        elif selector < 12:
            byte = 255 * (wide >> (16 * (selector - 8) + 15) & 1)
        else:
            byte = 0 if selector == 12 else 255
        result |= byte << (8 * place)
    return result


def bit_field(a: int, b: int, c: int) -> int:
    return a >> (b & 31) & ((1 << (c & 31)) - 1)


def signed_bit_field(a: int, b: int, c: int) -> int:
    return s(bit_field(a, b, c), c & 31) if c & 31 else 0


INTEGER: dict[str, Callable[..., int]] = {
    "v_add_u32_e32 v10, v1, v2": lambda a, b: a + b,
    "v_sub_u32_e32 v10, v1, v2": lambda a, b: a - b,
    "v_subrev_u32_e32 v10, v1, v2": lambda a, b: b - a,
    "v_add_u32_e64 v10, v1, v2 clamp": lambda a, b: min(a + b, WORD - 1),
    "v_sub_u32_e64 v10, v1, v2 clamp": lambda a, b: max(a - b, 0),
    "v_sub_i32 v10, v1, v2 clamp": lambda a, b: min(max(s(a) - s(b), -(1 << 31)), (1 << 31) - 1),
    "v_mul_lo_u32 v10, v1, v2": lambda a, b: a * b,
    "v_mul_hi_u32 v10, v1, v2": lambda a, b: a * b >> 32,
    "v_mul_hi_i32 v10, v1, v2": lambda a, b: s(a) * s(b) >> 32,
    "v_mul_u32_u24_e32 v10, v1, v2": lambda a, b: (a % (1 << 24)) * (b % (1 << 24)),
    "v_mad_u32_u24 v10, v1, v2, v3": lambda a, b, c: (a % (1 << 24)) * (b % (1 << 24)) + c,
    "v_mul_i32_i24_e32 v10, v1, v2": lambda a, b: s(a, 24) * s(b, 24),
    "v_mad_i32_i24 v10, v1, v2, v3": lambda a, b, c: s(a, 24) * s(b, 24) + c,
    "v_and_b32_e32 v10, v1, v2": lambda a, b: a & b,
    "v_or_b32_e32 v10, v1, v2": lambda a, b: a | b,
    "v_xor_b32_e32 v10, v1, v2": lambda a, b: a ^ b,
    "v_xnor_b32_e32 v10, v1, v2": lambda a, b: ~(a ^ b),
    "v_not_b32_e32 v10, v1": lambda a: ~a,
    "v_bfrev_b32_e32 v10, v1": lambda a: int(f"{a:032b}"[::-1], 2),
    "v_ffbh_u32_e32 v10, v1": lambda a: 32 - a.bit_length() if a else -1,
    "v_ffbl_b32_e32 v10, v1": lambda a: (a & -a).bit_length() - 1,
    "v_bcnt_u32_b32 v10, v1, v2": lambda a, b: a.bit_count() + b,
    "v_lshlrev_b32_e32 v10, v1, v2": lambda a, b: b << (a & 31),
    "v_lshrrev_b32_e32 v10, v1, v2": lambda a, b: b >> (a & 31),
    "v_ashrrev_i32_e32 v10, v1, v2": lambda a, b: s(b) >> (a & 31),
    "v_lshl_add_u32 v10, v1, v2, v3": lambda a, b, c: (a << (b & 31)) + c,
    "v_lshl_or_b32 v10, v1, v2, v3": lambda a, b, c: a << (b & 31) | c,
    "v_add_lshl_u32 v10, v1, v2, v3": lambda a, b, c: (a + b) << (c & 31),
    "v_add3_u32 v10, v1, v2, v3": lambda a, b, c: a + b + c,
    "v_or3_b32 v10, v1, v2, v3": lambda a, b, c: a | b | c,
    "v_and_or_b32 v10, v1, v2, v3": lambda a, b, c: a & b | c,
    "v_xad_u32 v10, v1, v2, v3": lambda a, b, c: (a ^ b) + c,
    "v_bfi_b32 v10, v1, v2, v3": lambda a, b, c: a & b | ~a & c,
    "v_bfm_b32 v10, v1, v2": lambda a, b: ((1 << (a & 31)) - 1) << (b & 31),
    "v_bfe_u32 v10, v1, v2, v3": bit_field,
    "v_bfe_i32 v10, v1, v2, v3": signed_bit_field,
    "v_alignbit_b32 v10, v1, v2, v3": lambda a, b, c: (a << 32 | b) >> (c & 31),
    "v_alignbyte_b32 v10, v1, v2, v3": lambda a, b, c: (a << 32 | b) >> 8 * (c & 3),
    "v_perm_b32 v10, v1, v2, v3": bytes_of,
    "v_sad_u32 v10, v1, v2, v3": lambda a, b, c: abs(a - b) + c,
    "v_max_i32_e32 v10, v1, v2": lambda a, b: max(s(a), s(b)),
    "v_min_u32_e32 v10, v1, v2": lambda a, b: -max(-a, -b),
    "v_max3_i32 v10, v1, v2, v3": lambda a, b, c: max(s(a), s(b), s(c)),
    "v_med3_i32 v10, v1, v2, v3": lambda a, b, c: median(s(a), s(b), s(c)),
    "v_med3_u32 v10, v1, v2, v3": median,
    "v_add_u16_e32 v10, v1, v2": lambda a, b: (a + b) % 65536,
    "v_mul_lo_u16_e32 v10, v1, v2": lambda a, b: a * b % 65536,
    "v_lshlrev_b16_e32 v10, v1, v2": lambda a, b: (b << (a & 15)) % 65536,
    "v_lshrrev_b16_e32 v10, v1, v2": lambda a, b: b % 65536 >> (a & 15),
    "v_ashrrev_i16_e32 v10, v1, v2": lambda a, b: (s(b, 16) >> (a & 15)) % 65536,
    "v_max_i16_e32 v10, v1, v2": lambda a, b: max(s(a, 16), s(b, 16)) % 65536,
    "v_pk_add_u16 v10, v1, v2": lambda a, b: (a + b) % 65536 | ((a >> 16) + (b >> 16)) % 65536 << 16,
    "v_pk_lshlrev_b16 v10, 3, v2 op_sel_hi:[0,1]": lambda b: (b << 3) % 65536 | (b >> 16 << 3) % 65536 << 16,
    "v_pk_max_i16 v10, v1, v2 op_sel:[1,0] op_sel_hi:[0,1]": lambda a, b: (
        max(s(a >> 16, 16), s(b, 16)) % 65536 | (max(s(a, 16), s(b >> 16, 16)) % 65536) << 16
    ),
    "v_add_u32_sdwa v10, v1, v2 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_2 src1_sel:WORD_1": lambda a, b: (
        (a >> 16 & 255) + (b >> 16)
    ),
    "v_add_u32_sdwa v10, sext(v1), v2 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_0 src1_sel:DWORD": (
        lambda a, b: s(a, 8) + b
    ),
    "v_mov_b32_e32 v10, v3\nv_or_b32_sdwa v10, v1, v2 dst_sel:BYTE_1 dst_unused:UNUSED_PRESERVE src0_sel:DWORD "
    "src1_sel:DWORD": lambda a, b, c: c & ~0xFF00 | ((a | b) & 255) << 8,
    "v_add_u16_sdwa v10, v1, v2 dst_sel:WORD_1 dst_unused:UNUSED_PAD src0_sel:WORD_1 src1_sel:WORD_0": (
        lambda a, b: ((a >> 16) + b) % 65536 << 16
    ),
    "v_dot4_i32_i8 v10, v1, v2, v3": lambda a, b, c: sum(s(a >> 8 * i, 8) * s(b >> 8 * i, 8) for i in range(4)) + s(c),
    "v_cmp_gt_i32_e32 vcc, v1, v2\nv_cndmask_b32_e32 v10, v1, v2, vcc": lambda a, b: min(s(a), s(b)),
    "v_add_co_u32_e32 v10, vcc, v1, v2\nv_addc_co_u32_e32 v10, vcc, v3, v10, vcc": (
        lambda a, b, c: c + (a + b) % WORD + (a + b >= WORD)
    ),
    "v_sub_co_u32_e32 v10, vcc, v1, v2\nv_subb_co_u32_e64 v10, s[40:41], v3, v10, vcc": (
        lambda a, b, c: c - (a - b) % WORD - (a < b)
    ),
    "v_subrev_co_u32_e32 v11, vcc, v1, v2\nv_mov_b32_e32 v10, 0\nv_addc_co_u32_e32 v10, vcc, v11, v10, vcc": (
        lambda a, b: b - a + (b < a)
    ),
}


@pytest.mark.parametrize("text", INTEGER)
def test_integers(text: str) -> None:
    found = run_lanes(text, [A, B, C])[0].tolist()
    lanes = zip(A.tolist(), B.tolist(), C.tolist(), strict=True)
    expected = [by_name(INTEGER[text], a=a, b=b, c=c) % WORD for a, b, c in lanes]
    assert found == expected


def test_any_function_of_three_bits() -> None:
    for table in (0x00, 0xFF, 0x6A, 0xE4, 0x17):
        found = run_lanes(f"v_bitop3_b32 v10, v1, v2, v3 bitop3:{table:#x}", [A, B, C], arch="gfx950")[0]
        bits = [np.unpackbits(x.view(np.uint8)) for x in (A, B, C)]
        expected = table >> (4 * bits[0] + 2 * bits[1] + bits[2]) & 1
        np.testing.assert_array_equal(np.unpackbits(found.view(np.uint8)), expected)


WIDE_CASES: dict[str, Callable[..., int]] = {
    "v_lshlrev_b64 v[10:11], v3, v[1:2]": lambda x, c: x << (c & 63),
    "v_lshrrev_b64 v[10:11], v3, v[1:2]": lambda x, c: x >> (c & 63),
    "v_ashrrev_i64 v[10:11], v3, v[1:2]": lambda x, c: s(x, 64) >> (c & 63),
    "v_lshl_add_u64 v[10:11], v[1:2], 3, v[1:2]": lambda x: (x << 3) + x,
    "v_mad_u64_u32 v[10:11], s[40:41], v1, v3, v[1:2]": lambda x, c: x % WORD * c + x,
    "v_mad_i64_i32 v[10:11], s[40:41], v1, v3, v[1:2]": lambda x, c: s(x) * s(c) + x,
    "v_mad_u64_u32 v[12:13], vcc, v1, v3, v[1:2]\nv_mov_b32_e32 v11, 0\nv_cndmask_b32_e64 v10, 0, 1, vcc": (
        lambda x, c: x % WORD * c + x >= WIDE
    ),
    "v_mov_b64_e32 v[10:11], v[1:2]": lambda x: x,
    "v_mov_b64_e32 v[10:11], 0xffffff00": lambda: 0xFFFFFF00,
}


@pytest.mark.parametrize("text", WIDE_CASES)
def test_wide_integers(text: str) -> None:
    low, high = run_lanes(text, [A, B, C], results=("v10", "v11"))
    for a, b, c, found in zip(A.tolist(), B.tolist(), C.tolist(), (low + high.astype(object) * WORD), strict=True):
        assert int(found) == int(by_name(WIDE_CASES[text], x=b * WORD + a, c=c)) % WIDE


F = np.array(
    [0, -0.0, 1, -1, 1.5, 2.5, -2.5, 3e38, -3e38, 1e-40, -1e-40, np.inf, -np.inf, np.nan, 0.1, 1e10], np.float32
)
X = np.concatenate([F, np.random.default_rng(4).standard_normal(48).astype(np.float32) * 100])
Y = np.roll(X, 17)
Z = np.roll(X, 5)

FLOAT: dict[str, Callable[..., Any]] = {
    "v_add_f32_e32 v10, v1, v2": lambda x, y: x + y,
    "v_sub_f32_e32 v10, v1, v2": lambda x, y: x - y,
    "v_mul_f32_e32 v10, v1, v2": lambda x, y: x * y,
    "v_mul_f32_e64 v10, v1, -|v2|": lambda x, y: x * -np.abs(y),
    "v_add_f32_e64 v10, v1, v2 mul:2": lambda x, y: (x + y) * 2,
    "v_add_f32_e64 v10, v1, v2 clamp": lambda x, y: np.clip(np.nan_to_num(x + y), 0, 1),
    "v_max_f32_e32 v10, v1, v2": lambda x, y: np.where((x > y) | np.isnan(y), x, y),
    "v_min3_f32 v10, v1, v2, v3": lambda x, y, z: np.fmin(np.fmin(x, y), z),
    "v_floor_f32_e32 v10, v1": lambda x: np.floor(x.astype(np.float64)),
    "v_rndne_f32_e32 v10, v1": lambda x: np.rint(x.astype(np.float64)),
    "v_trunc_f32_e32 v10, v1": lambda x: np.trunc(x.astype(np.float64)),
    "v_ldexp_f32 v10, v1, 3": lambda x: x * np.float32(8),
    "v_cvt_f32_f16_e32 v10, v1": lambda x: x.view(np.uint32).astype(np.uint16).view(np.float16).astype(np.float32),
    "v_pk_fma_f32 v[10:11], v[1:2], v[2:3], v[1:2] op_sel_hi:[0,1,0]": lambda x, y: (
        x.astype(np.float64) * y + x
    ).astype(np.float32),
    "v_fma_mix_f32 v10, v1, v2, v3": lambda x, y, z: (x.astype(np.float64) * y + z).astype(np.float32),
}


@pytest.mark.parametrize("text", FLOAT)
def test_floats(text: str) -> None:
    found = run_lanes(text, [X, Y, Z])[0].view(np.float32)
    with np.errstate(all="ignore"):
        expected = by_name(FLOAT[text], x=X, y=Y, z=Z)
    np.testing.assert_array_equal(found, expected)


def test_comparisons_know_what_is_not_a_number() -> None:
    with np.errstate(invalid="ignore"):
        expected = {
            "lt": X < Y,
            "nlt": ~(X < Y),
            "lg": (X < Y) | (X > Y),
            "neq": ~(X == Y),
            "o": ~(np.isnan(X) | np.isnan(Y)),
            "u": np.isnan(X) | np.isnan(Y),
            "nge": ~(X >= Y),
            "tru": np.ones(64, bool),
            "f": np.zeros(64, bool),
        }
    for name, wanted in expected.items():
        body = f"v_cmp_{name}_f32_e32 vcc, v1, v2\nv_cndmask_b32_e64 v10, 0, 1, vcc"
        np.testing.assert_array_equal(run_lanes(body, [X, Y])[0], wanted, err_msg=name)


def test_classes_of_floats() -> None:
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)[0]
    values = np.array([signalling, np.nan, -np.inf, -1, -1e-40, -0.0, 0, 1e-40, 1, np.inf], np.float32)
    padded = np.resize(values, 64)
    for bit in range(10):
        body = (
            f"v_mov_b32_e32 v2, {1 << bit}\nv_cmp_class_f32_e64 s[40:41], v1, v2\nv_cndmask_b32_e64 v10, 0, 1, s[40:41]"
        )
        found = run_lanes(body, [padded])[0][:10]
        np.testing.assert_array_equal(found, np.arange(10) == bit)


def test_comparison_with_exec_restricts_the_lanes() -> None:
    body = "v_mov_b32_e32 v10, 1\nv_cmpx_lt_u32_e32 vcc, 40, v0\nv_mov_b32_e32 v10, 2"
    np.testing.assert_array_equal(run_lanes(body)[0], np.where(np.arange(64) > 40, 2, 1))


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_eight_bit_floats(arch: str) -> None:
    fp8, bf8 = (
        (ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz)
        if arch == "gfx942"
        else (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
    )
    values = np.random.default_rng(5).standard_normal(64).astype(np.float32) * 8
    low, high = values, np.roll(values, 1)
    for name, dtype in (("fp8", fp8), ("bf8", bf8)):
        body = f"""
            v_mov_b32_e32 v10, v3
            v_cvt_pk_{name}_f32 v10, v1, v2 op_sel:[0,0,1]
            v_cvt_pk_f32_{name}_sdwa v[12:13], v10 src0_sel:WORD_1
            v_cvt_f32_{name}_sdwa v14, v10 src0_sel:BYTE_3
            v_cvt_f32_{name}_sdwa v15, v10 src0_sel:BYTE_2
        """
        found = run_lanes(body, [low, high, C], results=("v10", "v12", "v13", "v14", "v15"), arch=arch)
        codes = [x.astype(dtype).view(np.uint8).astype(np.uint32) for x in (low, high)]
        np.testing.assert_array_equal(found[0], C & 0xFFFF | codes[0] << 16 | codes[1] << 24)
        wanted = [x.astype(dtype).astype(np.float32) for x in (low, high, high, low)]
        np.testing.assert_array_equal(found[1:].view(np.float32), wanted)


@pytest.mark.parametrize(("mode", "expected"), [(0, np.nan), (1, 448.0)])
def test_eight_bit_floats_saturate_as_the_mode_register_says(mode: int, expected: float) -> None:
    body = f"s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), {mode}\nv_mov_b32_e32 v10, 0\nv_cvt_pk_fp8_f32 v10, v1, v1"
    found = run_lanes(body, [np.full(64, 1e6, np.float32)], arch="gfx950")[0]
    codes = found.astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    np.testing.assert_array_equal(codes, np.full(64, expected))


def test_scaled_conversions() -> None:
    """gfx950: the scale's exponent multiplies when widening, divides when narrowing."""
    values = np.random.default_rng(6).standard_normal(64).astype(np.float32)
    body = """
        v_mov_b32_e32 v4, 0x40a00000
        v_mov_b32_e32 v10, 0
        v_cvt_scalef32_pk_fp4_f32 v10, v1, v2, v4
        v_cvt_scalef32_pk_f32_fp4 v[12:13], v10, v4
        v_mov_b32_e32 v14, 0
        v_cvt_scalef32_pk_fp8_f32 v14, v1, v2, v4
        v_cvt_scalef32_pk_bf16_fp8 v15, v14, v4
    """
    results = ("v12", "v13", "v15")
    low, high = values, np.roll(values, 3)
    found = run_lanes(body, [low * 4, high * 4], results=results, arch="gfx950")
    scale = 4  # of the 5.0 in v4 only the exponent counts
    for place, source in enumerate((low, high)):
        fp4 = source.astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale
        np.testing.assert_array_equal(found[place].view(np.float32), fp4)
        fp8 = source.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
        half = (found[2] >> (16 * place)).astype(np.uint16).view(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(half.astype(np.float32), fp8)


def test_accumulation_registers_are_apart() -> None:
    body = "v_accvgpr_write_b32 a10, v1\nv_mov_b32_e32 v10, v2\nv_accvgpr_read_b32 v11, a10"
    np.testing.assert_array_equal(run_lanes(body, [A, B], results=("v10", "v11")), [B, A])
