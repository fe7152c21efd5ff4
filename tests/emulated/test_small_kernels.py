"""embed, rope_table, norm and quantize: emulated against their references."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paiton_artifacts.errors import UnsupportedShapeError
from paiton_kernels.gpu.compile import compile_kernel
from paiton_kernels.gpu.devices import TARGETS, Target, target_named
from paiton_kernels.gpu.embed import EMBED
from paiton_kernels.gpu.norm import NORM
from paiton_kernels.gpu.quantize import QUANTIZE
from paiton_kernels.gpu.rope_table import ROPE_TABLE, llama3_frequencies
from paiton_kernels.gpu.spec import Case, Config, GpuKernelSpec, Step
from paiton_kernels.numeric_formats import e4m3_values
from paiton_kernels.rope_table import rope_table
from tests.emulated.harness import AMD_TARGETS, ORDERS, check_case, configs_of, profile_of, run_case

SPECS = (EMBED, ROPE_TABLE, NORM, QUANTIZE)
STEP = Step(2048, 32)
NORM_FP8 = {"ROWS": "TOKENS", "OUT": "FP8", "SCALE": "ROW", "CLEAR": 1}
NORM_BF16 = {"ROWS": "TOKENS", "OUT": "BF16", "SCALE": "NONE", "CLEAR": 0}
LLAMA_SHAPES: list[tuple[GpuKernelSpec, dict[str, Any]]] = [
    (NORM, {"HIDDEN": 576, **NORM_BF16}),
    (NORM, {"HIDDEN": 16384, **NORM_BF16}),
    (NORM, {"HIDDEN": 16384, **NORM_FP8}),
    (NORM, {"HIDDEN": 32768, **NORM_FP8}),
    (QUANTIZE, {"K": 16384}),
    (EMBED, {"HIDDEN": 16384, "ROW_STRIDE": 16384}),
    (ROPE_TABLE, {"HEAD_DIM": 128}),
]
AMD_VECTORS, NVIDIA_VECTORS = r"\b(?:global|buffer)_(?:load|store)_dwordx4\b", r"\b(?:ld|st)\.global[\w.]*\.v4\.b32\b"
by_arch = pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.arch)


def name_of(spec: GpuKernelSpec) -> str:
    return spec.family


@pytest.mark.parametrize("order", ORDERS)
@by_arch
@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_every_case(spec: GpuKernelSpec, target: Target, order: str | None) -> None:
    for case in spec.cases(target):
        for config in configs_of(spec, case, target):
            check_case(spec, case, target, config, order=order)


@by_arch
@pytest.mark.parametrize(("head_dim", "base"), [(64, 1e5), (128, 5e5)])
def test_rope_table_is_accurate_at_every_position(target: Target, head_dim: int, base: float) -> None:
    random = np.random.default_rng(head_dim)
    positions = np.concatenate([np.arange(256), random.integers(256, 131071, 767), [131071]]).astype(np.int32)
    inv_freq = llama3_frequencies(head_dim, base)
    counts = np.array([len(positions), 1, 1, 0], np.int32)
    out = np.zeros((len(positions), head_dim), np.float32)
    arrays = {"counts": counts, "positions": positions, "inv_freq": inv_freq, "out": out}
    case = Case("positions", {"HEAD_DIM": head_dim}, Step(len(positions), 1), arrays, {}, {}, {})
    found = run_case(ROPE_TABLE, case, target, Config.of(4, 1, TOKENS=16))["out"].astype(np.float64)
    expected = rope_table(positions, inv_freq)
    ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(found - expected) / ulp) <= 1.0


@pytest.mark.parametrize("spec", [NORM, QUANTIZE], ids=name_of)
def test_every_target_writes_the_same_codes(spec: GpuKernelSpec) -> None:
    fnuz, fn = target_named("hip:gfx942"), target_named("hip:gfx950")
    for case in spec.cases(fn):
        if case.arrays["out"].dtype != np.uint8:
            continue
        old, new = (run_case(spec, case, t, configs_of(spec, case, t)[0])["out"] for t in (fnuz, fn))
        assert not np.isin(old, (0x7F, 0x80, 0xFF)).any()
        assert not np.isin(new, (0x7F, 0xFF)).any()
        new[new == 0x80] = 0  # e4m3fnuz has one zero only
        assert np.array_equal(old, new)


@by_arch
def test_a_subnormal_scale_makes_no_nan(target: Target) -> None:
    arrays = {
        "counts": np.array([2, 1, 1, 0], np.int32),
        "x": np.array([[0.0, 1e-40, -1e-40], [0.0, 0.0, 0.0]]).astype(ml_dtypes.bfloat16),
        "amax": np.array([1e-40, 0], np.float32),
        "out": np.full((2, 3), 0x7F, np.uint8),
        "row_scale": np.zeros(2, np.float32),
    }
    case = Case("subnormal", {"K": 3}, Step(2, 1), arrays, {}, {}, {})
    found = run_case(QUANTIZE, case, target, configs_of(QUANTIZE, case, target)[0])
    assert np.isfinite(e4m3_values()[found["out"]]).all()
    assert np.isfinite(found["row_scale"]).all()
    assert found["row_scale"][1] == 1


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.arch)
def test_llama_shapes_use_vectors_and_spill_nothing(target: Target) -> None:
    for spec, constants in LLAMA_SHAPES:
        if not target.fp8 and (spec is QUANTIZE or constants.get("OUT") == "FP8"):
            continue
        config = spec.space(constants, STEP, profile_of(target))[0]
        assembly = compile_kernel(spec.variant(config, **constants), target).assembly
        if target.backend == "hip":
            spilled = re.findall(r"\.(?:[vs]gpr_spill_count|private_segment_fixed_size):\s+(\d+)", assembly)
            assert spilled == ["0", "0", "0"]
            assert re.search(AMD_VECTORS, assembly)
        else:
            assert ".local" not in assembly
            assert re.search(NVIDIA_VECTORS, assembly)


@pytest.mark.parametrize(
    ("spec", "constants", "reason"),
    [
        (NORM, {**NORM_BF16, "HIDDEN": 65536}, "HIDDEN is 65536"),
        (NORM, {**NORM_BF16, "HIDDEN": 576, "SCALE": "ROW"}, "OUT=BF16 with SCALE=ROW"),
        (EMBED, {"HIDDEN": 576, "ROW_STRIDE": 512}, "ROW_STRIDE 512"),
        (ROPE_TABLE, {"HEAD_DIM": 20}, "HEAD_DIM is 20"),
    ],
)
def test_what_a_family_cannot_do_is_refused(spec: GpuKernelSpec, constants: dict[str, Any], reason: str) -> None:
    target = target_named("hip:gfx942")
    config = spec.space(constants, STEP, profile_of(target))[0]
    with pytest.raises(UnsupportedShapeError, match=reason):
        spec.variant(config, **constants).require(target)
