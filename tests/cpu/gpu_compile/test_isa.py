"""Facts read from assembly: hand-written texts with known answers, and kernels that have what they should."""

from __future__ import annotations

from pathlib import Path

import pytest

from paiton_kernels.gpu.compile import compile_kernel
from paiton_kernels.gpu.devices import TARGETS, Target
from paiton_kernels.gpu.isa import MatrixKind, read_isa
from paiton_kernels.gpu.isa_loops import basic_blocks, innermost_loops
from tests.cpu.gpu_compile.families import ALL_TARGETS, product, scale

GFX942, SM_90 = TARGETS["hip:gfx942"], TARGETS["cuda:sm_90"]

# The latch of the inner loop lies before its header, as LLVM likes to place it.
AMD = """
	.text
k:                                      ; @k
	s_load_dwordx4 s[0:3], s[4:5], 0x0
	v_mad_u64_u32 v[0:1], s[0:1], v2, v3, v[4:5]
	s_branch .LBB0_2
.LBB0_1:                                ; latch of the inner loop
	global_load_dwordx2 v[8:9], v[0:1], off
	s_cbranch_scc1 .LBB0_3
.LBB0_2:                                ; %header
	buffer_load_dwordx4 v[4:7], v1, s[0:3], 0 offen lds
	global_load_lds_dwordx4 v[0:1], off
	s_load_dword s9, s[0:1], 0x0
	v_mfma_f32_32x32x16_fp8_fp8 a[0:15], v[0:1], v[2:3], a[0:15]
	s_cbranch_execz .LBB0_1
	s_branch .LBB0_1
.LBB0_3:
	global_load_ubyte v31, v[2:3], off
	s_cbranch_vccnz .LBB0_2
	global_store_dword v[0:1], v2, off sc0 sc1
	buffer_wbl2 sc0 sc1
	buffer_wbl2 sc1
	global_atomic_add v0, v[0:1], v2, off sc0
	global_atomic_add v[0:1], v2, off sc1
	s_endpgm
.Lfunc_end0:
"""

PTX = """
.visible .entry k(.param .u64 k_param_0)
{
	.reg .b32 	%r<10>;
	ld.param.b64 	%rd1, [k_param_0];
	mul.wide.s32 	%rd2, %r1, 16;
	@%p1 bra 	$L__BB0_3;
$L__BB0_1:                              // %loop
	// begin inline asm
	cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
	// end inline asm
	ld.global.nc.L1::evict_last.v2.b32 	{%r3, %r4}, [%rd3];
	@%p2 ld.global.b16 { %rs1 }, [ %rd4 + 0 ];
	wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {%r1}, %rd1, %rd2, %p2, 1, 1;
	{
waitLoop:
	mbarrier.try_wait.parity.shared.b64 complete, [%r9], %r8;
	@!complete bra.uni waitLoop;
	}
{additions}
	@%p3 bra 	$L__BB0_1;
	ld.acquire.sys.global.b32 	%r5, [%rd5];
$L__BB0_3:
	ret;
}
"""


def test_loops_are_found_whatever_the_order_of_their_blocks() -> None:
    blocks, successors = basic_blocks(AMD)
    loops = innermost_loops(successors)
    assert len(loops) == 1, "the outer loop, back to the header, is the same loop: they share it"
    inside = {instruction.opcode for number in loops[0] for instruction in blocks[number]}
    assert {"global_load_dwordx2", "buffer_load_dwordx4", "global_load_ubyte"} <= inside
    assert "global_store_dword" not in inside


@pytest.mark.parametrize(
    ("successors", "loops"),
    [
        ([[1], []], []),
        ([[0]], [[0]]),
        ([[1], [1, 2], []], [[1]]),
        ([[1], [2], [2, 3], [1, 4], []], [[2]]),  # an inner loop and the one around it
        ([[1], [2, 3], [1], []], [[1, 2]]),
        ([[1, 2], [2], [1, 3], []], []),  # entered at two places: no loop that dominates its end
        ([[2], [1, 3], [3], []], []),  # unreachable
    ],
)
def test_innermost_loops(successors: list[list[int]], loops: list[list[int]]) -> None:
    assert innermost_loops(successors) == loops


def test_amd_facts() -> None:
    facts = read_isa(AMD, GFX942)
    (loop,) = facts.loops
    assert dict(facts.matrix) == {MatrixKind("mfma", "fp8"): 1}
    assert dict(loop.loads) == {16: 2 * 16 * 64, 8: 8 * 64, 4: 4, 1: 64}
    assert loop.operations == 2 * 32 * 32 * 16
    assert facts.wide_share == 2048 / (2048 + 512 + 4 + 64)
    assert facts.system_scope == 2
    assert facts.wide_multiplies == 1
    assert facts.uses("fp8")
    assert not facts.uses("bf16")


