"""What code objects say of themselves, against other readers of the same files; and files that say nonsense."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import msgpack
import pytest
import triton.backends.nvidia
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paiton_artifacts.errors import CompilerError
from paiton_kernels.gpu.code_object import CodeObjectFacts, read_code_object
from paiton_kernels.gpu.compile import CompiledKernel, compile_kernel
from paiton_kernels.gpu.devices import TARGETS, Target
from tests.cpu.gpu_compile.families import ALL_TARGETS, AMD_TARGETS, NVIDIA_TARGETS, product, scale

CUOBJDUMP = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
KERNEL: dict[str, Any] = {
    ".name": "k",
    ".args": [{".offset": 0, ".size": 8, ".value_kind": "global_buffer"}],
    ".kernarg_segment_size": 8,
    ".vgpr_count": 8,
    ".sgpr_count": 16,
    ".vgpr_spill_count": 0,
    ".sgpr_spill_count": 0,
    ".private_segment_fixed_size": 0,
    ".max_flat_workgroup_size": 64,
}


def elf(sections: dict[str, tuple[int, bytes]]) -> bytes:
    """Returns an ELF file of sections: name -> type, content."""
    names, contents = b"\0", b""
    headers = [bytes(64)]
    everything = {**sections, ".shstrtab": (3, b"")}
    offsets = {}
    for name in everything:
        offsets[name] = len(names)
        names += name.encode() + b"\0"
    for name, (kind, content) in everything.items():
        body = names if name == ".shstrtab" else content
        headers.append(struct.pack("<IIQQQQIIQQ", offsets[name], kind, 0, 0, 64 + len(contents), len(body), 0, 0, 4, 0))
        contents += body
    start = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQ", 3, 224, 1, 0, 0, 64 + len(contents))
    ends = struct.pack("<IHHHHHH", 0, 64, 0, 0, 64, len(headers), len(headers) - 1)
    return start + ends + contents + b"".join(headers)


def hsaco(*kernels: dict[str, Any]) -> bytes:
    body = msgpack.packb({"amdhsa.kernels": kernels, "amdhsa.version": [1, 2]})
    note = struct.pack("<III", 7, len(body), 32) + b"AMDGPU\0\0" + body + bytes(-len(body) % 4)
    return elf({".note": (7, note)})


@pytest.fixture(params=ALL_TARGETS, ids=lambda target: target.level)
def kernel(request: pytest.FixtureRequest, kernel_cache: Path) -> CompiledKernel:
    """A kernel with arguments of every size."""
    target: Target = request.param
    return compile_kernel(scale(), target, kernel_cache)


def test_arguments_are_those_of_the_signature(kernel: CompiledKernel) -> None:
    described = [(arg.name, arg.offset, arg.size) for arg in kernel.args]
    assert described == [
        ("counts", 0, 8),
        ("x", 8, 8),
        ("out", 16, 8),
        ("factor", 24, 4),
        ("stride", 32, 8),
        ("", 40, 8),
        ("", 48, 8),
    ]
    assert kernel.args_bytes == 56
    assert kernel.threads == 4 * TARGETS[kernel.target].warp_size


@pytest.mark.parametrize("kind", ["FP8", "BF16"])
@pytest.mark.parametrize("target", AMD_TARGETS, ids=lambda target: target.level)
def test_amd_registers_are_those_of_the_assembly(target: Target, kind: str, kernel_cache: Path) -> None:
    kernel = compile_kernel(product(kind), target, kernel_cache)
    stated = {name: int(value) for name, value in re.findall(r"^; (\w+): (\d+)$", kernel.assembly, re.MULTILINE)}
    assert kernel.registers == stated["TotalNumVgprs"] > 8
    assert kernel.agpr == stated["NumAgprs"]
    assert kernel.sgpr == stated["TotalNumSgprs"]
    assert kernel.scratch_bytes == stated["ScratchSize"]
    assert kernel.spills == 0
    offsets = [int(value) for value in re.findall(r"^\s+\.offset:\s+(\d+)$", kernel.assembly, re.MULTILINE)]
    assert [arg.offset for arg in kernel.args] == offsets


@pytest.mark.parametrize("target", NVIDIA_TARGETS, ids=lambda target: target.level)
def test_nvidia_facts_are_those_of_cuobjdump(target: Target, kernel_cache: Path, tmp_path: Path) -> None:
    kernel = compile_kernel(product("BF16"), target, kernel_cache)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.code)

    def told(*arguments: str) -> str:
        return subprocess.run([CUOBJDUMP, *arguments, cubin], capture_output=True, text=True, check=True).stdout

    usage = told("-res-usage")
    assert f"Function {kernel.symbol}:" in usage
    assert f"REG:{kernel.registers} STACK:{kernel.scratch_bytes} " in usage
    listed = re.findall(r"Ordinal : (\w+)\s+Offset  : (\w+)\s+Size    : (\w+)", told("-elf"))
    parameters = sorted({tuple(int(number, 16) for number in numbers) for numbers in listed})
    assert [(index, arg.offset, arg.size) for index, arg in enumerate(kernel.args)] == parameters


def spilling(target: Target, kernel_cache: Path) -> CompiledKernel:
    """Returns a kernel with more values alive than a thread has registers."""
    variant = product("BF16")
    config = type(variant.config).of(1, 1, BLOCK=256 if target.backend == "hip" else 128, BLOCK_K=64)
    return compile_kernel(type(variant)(variant.spec, variant.constants, config), target, kernel_cache)


@pytest.mark.parametrize("name", ["hip:gfx942", "cuda:sm_80"])
def test_spills_are_seen(name: str, kernel_cache: Path) -> None:
    kernel = spilling(TARGETS[name], kernel_cache)
    assert kernel.spills > 0
    assert kernel.scratch_bytes > 0


def test_a_made_up_hsaco_is_read() -> None:
    facts = read_code_object(hsaco(KERNEL), "hip")
    assert (facts.symbol, facts.args_bytes, facts.registers, facts.max_threads) == ("k", 8, 8, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({".args": [{".offset": 0, ".size": 8, ".value_kind": "hidden_heap_v1"}]}, "argument of kind hidden_heap_v1"),
        ({".args": [{".offset": 8, ".size": 8, ".value_kind": "by_value"}]}, "end at 16 in a buffer of 8"),
        ({".args": [{".offset": 0, ".size": 8, ".value_kind": "by_value"}] * 2}, "overlaps"),
        ({".args": [{".offset": -8, ".size": 8, ".value_kind": "by_value"}]}, "not a size"),
        ({".args": [{".offset": 0, ".size": True, ".value_kind": "by_value"}]}, "not a size"),
        ({".args": 7}, "damaged"),
        ({".vgpr_count": 1 << 40}, "not a size"),
        ({".kernarg_segment_size": "8"}, "not a size"),
    ],
)
def test_metadata_that_no_plan_can_use_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CompilerError, match=message):
        read_code_object(hsaco({**KERNEL, **change}), "hip")


def test_one_kernel_is_expected() -> None:
    for kernels in ((), (KERNEL, KERNEL)):
        with pytest.raises(CompilerError, match="kernels where there must be one"):
            read_code_object(hsaco(*kernels), "hip")


@pytest.mark.parametrize("backend", ["hip", "cuda"])
@pytest.mark.parametrize("code", [b"", b"\x7fELF\x02\x01", b"MZ" + bytes(200), elf({})])
def test_what_is_no_code_object_is_refused(code: bytes, backend: str) -> None:
    with pytest.raises(CompilerError, match="damaged"):
        read_code_object(code, backend)


@pytest.mark.parametrize("target", ALL_TARGETS, ids=lambda target: target.level)
def test_damaged_files_are_refused_or_read_but_never_crash(target: Target, kernel_cache: Path) -> None:
    code = compile_kernel(scale(), target, kernel_cache).code

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        end=st.integers(0, len(code)),
        changes=st.lists(st.tuples(st.integers(0, len(code) - 1), st.integers(0, 255)), max_size=6),
    )
    def damaged(end: int, changes: list[tuple[int, int]]) -> None:
        content = bytearray(code)
        for position, value in changes:
            content[position] = value
        try:
            facts = read_code_object(bytes(content[:end]), target.backend)
        except CompilerError:
            return
        assert isinstance(facts, CodeObjectFacts)
        assert all(0 <= arg.offset < arg.offset + arg.size <= facts.args_bytes for arg in facts.args)

    damaged()


@given(notes=st.binary(max_size=200), attributes=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_sections_are_refused(notes: bytes, attributes: bytes) -> None:
    nv_info = 0x70000000
    code = elf({".note": (7, notes), ".nv.info": (nv_info, attributes), ".nv.info.k": (nv_info, attributes)})
    for backend in ("hip", "cuda"):
        with pytest.raises(CompilerError, match=r"damaged|hidden"):
            read_code_object(code, backend)
