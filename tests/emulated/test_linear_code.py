"""``linear``: what its compiled code must look like on every target, and what the spec says about shapes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from paiton_artifacts.errors import UnsupportedShapeError, UnsupportedTargetError
from paiton_kernels.gpu.compile import CompiledKernel, compile_kernel
from paiton_kernels.gpu.devices import PROFILES, TARGETS
from paiton_kernels.gpu.isa import IsaFacts, MatrixKind, read_isa
from paiton_kernels.gpu.linear import LINEAR
from paiton_kernels.gpu.linear_cases import (
    ADD,
    AMAX,
    BF16,
    BLOCK,
    CAPPED,
    DEFAULTS,
    FP8_WEIGHT,
    GELU,
    GROUP,
    INT8,
    LOGITS,
    ROW,
    SILU,
    SILU_AMAX,
    SILU_FP8,
    STATIC,
    STORE,
)
from paiton_kernels.gpu.ranking import WIDE_SHARE, shortcomings
from paiton_kernels.gpu.spec import Config, Constant, Step
from tests.emulated.harness import profile_of

_QKV_405B: dict[str, Constant] = {
    "N": 2304,
    "K": 16384,
    "EPILOGUE": "ROPE",
    "OUT": "BF16",
    "Q_HEADS": 16,
    "KV_HEADS": 1,
    "HEAD_DIM": 128,
}
_SHAPES: dict[str, dict[str, Constant]] = {
    "405B tp 8 qkv": _QKV_405B,
    "405B tp 8 o": {"N": 16384, "K": 2048, **ADD},
    "405B tp 8 gate_up": {"N": 13312, "K": 16384, **SILU},
    "405B tp 8 down": {"N": 16384, "K": 6656, **ADD},
    "8B down": {"N": 4096, "K": 14336, **ADD},
    "135M qkv": {**_QKV_405B, "N": 960, "K": 576, "Q_HEADS": 9, "KV_HEADS": 3, "HEAD_DIM": 64},
    "135M o": {"N": 576, "K": 576, **ADD},
}
_HEADS: dict[str, Constant] = {"EPILOGUE": "ROPE", "OUT": "BF16"}
_GEMMA_NORM: dict[str, Constant] = {"HEAD_NORM": 1, "NORM_OFFSET": 1.0, **FP8_WEIGHT}
_VARIATIONS: dict[str, dict[str, Constant]] = {
    "Qwen3-8B qkv": {
        **_HEADS,
        "N": 6144,
        "K": 4096,
        "Q_HEADS": 32,
        "KV_HEADS": 8,
        "HEAD_DIM": 128,
        "HEAD_NORM": 1,
        **BF16,
    },
    "Gemma-3-4B qkv": {**_HEADS, "N": 4096, "K": 2560, "Q_HEADS": 8, "KV_HEADS": 4, "HEAD_DIM": 256, **_GEMMA_NORM},
    "Phi-3-mini qkv": {**_HEADS, "N": 9216, "K": 3072, "Q_HEADS": 32, "KV_HEADS": 32, "HEAD_DIM": 96, **FP8_WEIGHT},
    "Qwen2.5-7B qkv": {**_HEADS, "N": 4608, "K": 3584, "Q_HEADS": 28, "KV_HEADS": 4, "HEAD_DIM": 128, "BIAS": 1, **ROW},
    "Gemma-3-4B gate_up": {"N": 20480, "K": 2560, **GELU, **STATIC},
    "Gemma-2-9B head": {"N": 256000, "K": 3584, **CAPPED, **BF16},
    "8B down, blocks": {"N": 4096, "K": 14336, **ADD, **BLOCK},
    "8B down, groups": {"N": 4096, "K": 14336, **ADD, **GROUP},
}
"""What architectures beyond Llama have, and FP8 with scales for blocks."""
_TRIES = 4
"""Configurations of a space within which one must be without faults."""

_TARGETS_WITH_FP8 = [name for name, target in TARGETS.items() if target.fp8]


def _full(constants: Mapping[str, Constant]) -> dict[str, Constant]:
    return {**DEFAULTS, "ROW_STRIDE": constants["K"], **constants}


def _first(target: str, tokens: int, constants: Mapping[str, Constant]) -> tuple[CompiledKernel, IsaFacts]:
    """Compiles the most promising configuration."""
    device, full = TARGETS[target], _full(constants)
    config = LINEAR.space(full, Step(tokens, min(tokens, 32)), profile_of(device))[0]
    kernel = compile_kernel(LINEAR.variant(config, **full), device, Path(os.environ["PAITON_CACHE"]))
    return kernel, read_isa(kernel.assembly, device)


@pytest.mark.parametrize("target", _TARGETS_WITH_FP8)
@pytest.mark.parametrize("tokens", [1, 64, 2048])
@pytest.mark.parametrize("shape", ["405B tp 8 qkv", "405B tp 8 gate_up", "135M o"])
def test_fp8_stays_fp8_in_wide_loads_without_spills(target: str, tokens: int, shape: str) -> None:
    kernel, facts = _first(target, tokens, {**_SHAPES[shape], **STATIC})
    assert not kernel.spills
    assert not kernel.scratch_bytes
    assert facts.wide_share >= WIDE_SHARE
    unit = {"cuda:sm_90": "wgmma", "cuda:sm_100": "tcgen05"}.get(target, "mfma")
    assert set(facts.matrix) == {MatrixKind(unit, "fp8")}


@pytest.mark.parametrize("target", ["hip:gfx942", "cuda:sm_90"])
@pytest.mark.parametrize("tokens", [1, 2048])
@pytest.mark.parametrize("name", _VARIATIONS)
def test_variations_have_a_configuration_without_faults(target: str, tokens: int, name: str) -> None:
    device, constants = TARGETS[target], _full(_VARIATIONS[name])
    step = Step(tokens, min(tokens, 32))
    found = []
    for config in LINEAR.space(constants, step, profile_of(device))[:_TRIES]:
        variant = LINEAR.variant(config, **constants)
        kernel = compile_kernel(variant, device, Path(os.environ["PAITON_CACHE"]))
        facts = read_isa(kernel.assembly, device)
        lacking = shortcomings(facts, LINEAR.work(variant.values, step, profile_of(device)))
        if constants["A_SCALE"] == "NONE" and constants["WEIGHT"] == "FP8" and device.backend == "cuda":
            lacking = []  # weights that become bf16 there are loaded 8 bytes at a time
        if not (kernel.spills or kernel.scratch_bytes or lacking):
            break
        found.append(f"{kernel.spills} spills, {'; '.join(lacking)}")
    else:
        pytest.fail("; ".join(found))
    fp8 = constants["A_SCALE"] != "NONE"
    assert {kind.element for kind in facts.matrix} == {"fp8" if fp8 else "bf16"}
    if constants["EPILOGUE"] == "ROPE":
        assert facts.wide_multiplies > 0, "the KV cache is not addressed with 64 bits"


@pytest.mark.parametrize("tokens", [1, 2048])
@pytest.mark.parametrize("inputs", [STATIC, ROW, AMAX], ids=["static", "row", "amax"])
def test_hopper_adds_imprecise_sums_to_f32_every_128_elements(tokens: int, inputs: dict[str, Constant]) -> None:
    _, facts = _first("cuda:sm_90", tokens, {**_SHAPES["405B tp 8 down"], **inputs})
    loops = [loop for loop in facts.loops if loop.matrix]
    assert loops
    assert all(loop.promotions and loop.promoted for loop in loops)


@pytest.mark.parametrize("inputs", [FP8_WEIGHT, INT8], ids=["fp8", "int8"])
@pytest.mark.parametrize("target", _TARGETS_WITH_FP8)
@pytest.mark.parametrize("tokens", [1, 2048])
def test_weights_become_bf16_in_registers(target: str, tokens: int, inputs: dict[str, Constant]) -> None:
    kernel, facts = _first(target, tokens, {**_SHAPES["405B tp 8 o"], **inputs})
    assert not kernel.spills
    assert {kind.element for kind in facts.matrix} == {"bf16"}
    assert facts.wide_share >= WIDE_SHARE


@pytest.mark.parametrize("inputs", [BF16, INT8], ids=["bf16", "int8"])
@pytest.mark.parametrize("tokens", [1, 2048])
def test_ampere_computes_in_bf16(tokens: int, inputs: dict[str, Constant]) -> None:
    kernel, facts = _first("cuda:sm_80", tokens, {**_SHAPES["8B down"], **inputs})
    assert not kernel.spills
    assert set(facts.matrix) == {MatrixKind("mma", "bf16")}
    assert facts.wide_share >= WIDE_SHARE


def test_ampere_refuses_fp8() -> None:
    with pytest.raises(UnsupportedTargetError, match="needs FP8"):
        _first("cuda:sm_80", 1, {**_SHAPES["8B down"], **FP8_WEIGHT})


@pytest.mark.parametrize("target", ["hip:gfx942", "hip:gfx950"])
def test_every_wave_waits_for_its_partial_sums_before_they_are_announced(target: str) -> None:
    kernel, _ = _first(target, 1, {**_SHAPES["405B tp 8 qkv"], **STATIC})
    steps = (
        r"(?:global|buffer)_store.*",
        r"s_waitcnt vmcnt\(0\)",
        "s_barrier",
        "buffer_wbl2 sc1",
        "global_atomic_add",
        "buffer_inv sc1",
    )
    assert re.search(r"[\s\S]*?".join((*steps, r"load_dwordx4.* nt")), kernel.assembly)


def test_nvidia_announces_partial_sums_with_release() -> None:
    kernel, _ = _first("cuda:sm_90", 1, {**_SHAPES["405B tp 8 qkv"], **STATIC})
    order = (r"st\.global", r"bar\.sync", r"atom\.global\.gpu\.acq_rel\.add", r"bar\.sync", r"ld\.global\.cg")
    assert re.search(r"[\s\S]*?".join(order), kernel.assembly)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("shape", _SHAPES)
def test_space_offers_different_tiles_that_fit(profile: str, shape: str) -> None:
    device = PROFILES[profile]
    target = TARGETS[device.target]
    for inputs in (STATIC, FP8_WEIGHT, BF16) if target.fp8 else (BF16, INT8):
        constants = _full({**_SHAPES[shape], **inputs})
        for tokens in (1, 100, 2048):
            found = LINEAR.space(constants, Step(tokens, min(tokens, 32)), device)
            assert len(set(found)) == len(found) >= 16
            for config in found:
                values = LINEAR.variant(config, **constants).values
                LINEAR.variant(config, **constants).require(target)
                passes = -(-int(values["K"]) // int(values["BLOCK_K"]))
                split = int(values["SPLIT_K"])
                assert (split - 1) * -(-passes // split) < passes, "a part of K is empty"
                assert values["DIES"] == device.dies


def test_few_rows_of_a_narrow_matrix_occupy_every_unit() -> None:
    device = PROFILES["mi355x"]
    constants = _full({**_SHAPES["405B tp 8 qkv"], **STATIC})
    config = LINEAR.space(constants, Step(1, 1), device)[0]
    values = LINEAR.variant(config, **constants).values
    assert int(values["SPLIT_K"]) > 1
    assert LINEAR.grid(values, Step(1, 1), device)[0] >= 0.9 * device.compute_units


_CONFIG = Config.of(4, 2, BLOCK_M=64, BLOCK_N=128, BLOCK_K=64, SPLIT_K=3, GROUP_M=1, DIES=1, SWAP=0)


def _values(constants: Mapping[str, Constant]) -> dict[str, Constant]:
    return LINEAR.variant(_CONFIG, **_full(constants)).values


def test_work_counts_every_operand_once() -> None:
    device, step = PROFILES["mi300x"], Step(100, 8)
    found = LINEAR.work(_values({"N": 1000, "K": 640, "ROW_STRIDE": 656, **STATIC, **ADD}), step, device)
    assert found.bytes == 1000 * 640 + 100 * 640 + 4 * 1000 + 4 + 2 * 100 * 1000 * 4
    assert (found.fp8_operations, found.bf16_operations) == (2 * 100 * 1000 * 640, 0)
    assert found.blocks == 2 * 8 * 3
    found = LINEAR.work(_values({"N": 1000, "K": 640, **FP8_WEIGHT, **LOGITS}), step, device)
    assert found.bytes == 1000 * 640 + 8 * 640 * 2 + 4 * 1000 + 8 * 1000 * 4
    assert (found.fp8_operations, found.bf16_operations) == (0, 2 * 8 * 1000 * 640)
    found = LINEAR.work(_values({"N": 1000, "K": 640, **AMAX, **SILU_AMAX}), step, device)
    assert found.bytes == 1000 * 640 + 100 * 640 * 2 + 4 * 1000 + 4 * 100 + 100 * 500 * 2 + 4 * 100
    found = LINEAR.work(_values({**_SHAPES["135M qkv"], **BF16, "KV": "FP8"}), step, device)
    assert found.bytes == 960 * 576 * 2 + 100 * 576 * 2 + 100 * (9 * 64 * 2 + 2 * 3 * 64 + 64 * 4)


def test_workspace_is_what_partial_sums_take() -> None:
    device, step = PROFILES["mi300x"], Step(100, 8)
    values = _values({"N": 1000, "K": 640, **STATIC, **ADD})
    assert LINEAR.workspace(values, step, device) == {"workspace": 4 * 16 * 3 * 64 * 128, "semaphores": 16}
    assert LINEAR.workspace({**values, "SPLIT_K": 1}, step, device) == {}


@pytest.mark.parametrize(
    ("constants", "reason"),
    [
        ({**BF16, **STORE, "K": 72}, "K is 72, not a multiple of 16"),
        ({**BF16, **STORE, "ROW_STRIDE": 64}, "ROW_STRIDE is 64 BF16 elements"),
        ({**STATIC, **STORE, "ROW_STRIDE": 136}, "ROW_STRIDE is 136 FP8 elements"),
        ({**STATIC, **STORE, "ROW_STRIDE": 1 << 23}, "32-bit offsets"),
        ({**STATIC, **SILU, "N": 1 << 16, "ROW_STRIDE": 1 << 16}, "32-bit offsets"),
        ({**STATIC, **STORE, "A_SCALE": "NONE"}, "A=FP8 with A_SCALE=NONE"),
        ({**STATIC, **STORE, "WEIGHT": "INT8"}, "A_SCALE=TENSOR with WEIGHT=INT8"),
        ({**BF16, **STORE, "OUT": "BF16"}, "EPILOGUE=STORE with OUT=BF16"),
        ({**STATIC, **SILU_FP8, "AMAX": 1}, "AMAX=1 with EPILOGUE=SILU and OUT=FP8"),
        ({**BF16, **SILU, "N": 161}, "N is 161 with SILU"),
        ({**BF16, **STORE, "HEAD_DIM": 64}, "heads or KV given with EPILOGUE=STORE"),
        ({**_QKV_405B, **BF16, "HEAD_DIM": 80}, "HEAD_DIM is 80, not a multiple of 32"),
        ({**_QKV_405B, **BF16, "HEAD_DIM": 96, "HEAD_NORM": 1}, "HEAD_DIM is 96 with norms of heads"),
        ({**_QKV_405B, **BF16, "HEAD_DIM": 256, "HEAD_NORM": 1}, "not a power of two up to BLOCK_N=128"),
        ({**BF16, **STORE, "HEAD_NORM": 1}, "heads or KV given with EPILOGUE=STORE"),
        ({**BF16, **ADD, "SOFTCAP": 30.0}, "SOFTCAP=30.0 with EPILOGUE=ADD"),
        ({**STATIC, **STORE, "SCALE_ROWS": 128}, "SCALE_ROWS=128 with WEIGHT=FP8, A_SCALE=TENSOR"),
        ({**GROUP, **STORE}, "A_SCALE=GROUP with SCALE_ROWS=128 and BLOCK_K=64, not 128"),
        ({**BLOCK, **STORE, "K": 400}, "SPLIT_K=3: the last part of K=400 has no whole pass"),
        ({**_QKV_405B, **BF16, "N": 2432}, r"N is 2432, not \(16 \+ 2\*1\) heads of 128"),
    ],
)
def test_what_is_not_covered_is_refused(constants: dict[str, Constant], reason: str) -> None:
    variant = LINEAR.variant(_CONFIG, **_full({"N": 160, "K": 128, **constants}))
    with pytest.raises(UnsupportedShapeError, match=reason):
        variant.require(TARGETS["hip:gfx942"])


def test_different_constants_have_different_names() -> None:
    names: dict[str, dict[str, Constant]] = {}
    for case in LINEAR.cases(TARGETS["hip:gfx942"]):
        constants = dict(case.constants)
        assert names.setdefault(LINEAR.name(constants), constants) == constants
    assert len(names) > 40