@pytest.mark.parametrize(("count", "promoted"), [(0, False), (7, False), (8, True)])
def test_ptx_facts_and_promotion(count: int, promoted: bool) -> None:
    additions = "\n".join(f"\tadd.f32 \t%r{number}, %r{number}, %r1;" for number in range(count))
    facts = read_isa(PTX.replace("{additions}", additions), SM_90)
    (loop,) = facts.loops
    assert dict(loop.loads) == {16: 512, 8: 256, 2: 64}
    assert dict(loop.matrix) == {MatrixKind("wgmma", "fp8"): 1}
    assert loop.operations == 2 * 64 * 64 * 32 // 4
    assert loop.promotions == 8  # 64 x 64 results, 32 a lane, after every fourth of four instructions with K = 32
    assert (loop.f32_adds, loop.promoted) == (count, promoted)
    assert facts.system_scope == 1
    assert facts.wide_multiplies == 1


@pytest.mark.parametrize("columns", [1024, 8192])
@pytest.mark.parametrize("target", ALL_TARGETS, ids=lambda target: target.level)
def test_compiled_products_have_their_loop(target: Target, columns: int, kernel_cache: Path) -> None:
    kind = "FP8" if target.fp8 else "BF16"
    facts = read_isa(compile_kernel(product(kind, columns), target, kernel_cache).assembly, target)
    assert facts.uses(kind.lower())
    assert len(facts.loops) == 1
    (loop,) = facts.loops
    assert facts.wide_share == pytest.approx(1, abs=0.01)
    passes = round(loop.load_bytes * 4 / (2 * 64 * 128 * (1 if kind == "FP8" else 2)))
    assert passes in {1, 2, columns // 128}, "both tiles of BLOCK x BLOCK_K: once, twice, or all of K without a loop"
    if target.name != "cuda:sm_100":
        assert loop.operations * 4 == passes * 2 * 64 * 64 * 128
    assert loop.promoted
    assert loop.promotions == (32 if target.name == "cuda:sm_90" else 0)
    assert facts.system_scope == 0


@pytest.mark.parametrize("target", ALL_TARGETS, ids=lambda target: target.level)
def test_a_kernel_without_products_has_none(target: Target, kernel_cache: Path) -> None:
    facts = read_isa(compile_kernel(scale(), target, kernel_cache).assembly, target)
    assert not facts.matrix
    assert facts.instructions > 10


AMD_GATHER = """
k:
.LBB0_1:
	global_load_dword v9, v[2:3], off
	global_load_dword v20, v[4:5], off
	v_lshlrev_b32_e32 v10, 4, v9
	v_mad_u64_u32 v[12:13], s[0:1], v10, v11, v[14:15]
	v_mov_b32_e32 v9, 0
	global_load_dwordx4 v[16:19], v[12:13], off
	v_add_f32_e32 v21, v20, v16
	s_cbranch_scc1 .LBB0_1
	s_endpgm
"""

PTX_GATHER = """
$L__BB0_1:
	@%p1 ld.global.b32 { %r9 }, [ %rd2 + 0 ];
	ld.global.b32 { %r20 }, [ %rd4 + 0 ];
	mul.wide.s32 	%rd5, %r9, 16;
	add.s64 	%rd6, %rd7, %rd5;
	cp.async.cg.shared.global [ %r1 + 0 ], [ %rd6 + 0 ], 0x10, %r3;
	add.f32 	%r21, %r20, %r20;
	@%p2 bra 	$L__BB0_1;
	ret;
"""


@pytest.mark.parametrize(("text", "target"), [(AMD_GATHER, GFX942), (PTX_GATHER, SM_90)])
def test_indices_are_no_data(text: str, target: Target) -> None:
    (loop,) = read_isa(text, target).loops
    assert loop.index_bytes == 4 * target.warp_size
    assert dict(loop.loads) == {16: 16 * target.warp_size, 4: 4 * target.warp_size}


def test_an_index_may_address_the_next_pass() -> None:
    chained = AMD_GATHER.replace("v_add_f32_e32 v21, v20, v16", "v_mov_b32_e32 v4, v20")
    (loop,) = read_isa(chained, GFX942).loops
    assert loop.index_bytes == 2 * 4 * 64
    assert dict(loop.loads) == {16: 16 * 64}


@pytest.mark.parametrize(
    ("line", "system"),
    [
        ("	atom.relaxed.sys.shared.add.u32 	%r1, [%r2], 1;", False),
        ("	atom.global.acq_rel.gpu.add.u32 	%r1, [%rd2], 1;", False),
        ("	atom.global.acq_rel.sys.add.u32 	%r1, [%rd2], 1;", True),
        ("	fence.acq_rel.sys;", True),
    ],
)
def test_system_scope_in_ptx(line: str, system: bool) -> None:
    assert bool(read_isa(f"$L__BB0_0:\n{line}\n	ret;\n", SM_90).system_scope) == system
