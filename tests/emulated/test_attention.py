"""``schedule`` and ``attention``: emulated against their references, and what the compiled code must look like."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton.language as tl

from paiton_kernels.gpu.attention import ATTENTION
from paiton_kernels.gpu.attention_cases import (
    MIXED,
    Batch,
    Shape,
    attention_case,
    chosen_length,
    schedule_case,
    work_list,
)
from paiton_kernels.gpu.attention_items import HEADER, list_words, max_slots
from paiton_kernels.gpu.compile import CompiledKernel, compile_kernel
from paiton_kernels.gpu.devices import TARGETS, Target
from paiton_kernels.gpu.schedule import SCHEDULE, schedule_config
from paiton_kernels.gpu.spec import Case, Config, GpuArg, GpuKernelSpec, Step, Work
from tests.emulated.cdna import DeviceMemory, DevicePointer, Kernel
from tests.emulated.harness import AMD_TARGETS, ORDERS, check_case, check_outputs, profile_of, run_case
from tests.numerics import assert_same_bits

_CASES = list(ATTENTION.cases(TARGETS["hip:gfx942"]))
_SCHEDULE_CASES = list(SCHEDULE.cases(TARGETS["hip:gfx942"]))

_SHAPES: dict[str, dict[str, int | str | float]] = {
    "SmolLM2-135M": {"Q_HEADS": 9, "KV_HEADS": 3, "HEAD_DIM": 64, "KV": "BF16", "OUT": "BF16", "AMAX": 0},
    "Llama-8B": {"Q_HEADS": 32, "KV_HEADS": 8, "HEAD_DIM": 128, "KV": "FP8", "OUT": "FP8", "AMAX": 0},
    "Llama-405B tp 8": {"Q_HEADS": 16, "KV_HEADS": 1, "HEAD_DIM": 128, "KV": "FP8", "OUT": "BF16", "AMAX": 1},
    "Gemma-3-4B local": {"Q_HEADS": 8, "KV_HEADS": 4, "HEAD_DIM": 256, "KV": "BF16", "OUT": "BF16", "WINDOW": 1024},
    "Gemma-2-9B local": {"Q_HEADS": 16, "KV_HEADS": 8, "HEAD_DIM": 256, "KV": "FP8", "OUT": "FP8", "SOFTCAP": 50.0},
    "Phi-3-mini": {"Q_HEADS": 32, "KV_HEADS": 32, "HEAD_DIM": 96, "KV": "BF16", "OUT": "BF16", "WINDOW": 2047},
}
_MODELS = {name: ATTENTION.full({"AMAX": 0, **constants}) for name, constants in _SHAPES.items()}
_BUCKETS = {"decode": Step(32, 32), "prefill": Step(2048, 32)}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.arch)
@pytest.mark.parametrize("case", _SCHEDULE_CASES, ids=lambda case: case.name)
def test_schedule(case: Case, target: Target, order: str | None) -> None:
    check_case(SCHEDULE, case, target, order=order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.arch)
@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_attention(case: Case, target: Target, order: str | None) -> None:
    arrays = check_case(ATTENTION, case, target, order=order)
    if case.constants["AMAX"]:
        assert np.array_equal(arrays["out_amax"], np.abs(arrays["out"].astype(np.float32)).max(axis=1))


@pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.arch)
def test_attention_runs_what_schedule_wrote(target: Target) -> None:
    shape = Shape(9, 3, 64, "BF16", programs=20)
    case = attention_case("scheduled", shape, MIXED, 1 << 20, bucket=32)
    assert schedule_config(shape.config) == Config.of(4, 1, BLOCK_Q=16, BLOCK_KV=32, PROGRAMS=20)
    made = run_case(SCHEDULE, schedule_case("made", shape, MIXED, case.step), target, schedule_config(shape.config))
    assert len(made["items"]) == len(case.arrays["items"])
    assert made["items"][0] > case.arrays["items"][0], "nothing was split"
    check_case(ATTENTION, replace(case, arrays={**case.arrays, "items": made["items"]}), target)


def test_who_comes_last_does_not_change_the_sum() -> None:
    target = TARGETS["hip:gfx942"]
    case = next(case for case in _CASES if case.name == "two levels")
    results = [run_case(ATTENTION, case, target, case.configs[0], order) for order in (None, "fwd", "rev")]
    for other in results[1:]:
        assert_same_bits(other["out"], results[0]["out"])


@pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.arch)
@pytest.mark.parametrize("kv", ["FP8", "BF16"])
def test_blocks_beyond_4_gib(target: Target, kv: str) -> None:
    shape = Shape(8, 2, 64, kv, block_kv=32, programs=4)
    case = attention_case("far", shape, Batch((1, 3), (70, 20)), 1 << 20)
    near, stride, apart = case.arrays["kv"], 1 << 20, 613
    assert (len(near) - 1) * apart * stride > 4 << 30
    memory = DeviceMemory()
    pool = memory.reserve(len(near) * apart * stride, "KV pool")
    for number, block in enumerate(near):
        memory.write(pool + number * apart * stride, block)
    arrays = {name: array.copy() for name, array in case.arrays.items()}
    tables = arrays["block_tables"]
    arrays["block_tables"] = np.where(tables < len(near), tables * np.int32(apart), tables)
    scalars = {**case.scalars, "kv_block_stride": stride, "block_table_stride": tables.shape[1]}
    variant = ATTENTION.variant(shape.config, **case.constants)
    kernel = compile_kernel(variant, target, Path(os.environ["PAITON_CACHE"]))
    pointers: dict[str, Any] = {**arrays, "kv": DevicePointer(memory, pool)}
    arguments = [pointers.get(arg.name) if arg.pointer else scalars[arg.name] for arg in ATTENTION.args]
    grid = ATTENTION.grid(variant.values, case.step, profile_of(target))
    types = list(variant.signature(target).values())
    Kernel(kernel.assembly, target.arch).launch(grid, arguments, types, shape.warps, kernel.shared_bytes)
    check_outputs(case, arrays)


def multiplies_high_half(kernel: CompiledKernel, argument: str) -> bool:
    """Returns whether AMD code multiplies by the upper 32 bits of a 64-bit integer argument, or by a shift of them.

    A product in which only the lower half takes part is a 32-bit product. The argument is followed from the load of the
    kernel's arguments through moves and shifts; a register counts until something else is written to it.
    """
    offset = next(arg.offset for arg in kernel.args if arg.name == argument) + 4
    high: set[str] = set()
    for line in kernel.assembly.splitlines():
        words = re.findall(r"[a-z_0-9]+(?:\[\d+:\d+\])?", line.split(";")[0])
        if len(words) < 2 or words[0][:2] not in {"s_", "v_"}:
            continue
        name, target, sources = words[0], _registers(words[1]), [_registers(word) for word in words[2:]]
        if name.startswith("s_load_dword"):
            first = int(words[-1], 0)
            loaded = {register for index, register in enumerate(target) if first + 4 * index == offset}
            high = (high - set(target)) | loaded
            continue
        used = [register for source in sources for register in source if register in high]
        if used and "mul" in name + "mul" * ("mad_u64" in name or "mad_i64" in name):
            return True
        high -= set(target)
        if used and re.match(r"s_(mov|lshr|ashr)|v_mov", name):
            high.add(target[-1])
    return False


def _registers(operand: str) -> list[str]:
    several = re.fullmatch(r"([sv])\[(\d+):(\d+)\]", operand)
    if several:
        return [f"{several[1]}{number}" for number in range(int(several[2]), int(several[3]) + 1)]
    return [operand]


def _narrow(kv, kv_block_stride, block_tables, out):
    lane = tl.arange(0, 64)
    block = tl.load(block_tables + lane)
    tl.store(out + lane, tl.load(kv + (block * kv_block_stride.to(tl.int32) + lane)).to(tl.float32))


def _wide(kv, kv_block_stride, block_tables, out):
    lane = tl.arange(0, 64)
    block = tl.load(block_tables + lane)
    tl.store(out + lane, tl.load(kv + (block * kv_block_stride + lane)).to(tl.float32))


@pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.arch)
@pytest.mark.parametrize("function", [_narrow, _wide])
def test_high_half_is_told_from_32_bits(function, target: Target) -> None:
    spec = GpuKernelSpec(
        "probe",
        function,
        (
            GpuArg("kv", "*bf16", ""),
            GpuArg("kv_block_stride", "i64", "", divisor=16),
            GpuArg("block_tables", "*i32", ""),
            GpuArg("out", "*fp32", ""),
        ),
        (),
        (),
        lambda _values: function.__name__.strip("_"),
        lambda _values, _step, _profile: (),
        lambda _values, _step, _profile: (1, 1, 1),
        lambda _values, _step, _profile: Work(0),
        lambda _target: (),
    )
    kernel = compile_kernel(spec.variant(Config.of(1, 1)), target, Path(os.environ["PAITON_CACHE"]))
    assert multiplies_high_half(kernel, "kv_block_stride") == (function is _wide)


@pytest.mark.parametrize("bucket", _BUCKETS)
@pytest.mark.parametrize("model", _MODELS)
@pytest.mark.parametrize("target", [*AMD_TARGETS, TARGETS["cuda:sm_90"]], ids=lambda target: target.arch)
def test_code_of_real_shapes(target: Target, model: str, bucket: str) -> None:
    constants, step, profile = _MODELS[model], _BUCKETS[bucket], profile_of(target)
    space = ATTENTION.space(constants, step, profile)
    assert len(set(space)) == len(space) >= 16
    kernel = compile_kernel(ATTENTION.variant(space[0], **constants), target, Path(os.environ["PAITON_CACHE"]))
    assert (kernel.spills, kernel.scratch_bytes) == (0, 0)
    assert kernel.shared_bytes <= target.max_shared_bytes
    if target.backend == "cuda":
        assert re.search(r"wgmma\.mma_async.*bf16|mma\.sync.*bf16", kernel.assembly)
        assert not re.search(r"\b(ld|st)\.local", kernel.assembly)
        return
    assert re.search(r"v_mfma_f32_\d+x\d+x\d+_?bf16", kernel.assembly)
    # K and V, each in whole vectors; nothing is read or copied in bytes.
    assert kernel.assembly.count("global_load_dwordx4") >= 4
    assert not re.search(r"global_load_(ubyte|sbyte|ushort|short|lds)", kernel.assembly)
    assert multiplies_high_half(kernel, "kv_block_stride")
    # Partial results of other programs: past the caches, after a release that every wave's stores came before.
    assert re.search(r"load_dwordx4 .*sc0 sc1", kernel.assembly)
    assert len(re.findall(r"s_waitcnt vmcnt\(0\)\nv_mov_b32.*\n\s*;;#ASMEND\n.*\n\s*s_barrier", kernel.assembly)) >= 2


@pytest.mark.parametrize("bucket", _BUCKETS)
@pytest.mark.parametrize("name", ["cuda:sm_80", "cuda:sm_100"])
def test_compiles_for_other_targets(name: str, bucket: str) -> None:
    target = TARGETS[name]
    constants = _MODELS["Llama-8B" if target.fp8 else "SmolLM2-135M"]
    config = ATTENTION.space(constants, _BUCKETS[bucket], profile_of(target))[0]
    kernel = compile_kernel(ATTENTION.variant(config, **constants), target, Path(os.environ["PAITON_CACHE"]))
    assert (kernel.spills, kernel.scratch_bytes) == (0, 0)


def test_workspace_is_bounded() -> None:
    profile = profile_of(TARGETS["hip:gfx942"])
    for constants in _MODELS.values():
        for step in (Step(1, 1), Step(32, 32), Step(512, 32), Step(2048, 256)):
            for config in ATTENTION.space(constants, step, profile):
                values = ATTENTION.variant(config, **constants).values
                assert ATTENTION.workspace(values, step, profile)["workspace"] <= 96 << 20


@pytest.mark.parametrize("shape", [Shape(9, 3, 64, "BF16"), Shape(16, 1, 128, "FP8", block_q=32, block_kv=64)])
def test_every_work_list_fits(shape: Shape) -> None:
    random = np.random.default_rng(5)
    for programs in (7, 304, 1216):
        values = {**shape.values, "PROGRAMS": programs}
        for _ in range(15):
            requests = int(random.integers(1, 20))
            tokens = tuple(int(count) for count in random.choice([0, 1, 1, 1, 2, 17, 300], requests))
            before = tuple(int(count) for count in 10 ** random.uniform(0, 5, requests))
            batch, step = Batch(tokens, before), Step(max(1, sum(tokens)), requests)
            entries = work_list(batch, values, chosen_length(batch, values))
            split = entries[entries[:, 7] > 1]
            slots = (split[:, 3] + split[:, 7]).max(initial=0) * int(values["KV_HEADS"])
            assert slots <= max_slots(values, step)
            assert HEADER.value + entries.size <= list_words(values, step)
            covered, history = np.zeros(sum(tokens), int), np.zeros(sum(tokens), int)
            for token, count, _, _, begin, end, number, splits in entries:
                covered[token : token + count] += end - begin if number < splits else 0
                history[token : token + count] = batch.positions[token + count - 1] + 1
            assert np.array_equal(covered, history)


def test_more_heads_than_rows_are_refused() -> None:
    values = {**_MODELS["Llama-405B tp 8"], "Q_HEADS": 32, "BLOCK_Q": 16}
    assert "32 query heads share a KV head" in ATTENTION.check(values, TARGETS["hip:gfx942"])
    assert "not a multiple" in SCHEDULE.check({"Q_HEADS": 9, "KV_HEADS": 2, "BLOCK_Q": 16}, TARGETS["hip:gfx942"])
    assert "HEAD_DIM is 80" in ATTENTION.check({**values, "HEAD_DIM": 80}, TARGETS["hip:gfx942"])
