"""Occupancy: what the compiler says, and cases worked out by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from paiton_artifacts.errors import CompilerError
from paiton_kernels.gpu.compile import CompiledKernel, compile_kernel
from paiton_kernels.gpu.devices import DEFAULT_PROFILES, PROFILES, Target
from paiton_kernels.gpu.resources import occupancy
from tests.cpu.gpu_compile.families import AMD_TARGETS, product, scale


def kernel(target: str, threads: int, registers: int, shared_bytes: int = 0, sgpr: int = 0) -> CompiledKernel:
    return CompiledKernel("k", target, b"", "", shared_bytes, threads, (), 0, registers, 0, sgpr, 0, 0)


@pytest.mark.parametrize(
    ("profile", "threads", "registers", "shared", "blocks", "limit"),
    [
        ("mi300x", 256, 64, 0, 8, "warps"),  # 512 / 64 = 8 waves a SIMD, as many as there can be
        ("mi300x", 256, 65, 0, 7, "registers"),  # 72 registers: 7 waves
        ("mi300x", 256, 512, 0, 1, "registers"),
        ("mi300x", 512, 256, 0, 1, "registers"),  # 2 waves a SIMD, 8 a CU
        ("mi300x", 64, 16, 0, 32, "warps"),
        ("mi300x", 128, 16, 0, 16, "warps"),
        ("mi300x", 256, 32, 20000, 3, "shared memory"),  # 20480 of 65536 bytes
        ("mi300x", 256, 32, 65536, 1, "shared memory"),
        ("mi355x", 256, 32, 80000, 2, "shared memory"),  # 80640 of 163840
        ("mi355x", 256, 32, 82000, 1, "shared memory"),  # 83200
        ("h200", 128, 168, 0, 3, "registers"),  # 16384 / (168 * 32) = 3 warps a partition
        ("h200", 128, 255, 0, 2, "registers"),
        ("h200", 128, 32, 100 << 10, 2, "shared memory"),  # 101 KiB each with the system's own
        ("h200", 128, 32, 114 << 10, 1, "shared memory"),  # 115 KiB each of 228
        ("h200", 32, 16, 0, 32, "blocks"),
        ("a100", 256, 32, 0, 8, "warps"),
        ("a100", 1024, 32, 0, 2, "warps"),
    ],
)
def test_cases_worked_out_by_hand(
    profile: str, threads: int, registers: int, shared: int, blocks: int, limit: str
) -> None:
    device = PROFILES[profile]
    found = occupancy(kernel(device.target, threads, registers, shared), device)
    assert (found.blocks, found.limit) == (blocks, limit)
    assert found.warps == blocks * threads // (64 if device.target.startswith("hip") else 32)
    assert 0 < found.fraction <= 1


def test_many_scalar_registers_cost_a_wave() -> None:
    device = PROFILES["mi300x"]
    assert occupancy(kernel(device.target, 64, 32, sgpr=100), device).warps == 32
    assert occupancy(kernel(device.target, 64, 32, sgpr=102), device).warps == 28


@pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.level)
def test_the_compiler_counts_the_same_waves_for_registers(target: Target, kernel_cache: Path) -> None:
    for variant in (scale(), scale(block=4096, warps=1), product(), product("BF16")):
        compiled = compile_kernel(variant, target, kernel_cache)
        (waves,) = re.findall(r"^; Occupancy: (\d+)$", compiled.assembly, re.MULTILINE)
        alone = replace(compiled, shared_bytes=0, threads=64)
        assert occupancy(alone, PROFILES[DEFAULT_PROFILES[target.name]]).warps == 4 * int(waves)


@pytest.mark.parametrize(
    ("profile", "threads", "registers", "shared"),
    [("mi300x", 1024, 300, 0), ("mi300x", 256, 32, 65537), ("mi355x", 256, 32, 163841), ("h200", 128, 32, 227 << 11)],
)
def test_what_does_not_fit_is_refused(profile: str, threads: int, registers: int, shared: int) -> None:
    device = PROFILES[profile]
    with pytest.raises(CompilerError, match=rf"does not fit {profile}: {threads} threads of {registers} registers"):
        occupancy(kernel(device.target, threads, registers, shared), device)


def test_a_profile_is_of_one_target() -> None:
    with pytest.raises(ValueError, match="is for hip:gfx942, h200 is cuda:sm_90"):
        occupancy(kernel("hip:gfx942", 64, 8), PROFILES["h200"])
