"""Instructions that move data between lanes, and matrix instructions' register layouts."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulated.cdna.snippets import run_lanes

LANE = np.arange(64)
ROW, IN_ROW = LANE // 16, LANE % 16
VALUES = np.random.default_rng(7).integers(0, 1 << 32, 64).astype(np.uint32)
OLD = np.random.default_rng(8).integers(0, 1 << 32, 64).astype(np.uint32)

SHUFFLES = {
    "quad_perm:[2,3,0,1]": (LANE ^ 2, LANE >= 0),
    "row_shl:3": (LANE + 3, IN_ROW + 3 < 16),
    "row_shr:5": (LANE - 5, IN_ROW >= 5),
    "row_ror:4": (ROW * 16 + (IN_ROW - 4) % 16, LANE >= 0),
    "row_mirror": (ROW * 16 + 15 - IN_ROW, LANE >= 0),
    "row_half_mirror": ((LANE & ~7) + 7 - (LANE & 7), LANE >= 0),
    "row_bcast:15": (ROW * 16 - 1, ROW >= 1),
    "row_bcast:31": (np.full(64, 31), ROW >= 2),
    "row_newbcast:6": (ROW * 16 + 6, LANE >= 0),
    "wave_shr:1": (LANE - 1, LANE >= 1),
    "wave_rol:1": ((LANE + 1) % 64, LANE >= 0),
}


@pytest.mark.parametrize("control", SHUFFLES)
def test_data_parallel_primitives(control: str) -> None:
    source, valid = SHUFFLES[control]
    moved = VALUES[np.where(valid, source, 0)]
    keep = f"v_mov_b32_e32 v10, v2\nv_mov_b32_dpp v10, v1 {control} row_mask:0xf bank_mask:0xf"
    np.testing.assert_array_equal(run_lanes(keep, [VALUES, OLD])[0], np.where(valid, moved, OLD))
    zero = f"v_add_u32_dpp v10, v1, v2 {control} row_mask:0xf bank_mask:0xf bound_ctrl:0"
    np.testing.assert_array_equal(run_lanes(zero, [VALUES, OLD])[0], np.where(valid, moved, 0) + OLD)


def test_masks_of_rows_and_banks() -> None:
    body = "v_mov_b32_e32 v10, v2\nv_mov_b32_dpp v10, v1 row_newbcast:0 row_mask:0xa bank_mask:0x6"
    written = np.isin(ROW, (1, 3)) & np.isin(IN_ROW // 4, (1, 2))
    np.testing.assert_array_equal(run_lanes(body, [VALUES, OLD])[0], np.where(written, VALUES[ROW * 16], OLD))


def test_inactive_lanes_give_nothing_to_others() -> None:
    body = """
        v_mov_b32_e32 v10, v2
        v_mov_b32_e32 v11, v2
        s_mov_b64 exec, 0xfff0
        v_mov_b32_dpp v10, v1 row_shr:1 row_mask:0xf bank_mask:0xf
        v_mov_b32_dpp v11, v1 row_shr:1 row_mask:0xf bank_mask:0xf bound_ctrl:0
    """
    found = run_lanes(body, [VALUES, OLD], results=("v10", "v11"))
    active = (LANE >= 4) & (LANE < 16)
    shifted = np.roll(VALUES, 1)
    np.testing.assert_array_equal(found[0], np.where(active & (LANE > 4), shifted, OLD))
    np.testing.assert_array_equal(found[1], np.where(active, np.where(LANE > 4, shifted, 0), OLD))


def test_lanes_and_scalar_registers() -> None:
    body = """
        v_readlane_b32 s40, v1, 37
        v_readlane_b32 s41, v1, s8
        v_writelane_b32 v2, s40, 5
        s_mov_b64 exec, 0xf00
        v_readfirstlane_b32 s42, v1
        s_mov_b64 exec, 0
        v_readfirstlane_b32 s43, v1
        s_mov_b64 exec, -1
        v_mbcnt_lo_u32_b32 v10, -1, 0
        v_mbcnt_hi_u32_b32 v10, -1, v10
        v_mbcnt_lo_u32_b32 v11, 0x55555555, 7
    """
    found = run_lanes(body, [VALUES, OLD], [50], ("s40", "s41", "s42", "s43", "v2", "v10", "v11"))
    assert found[:4, 0].tolist() == VALUES[[37, 50, 8, 0]].tolist()
    expected = OLD.copy()
    expected[5] = VALUES[37]
    np.testing.assert_array_equal(found[4], expected)
    np.testing.assert_array_equal(found[5], LANE)
    np.testing.assert_array_equal(found[6], (np.minimum(LANE, 32) + 1) // 2 + 7)


def test_permutes() -> None:
    target = np.random.default_rng(9).permutation(64).astype(np.uint32)
    body = "ds_bpermute_b32 v10, v2, v1\nds_permute_b32 v11, v2, v1"
    found = run_lanes(body, [VALUES, target * 4], results=("v10", "v11"))
    np.testing.assert_array_equal(found[0], VALUES[target])
    np.testing.assert_array_equal(found[1][target], VALUES)


SWIZZLES = {
    "swizzle(SWAP,16)": LANE ^ 16,
    "swizzle(REVERSE,8)": LANE ^ 7,
    "swizzle(BROADCAST,4,2)": LANE // 4 * 4 + 2,
    "swizzle(QUAD_PERM,1,0,3,2)": LANE ^ 1,
    "0x80b1": (LANE & ~3) + np.array([1, 0, 3, 2])[LANE & 3],
    "0x041f": LANE ^ 1,
    "0x0010": LANE & ~15,
}


@pytest.mark.parametrize("pattern", SWIZZLES)
def test_swizzles(pattern: str) -> None:
    found = run_lanes(f"ds_swizzle_b32 v10, v1 offset:{pattern}", [VALUES])[0]
    np.testing.assert_array_equal(found, VALUES[SWIZZLES[pattern]])


@pytest.mark.parametrize("group", [16, 32])
def test_swaps_of_half_groups(group: int) -> None:
    body = f"v_permlane{group}_swap_b32_e32 v1, v2\nv_mov_b32_e32 v3, v1\nv_mov_b32_e32 v4, v2\nv_swap_b32 v3, v4"
    found = run_lanes(body, [VALUES, OLD], results=("v1", "v2", "v3", "v4"), arch="gfx950")
    x, y = VALUES.reshape(-1, 2, group).copy(), OLD.reshape(-1, 2, group).copy()
    x[:, 1], y[:, 0] = y[:, 0].copy(), x[:, 1].copy()
    np.testing.assert_array_equal(found, [x.ravel(), y.ravel(), y.ravel(), x.ravel()])


def halves(matrix: NDArray[np.float16]) -> list[NDArray[np.uint32]]:
    """Returns registers of two values each from [64, 2n] values of lanes."""
    return list(np.ascontiguousarray(matrix).view(np.uint32).T)


def test_sixteen_small_products_at_once() -> None:
    """v_mfma_f32_4x4x4_16b: lane 4 b + i holds row i of block b, and column i of D."""
    random = np.random.default_rng(10)
    a, b = random.standard_normal((2, 16, 4, 4)).astype(np.float16)  # block, row or column, K
    body = "v_mfma_f32_4x4x4_16b_f16 v[10:13], v[1:2], v[3:4], 1.0"
    registers = halves(a.reshape(64, 4)) + halves(b.reshape(64, 4))
    found = run_lanes(body, registers, results=("v10", "v11", "v12", "v13")).view(np.float32)
    product = a.astype(np.float64) @ b.astype(np.float64).transpose(0, 2, 1) + 1  # block, i, j
    np.testing.assert_allclose(found.T.reshape(16, 4, 4), product.transpose(0, 2, 1), rtol=1e-6, atol=1e-6)


def test_the_layout_of_a_32_by_32_product() -> None:
    """v_mfma_f32_32x32x8_f16: lane 32 g + i holds K = 4 g ... of row i; D's rows go in fours to the two lane groups."""
    random = np.random.default_rng(11)
    a, b = random.standard_normal((2, 32, 8)).astype(np.float16)
    operands = [halves(x.reshape(32, 2, 4).transpose(1, 0, 2).reshape(64, 4)) for x in (a, b)]
    body = "v_mfma_f32_32x32x8_f16 v[10:25], v[1:2], v[3:4], 0"
    found = run_lanes(body, operands[0] + operands[1], results=[f"v{r}" for r in range(10, 26)]).view(np.float32)
    register = np.arange(16)[:, None]
    row, column = 8 * (register // 4) + register % 4 + 4 * (LANE // 32), LANE % 32
    product = a.astype(np.float64) @ b.astype(np.float64).T
    np.testing.assert_allclose(found, product[row, np.broadcast_to(column, row.shape)], rtol=1e-5, atol=1e-5)


def test_integer_products_wrap() -> None:
    """v_mfma_i32_16x16x32_i8: the sum is exact and wraps."""
    random = np.random.default_rng(12)
    a, b = random.integers(-128, 128, (2, 16, 32)).astype(np.int8)
    operands = []
    for x in (a, b):
        operands += list(np.ascontiguousarray(x.reshape(16, 4, 8).transpose(1, 0, 2).reshape(64, 8)).view(np.uint32).T)
    body = "v_mfma_i32_16x16x32_i8 v[10:13], v[1:2], v[3:4], v[5:8]"
    start = np.full(64, 0x7FFFFFFF, np.uint32)
    found = run_lanes(body, [*operands, *[start] * 4], results=("v10", "v11", "v12", "v13"))
    product = (a.astype(np.int64) @ b.astype(np.int64).T + 0x7FFFFFFF).astype(np.uint32)
    row = 4 * ROW + np.arange(4)[:, None]
    np.testing.assert_array_equal(found, product[row, np.broadcast_to(IN_ROW, row.shape)])
