"""Weight conversion against ml_dtypes' and torch's casts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import DTypeLike, NDArray

from paiton_aot.quantize import Quantizer
from paiton_artifacts.errors import TensorValueError
from paiton_runtime.levels import cpu_flags, runnable_levels

F32 = NDArray[np.float32]


@pytest.fixture(scope="module", params=runnable_levels(cpu_flags()))
def quantizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    """Returns one for each level that runs here."""
    return Quantizer(tmp_path_factory.mktemp("kernels"), request.param)


def rows_of_every_kind() -> F32:
    """Rows of normal numbers of many magnitudes, of halves between codes, of zeros, and of the tiniest numbers."""
    random = np.random.default_rng(7)
    rows = random.standard_normal((64, 515)).astype(np.float32) * np.float32(10.0) ** random.integers(-8, 4, (64, 1))
    codes = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    ties = np.concatenate([codes, (codes[1:] + codes[:-1]) / 2, -codes])
    rows[0, : ties.size] = ties  # the largest is 448: the scale is 1
    rows[0, ties.size :] = np.nextafter(ties[127 : 127 + 515 - ties.size], np.float32(1000))
    rows[1] = 0
    rows[2] = np.float32(1e-40)
    rows[3] = -np.float32(1e-45)
    rows[4, :] = 0
    rows[4, 3] = np.finfo(np.float32).max
    rows[5] = -np.abs(rows[5])
    return rows.astype(np.float32)


def fp8_reference(rows: F32) -> tuple[NDArray[np.uint8], F32]:
    """The definition, with torch's cast."""
    largest = np.abs(rows).max(axis=1)
    scales = np.where(largest > 0, np.maximum(largest / np.float32(448), np.float32(2.0**-126)), np.float32(1))
    scaled = torch.from_numpy(rows / scales[:, None])
    codes = scaled.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return np.where(codes == 0x80, 0, codes).astype(np.uint8), scales.astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_fp8_is_the_nearest_code_with_ties_to_even(quantizer: Quantizer, dtype: DTypeLike) -> None:
    with np.errstate(over="ignore"):
        rows = np.nan_to_num(rows_of_every_kind().astype(dtype).astype(np.float32), posinf=6e4, neginf=-6e4)
    codes, scales = quantizer.quantize(rows.astype(dtype), "fp8_e4m3fn")
    expected, expected_scales = fp8_reference(rows.astype(dtype).astype(np.float32))
    assert np.array_equal(scales, expected_scales)
    assert np.array_equal(codes, expected)
    assert not np.isin(codes, [0x7F, 0x80, 0xFF]).any()
    assert scales[1] == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_int8_is_symmetric_and_nearest(quantizer: Quantizer, dtype: DTypeLike) -> None:
    with np.errstate(over="ignore"):
        stored = np.nan_to_num(rows_of_every_kind().astype(dtype).astype(np.float32), posinf=6e4, neginf=-6e4)
    rows = stored.astype(dtype).astype(np.float32)
    codes, scales = quantizer.quantize(stored.astype(dtype), "int8")
    largest = np.abs(rows).max(axis=1)
    wanted = np.where(largest > 0, np.maximum(largest / np.float32(127), np.float32(2.0**-126)), np.float32(1))
    assert np.array_equal(scales, wanted)
    assert np.array_equal(codes.view(np.int8), np.rint(rows / wanted[:, None]))
    assert codes.view(np.int8).min() == -127
    assert codes.view(np.int8).max() == 127


def test_a_row_does_not_depend_on_the_others(quantizer: Quantizer) -> None:
    rows = np.random.default_rng(1).standard_normal((40, 4099)).astype(np.float32)
    for stored in ("fp8_e4m3fn", "int8"):
        codes, scales = quantizer.quantize(rows, stored)
        for start, stop in ((0, 1), (3, 20), (39, 40), (5, 5)):
            part, part_scales = quantizer.quantize(rows[start:stop], stored)
            assert np.array_equal(part, codes[start:stop])
            assert np.array_equal(part_scales, scales[start:stop])


def test_carried_codes_are_worth_twice_what_they_are_as_fnuz(quantizer: Quantizer) -> None:
    codes = np.array([[code for code in range(256) if code & 0x7F != 0x7F]], np.uint8)
    normal = quantizer.carry(codes, "w")
    values = normal.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(values, codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    assert np.array_equal(values, 2 * normal.view(ml_dtypes.float8_e4m3fnuz).astype(np.float32))


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_fp8_nan_is_refused_with_its_place(quantizer: Quantizer, code: int) -> None:
    block = np.zeros((4, 5), np.uint8)
    block[2, 3] = code
    with pytest.raises(TensorValueError, match=r"tensor w holds FP8 NaN at \[102, 3\]"):
        quantizer.carry(block, "w", first_row=100)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_place(quantizer: Quantizer, dtype: DTypeLike, value: float) -> None:
    matrix = np.full((4, 5), np.finfo(np.float16).max, dtype)
    quantizer.check_finite(matrix, "w")
    quantizer.quantize(matrix, "int8")
    matrix[1, 4] = value
    place = r"tensor w holds NaN or infinity at \[11, 4\]"
    with pytest.raises(TensorValueError, match=place):
        quantizer.check_finite(matrix, "w", first_row=10)
    for stored in ("fp8_e4m3fn", "int8"):
        with pytest.raises(TensorValueError, match=place):
            quantizer.quantize(matrix, stored, "w", first_row=10)
    with pytest.raises(TensorValueError, match=r"at \[1\]"):
        quantizer.check_finite(matrix[:, 4], "w")
