"""What the compiled collective kernels are made of, on every target: the waiting must survive the compiler."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from paiton_kernels.gpu.all_gather import ALL_GATHER
from paiton_kernels.gpu.all_reduce import ALL_REDUCE
from paiton_kernels.gpu.argmax import ARGMAX
from paiton_kernels.gpu.comm import GATHER_COLUMNS, LINE, MAX_BLOCKS, comm_layout
from paiton_kernels.gpu.compile import CompiledKernel, compile_kernel
from paiton_kernels.gpu.devices import DEFAULT_PROFILES, PROFILES, TARGETS, Target
from paiton_kernels.gpu.isa_loops import Instruction, basic_blocks, innermost_loops
from paiton_kernels.gpu.spec import GpuVariant, Step
from paiton_kernels.gpu.tuning import Request, choose

GROUP: dict[str, Any] = {"TP": 8, "BLOCKS": 64}
LARGE: dict[str, Any] = {**GROUP, "HIDDEN": 16384, "MODE": "ADD", "NORM": 1, "ROWS": "TOKENS", "CLEAR": 0}
PLAIN: dict[str, Any] = {
    "TP": 2, "BLOCKS": 64, "HIDDEN": 4096, "WIRE": "FP32", "MODE": "STORE", "NORM": 0, "ROWS": "TOKENS", "OUT": "BF16",
    "SCALE": "NONE", "CLEAR": 0,
}  # fmt: skip

POLLS = {"hip": r"global_atomic_add\b.* sc0 sc1", "cuda": r"atom\.global\.sys\.relaxed\.add\.u32"}
LOADS = {"hip": r"(global|buffer|flat|s)_load", "cuda": r"ld\.(global|volatile|relaxed)"}
AMD_RELEASE = re.compile(r"buffer_wbl2 sc0 sc1\s+s_waitcnt vmcnt\(0\).*\s+global_atomic_swap .* sc1\b")
AMD_WAIT_OF_ALL = re.compile(r"#ASMSTART\s+s_waitcnt vmcnt\(0\)")


def requests(target: Target) -> Iterable[Request]:
    """Yields those of Llama-3.1-405B at tp 8, decoding and reading a prompt, of a plain sum, of rows in one piece."""
    out = {"OUT": "FP8", "SCALE": "TENSOR"} if target.fp8 else {"OUT": "BF16", "SCALE": "NONE"}
    for tokens, wire in ((1, "FP32"), (2048, "BF16")):
        yield Request(ALL_REDUCE, tuple(ALL_REDUCE.full({**LARGE, **out, "WIRE": wire}).items()), Step(tokens, 1))
    yield Request(ALL_REDUCE, tuple(ALL_REDUCE.full(PLAIN).items()), Step(1, 1))
    yield Request(ALL_GATHER, tuple({**GROUP, "SHARE": 16032}.items()), Step(32, 32))
    yield Request(ARGMAX, tuple({**GROUP, "VOCAB": 128256, "SHARE": 16064}.items()), Step(32, 32))
    yield Request(ARGMAX, tuple({"TP": 2, "BLOCKS": 64, "VOCAB": 49152, "SHARE": 24576}.items()), Step(256, 256))


def loops(code: CompiledKernel) -> list[list[Instruction]]:
    """Returns the instructions of every innermost loop."""
    blocks, successors = basic_blocks(code.assembly)
    return [[item for number in numbers for item in blocks[number]] for numbers in innermost_loops(successors)]


def found(pattern: str, instructions: Iterable[Instruction]) -> int:
    return sum(bool(re.match(pattern, f"{item.opcode} {item.operands}")) for item in instructions)


@pytest.fixture(scope="module", params=TARGETS.values(), ids=lambda target: target.level)
def compiled(request: pytest.FixtureRequest) -> list[tuple[GpuVariant, CompiledKernel, Target]]:
    """What a build chooses, for every target."""
    target: Target = request.param
    cache = Path(os.environ["PAITON_CACHE"])
    chosen = choose(list(requests(target)), target, PROFILES[DEFAULT_PROFILES[target.name]], cache)
    variants = [request.variant(choice.config) for request, choice in chosen.items()]
    return [(variant, compile_kernel(variant, target, cache), target) for variant in variants]


Compiled = list[tuple[GpuVariant, CompiledKernel, Target]]


def test_waiting_is_a_loop_around_an_atomic_of_system_scope(compiled: Compiled) -> None:
    for variant, code, target in compiled:
        waits = [loop for loop in loops(code) if found(POLLS[target.backend], loop)]
        assert len(waits) == variant.values.get("SHOTS", 1), variant.symbol
        for loop in waits:
            assert not found(LOADS[target.backend], loop), f"{variant.symbol} polls by loads"


def test_flags_are_released_and_acquired_at_system_scope(compiled: Compiled) -> None:
    for variant, code, target in compiled:
        exchanges = int(variant.values.get("SHOTS", 1))
        if target.backend == "hip":
            assert len(AMD_RELEASE.findall(code.assembly)) == exchanges, variant.symbol
            assert code.assembly.count("buffer_inv sc0 sc1") >= exchanges, variant.symbol
            assert len(AMD_WAIT_OF_ALL.findall(code.assembly)) >= exchanges, variant.symbol
        else:
            assert code.assembly.count("atom.global.sys.release.exch.b32") == exchanges, variant.symbol
            assert code.assembly.count("atom.global.sys.acquire.add.u32") == exchanges, variant.symbol


def test_staging_memory_is_written_through_and_not_read_from_a_cache(compiled: Compiled) -> None:
    for variant, code, target in compiled:
        if target.backend == "hip":
            # Whoever reads or writes past the caches says so with both bits; peers' memory is reached in no other way.
            stores = re.findall(r"(?:buffer|global)_store_dwordx?[24]? .*sc0 sc1", code.assembly)
            reads = re.findall(r"(?:buffer|global)_load_\w+ .*sc0 sc1", code.assembly)
        else:
            stores = re.findall(r"st\.global\.wt", code.assembly)
            reads = re.findall(r"ld\.global\.cv", code.assembly)
        assert len(stores) >= int(variant.values.get("SHOTS", 1)), variant.symbol
        at_once = variant.spec is ARGMAX  # what all ranks sent lies side by side
        assert len(reads) >= (1 if at_once else int(variant.values["TP"])), variant.symbol


def test_bases_of_buffers_are_no_loops(compiled: Compiled) -> None:
    for variant, code, target in compiled:
        if target.backend == "hip":
            lanes = [loop for loop in loops(code) if found("v_cmp_eq_u64", loop) and found("buffer_store", loop)]
            assert not lanes, f"{variant.symbol} stores once for each base among its lanes"


def test_nothing_spills_and_nothing_is_hidden(compiled: Compiled) -> None:
    for variant, code, target in compiled:
        assert (code.spills, code.scratch_bytes) == (0, 0), variant.symbol
        assert [arg.name for arg in code.args] == [*variant.signature(target), "", ""], variant.symbol
        assert "hidden_" not in code.assembly, variant.symbol
        assert code.shared_bytes <= target.max_shared_bytes


def test_every_device_can_hold_all_blocks_at_once() -> None:
    for profile in PROFILES.values():
        assert profile.compute_units >= MAX_BLOCKS, profile.name


@pytest.mark.parametrize(("hidden", "tokens", "requests"), [(64, 1, 1), (576, 512, 32), (16384, 2048, 32)])
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_channels_hold_what_a_block_sends_at_a_time(tp: int, hidden: int, tokens: int, requests: int) -> None:
    """One unit at least, whatever the configuration: a kernel makes no progress otherwise."""
    layout = comm_layout(tp, hidden, tokens, requests)
    largest = max(tp * (-(-hidden // 8) * 8) * 4, tp * GATHER_COLUMNS * 4)
    assert largest <= layout.channel_bytes
    assert layout.bytes == 2 * layout.blocks * (LINE + layout.channel_bytes)
    assert layout.bytes <= 65 << 20
    assert layout.blocks <= MAX_BLOCKS
