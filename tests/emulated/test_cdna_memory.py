"""Global memory, buffers, LDS, scratch and atomics of the emulator, and device memory as a host sees it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.emulated.cdna import DeviceMemory, DevicePointer, EmulationError
from tests.emulated.cdna.snippets import run_lanes, snippet

LANE = np.arange(64)
WORDS = np.random.default_rng(1).integers(0, 1 << 32, 64).astype(np.uint32)
LOAD_POINTERS = "s_load_dwordx4 s[4:7], s[0:1], 0x0\n"


def launch(body: str, arguments: list[Any], *, num_warps: int = 1, grid: int = 1, arch: str = "gfx942") -> None:
    """Runs a snippet whose arguments are pointers; s[4:5] and s[6:7] hold the first two."""
    snippet(LOAD_POINTERS + body, arch).launch((grid,), arguments, ["*u8"] * len(arguments), num_warps)


# ---------------------------------------------------------------------- what lanes do


@pytest.mark.parametrize("words", [1, 2, 3, 4])
@pytest.mark.parametrize("shift", [0, 4, 1])
def test_wide_loads_and_stores_at_any_alignment(words: int, shift: int) -> None:
    source = np.random.default_rng(2).integers(0, 256, 64 * 16 + 16).astype(np.uint8)
    result = np.zeros_like(source)
    suffix = "" if words == 1 else f"x{words}"
    registers = "v10" if words == 1 else f"v[10:{9 + words}]"
    size = 4 * words
    launch(
        f"v_mul_u32_u24_e32 v1, {size}, v0\n"
        f"global_load_dword{suffix} {registers}, v1, s[4:5] offset:{shift}\n"
        f"global_store_dword{suffix} v1, {registers}, s[6:7] offset:{shift}",
        [source, result],
    )
    expected = np.zeros_like(source)
    expected[shift : shift + 64 * size] = source[shift : shift + 64 * size]
    np.testing.assert_array_equal(result, expected)


def test_narrow_loads() -> None:
    source = np.random.default_rng(3).integers(0, 256, 128).astype(np.uint8)
    names = ("ubyte", "sbyte", "ushort", "sshort", "short_d16", "short_d16_hi", "ubyte_d16_hi")
    body = "v_lshlrev_b32_e32 v1, 1, v0\nv_lshlrev_b32_e32 v2, 2, v0\n"
    for name in names:
        body += (
            f"v_mov_b32_e32 v10, 0x12345678\nglobal_load_{name} v10, v1, s[4:5]\nglobal_store_dword v2, v10, s[6:7]\n"
        )
        body += "s_add_u32 s6, s6, 0x100\ns_addc_u32 s7, s7, 0\n"
    result = np.zeros((len(names), 64), np.uint32)
    launch(body, [source, result])
    byte, half = source[::2].astype(np.uint32), source.view(np.uint16).astype(np.uint32)
    signed = [source[::2].view(np.int8).astype(np.int32).view(np.uint32)]
    signed.append(source.view(np.int16).astype(np.int32).view(np.uint32))
    low, high = np.uint32(0x5678), np.uint32(0x12340000)
    expected = [byte, signed[0], half, signed[1], high | half, half << 16 | low, byte << 16 | low]
    np.testing.assert_array_equal(result, expected)


def test_narrow_stores() -> None:
    result = np.full(64 * 4, 0xEE, np.uint8)
    body = """
        v_lshlrev_b32_e32 v1, 2, v0
        v_lshl_or_b32 v2, v0, 16, v0
        global_store_byte v1, v0, s[4:5]
        v_add_u32_e32 v2, 0x1230000, v2
        global_store_short_d16_hi v1, v2, s[4:5] offset:2
    """
    launch(body, [result, result])
    words = result.view(np.uint32)
    np.testing.assert_array_equal(words, LANE | 0xEE00 | (LANE + 0x123) << 16)


def test_lanes_may_use_several_allocations() -> None:
    memory = DeviceMemory()
    places = [memory.map(np.full(16, 1 + number, np.uint32)) for number in range(3)]
    addresses = np.array([places[lane % 3] + 4 * (lane % 16) for lane in LANE], np.uint64)
    result = np.zeros(64, np.uint32)
    pointers = [DevicePointer(memory, memory.map(addresses)), result]
    launch(
        "v_lshlrev_b32_e32 v1, 3, v0\nglobal_load_dwordx2 v[2:3], v1, s[4:5]\nglobal_load_dword v4, v[2:3], off\n"
        "v_lshlrev_b32_e32 v1, 2, v0\nglobal_store_dword v1, v4, s[6:7]",
        pointers,
    )
    np.testing.assert_array_equal(result, 1 + LANE % 3)


def test_a_buffer_ends_where_its_descriptor_says() -> None:
    """Loads beyond it give 0, stores do nothing; of a wide access the words inside count."""
    source, result = np.arange(1, 257, dtype=np.uint32), np.zeros((5, 64), np.uint32)
    body = """
        s_mov_b32 s40, s4
        s_and_b32 s41, s5, 0xffff
        s_mov_b32 s42, 0x98
        s_mov_b32 s43, 0x27000
        v_lshlrev_b32_e32 v1, 4, v0
        v_lshlrev_b32_e32 v2, 2, v0
        buffer_load_dwordx4 v[10:13], v1, s[40:43], 0 offen
        s_movk_i32 s50, 8
        buffer_load_dword v14, v2, s[40:43], s50 offen offset:4
        buffer_store_dword v0, v2, s[40:43], 0 offen
    """
    body += "".join(f"global_store_dword v2, v{10 + row}, s[6:7] offset:{256 * row}\n" for row in range(5))
    before = source.copy()
    launch(body, [source, result])
    inside = np.where(np.arange(256) < 0x98 // 4, before, 0)
    np.testing.assert_array_equal(result[:4].T.reshape(-1), inside)
    np.testing.assert_array_equal(result[4], np.where(12 + 4 * LANE < 0x98, before[3 + LANE], 0))
    np.testing.assert_array_equal(source[: 0x98 // 4], LANE[: 0x98 // 4])
    np.testing.assert_array_equal(source[0x98 // 4 :], before[0x98 // 4 :])


@pytest.mark.parametrize("num_warps", [1, 3])
def test_colliding_atomics_follow_each_other(num_warps: int) -> None:
    """Lanes 0, 4, 8, ... add to counter 0 and so on; each gets another old value."""
    lanes = 64 * num_warps
    counters, old = np.zeros(4, np.uint32), np.zeros(lanes, np.uint32)
    body = """
        v_and_b32_e32 v1, 3, v0
        v_lshlrev_b32_e32 v1, 2, v1
        v_mov_b32_e32 v2, 1
        global_atomic_add v3, v1, v2, s[4:5] sc0
        v_lshlrev_b32_e32 v1, 2, v0
        global_store_dword v1, v3, s[6:7]
    """
    launch(body, [counters, old], num_warps=num_warps)
    np.testing.assert_array_equal(counters, lanes // 4)
    np.testing.assert_array_equal(old, np.arange(lanes) // 4)


ATOMICS: dict[str, tuple[Any, Any]] = {
    "umax": (np.uint32, np.maximum),
    "smin": (np.int32, np.minimum),
    "and": (np.uint32, np.bitwise_and),
    "xor": (np.uint32, np.bitwise_xor),
    "swap": (np.uint32, lambda _old, value: value),
    "sub": (np.uint32, np.subtract),
    "inc": (np.uint32, lambda old, value: np.where(old >= value, 0, old + 1)),
    "add_f32": (np.float32, np.add),
    "add_x2": (np.uint64, np.add),
    "umax_x2": (np.uint64, np.maximum),
    "add_f64": (np.float64, np.add),
    "pk_add_bf16": (ml_dtypes.bfloat16, np.add),
    "pk_add_f16": (np.float16, np.add),
}


@pytest.mark.parametrize("name", ATOMICS)
def test_atomics(name: str) -> None:
    dtype, function = ATOMICS[name]
    random = np.random.default_rng(4)
    wide = np.dtype(dtype).itemsize == 8
    count = 128 if np.dtype(dtype).itemsize == 2 else 64
    integer = np.issubdtype(dtype, np.integer)
    old, value = (
        random.integers(0, np.iinfo(dtype).max, count, dtype=dtype)
        if integer
        else random.standard_normal(count).astype(dtype)
        for _ in range(2)
    )
    memory = old.copy()
    size, data = (8, "v[2:3]") if wide else (4, "v2")
    load = "global_load_dwordx2" if wide else "global_load_dword"
    body = f"v_mul_u32_u24_e32 v1, {size}, v0\n{load} {data}, v1, s[6:7]\nglobal_atomic_{name} v1, {data}, s[4:5]"
    launch(body, [memory, value])
    np.testing.assert_array_equal(memory, function(old, value).astype(dtype))


def test_compare_and_swap_is_won_once() -> None:
    lock, won = np.zeros(1, np.uint32), np.zeros(64, np.uint32)
    body = """
        v_mov_b32_e32 v1, 0
        v_add_u32_e32 v2, 100, v0
        v_mov_b32_e32 v3, 0
        global_atomic_cmpswap v4, v1, v[2:3], s[4:5] sc0
        v_lshlrev_b32_e32 v1, 2, v0
        global_store_dword v1, v4, s[6:7]
    """
    launch(body, [lock, won])
    assert lock[0] == 100
    np.testing.assert_array_equal(won, np.where(LANE == 0, 0, 100))


def test_shared_memory() -> None:
    body = """
        v_lshlrev_b32_e32 v4, 3, v0
        ds_write_b64 v4, v[1:2]
        ds_write_b8 v4, v3 offset:513
        s_waitcnt lgkmcnt(0)
        ds_read2st64_b32 v[10:11], v4 offset1:1
        ds_read_b64 v[12:13], v4
        ds_read_u16_d16_hi v12, v4
        ds_read_i8 v14, v4 offset:3
        v_lshlrev_b32_e32 v5, 2, v0
        ds_write2_b32 v5, v2, v1 offset0:64 offset1:128
        ds_read_b32 v15, v5 offset:512
    """
    other = np.roll(WORDS, 1)
    results = [f"v{register}" for register in range(10, 16)]
    found = run_lanes(body, [WORDS, other, LANE], results=results, shared_bytes=1088)
    shared = np.zeros(1088, np.uint8)
    shared[:512] = np.stack([WORDS, other], 1).view(np.uint8).ravel()
    shared[513 + 8 * LANE] = LANE
    words, halves = shared.view(np.uint32), shared.view(np.uint16)
    np.testing.assert_array_equal(found[0], words[2 * LANE])
    np.testing.assert_array_equal(found[1][:32], words[2 * LANE[:32] + 64])
    np.testing.assert_array_equal(found[1][32:] >> 8 & 255, LANE[:32])
    np.testing.assert_array_equal(found[2] & 0xFFFF, WORDS & 0xFFFF)
    np.testing.assert_array_equal(found[2] >> 16, halves[4 * LANE])
    np.testing.assert_array_equal(found[3], other)
    np.testing.assert_array_equal(found[4], shared[3 + 8 * LANE].view(np.int8).astype(np.int32).view(np.uint32))
    np.testing.assert_array_equal(found[5], WORDS)


@pytest.mark.parametrize("bits", [8, 16])
def test_transposing_reads(bits: int) -> None:
    """gfx950: 16 lanes' rows of 64 bits come back as columns."""
    name = f"ds_read_b64_tr_b{bits}"
    body = f"v_lshlrev_b32_e32 v4, 3, v0\nds_write_b64 v4, v[1:2]\n{name} v[10:11], v4"
    other = np.roll(WORDS, 1)
    found = run_lanes(body, [WORDS, other], results=("v10", "v11"), arch="gfx950", shared_bytes=512)
    elements = np.stack([WORDS, other], 1).view(f"u{bits // 8}").reshape(4, 64 // bits, 16)
    expected = np.ascontiguousarray(elements.transpose(0, 2, 1)).view(np.uint32).reshape(64, 2)
    np.testing.assert_array_equal(found.T, expected)


def test_atomics_in_shared_memory() -> None:
    body = """
        v_mov_b32_e32 v2, 0
        v_lshlrev_b32_e32 v3, 2, v0
        ds_write_b32 v3, v2
        v_and_b32_e32 v4, 12, v0
        ds_add_u32 v4, v0
        ds_max_rtn_i32 v10, v2, v1 offset:128
        ds_add_rtn_f32 v11, v2, v5 offset:132
        ds_read_b32 v12, v3
    """
    floats = np.ones(64, np.float32)
    values = np.random.default_rng(5).permutation(64).astype(np.uint32)
    found = run_lanes(body, [values, values, values, values, floats], results=("v10", "v11", "v12"), shared_bytes=256)
    np.testing.assert_array_equal(found[0], np.maximum.accumulate(np.append(0, values))[:-1])
    np.testing.assert_array_equal(found[1].view(np.float32), LANE)
    sums = [int(LANE[4 * word == (LANE & 12)].sum()) for word in range(4)]
    assert found[2][:4].tolist() == sums
    assert found[2][32] == 63


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_loads_straight_into_shared_memory(arch: str) -> None:
    source, result = WORDS.copy(), np.zeros(64, np.uint32)
    body = (
        LOAD_POINTERS
        + """
        v_lshlrev_b32_e32 v1, 2, v0
        s_movk_i32 m0, 0x80
        global_load_lds_dword v1, s[4:5]
        s_waitcnt vmcnt(0)
        ds_read_b32 v2, v1 offset:128
        global_store_dword v1, v2, s[6:7]
    """
    )
    snippet(body, arch, shared_bytes=384).launch((1,), [source, result], ["*u32", "*u32"], 1)
    np.testing.assert_array_equal(result, source)


def test_scratch_is_private() -> None:
    body = """
        scratch_store_dwordx2 off, v[1:2], off offset:8
        s_movk_i32 s40, 16
        scratch_store_dword off, v0, s40
        v_mov_b32_e32 v4, 12
        scratch_load_dword v10, v4, off
        scratch_load_dwordx3 v[11:13], off, off offset:8
    """
    found = run_lanes(body, [WORDS, LANE * 3], results=("v10", "v11", "v12", "v13"), scratch_bytes=32, num_warps=1)
    np.testing.assert_array_equal(found, [LANE * 3, WORDS, LANE * 3, LANE])


# ---------------------------------------------------------------------- what a host does


def test_allocations_are_poisoned_apart_and_counted() -> None:
    memory = DeviceMemory(capacity=1000)
    first, second = memory.alloc(300), memory.alloc(500)
    assert first % 256 == second % 256 == 0
    assert second - first > 300 + 4096
    assert (memory.read(first, 300) == 0xAA).all()
    assert memory.used == 800
    with pytest.raises(MemoryError, match="300 bytes wanted, 200 of 1000 left"):
        memory.alloc(300)
    memory.free(first)
    assert memory.alloc(300) != first  # addresses are never given out twice
    memory.write(second + 100, np.arange(5, dtype=np.float32))
    np.testing.assert_array_equal(memory.read(second + 104, 8).view(np.float32), [1, 2])
    memory.write(second, b"abc")
    memory.view(second, 3)[1] = ord("x")
    assert memory.read(second, 3).tobytes() == b"axc"


def test_host_accesses_are_checked() -> None:
    memory = DeviceMemory()
    address = memory.alloc(100, name="weights")
    with pytest.raises(EmulationError, match="0 bytes after weights of 100 bytes"):
        memory.read(address + 100, 1)
    with pytest.raises(EmulationError, match="outside an allocation"):
        memory.write(address + 90, bytes(11))
    memory.free(address)
    with pytest.raises(EmulationError, match="4 bytes into weights of 100 bytes, which was freed"):
        memory.read(address + 4, 1)
    with pytest.raises(EmulationError, match="nothing live starts"):
        memory.free(address)
    with pytest.raises(EmulationError, match="not contiguous"):
        memory.map(np.zeros((4, 4))[:, 1])


def test_mappings_have_the_address_that_is_asked_for() -> None:
    memory = DeviceMemory()
    pinned = np.arange(16, dtype=np.uint32)
    address = memory.map(pinned, address=pinned.ctypes.data, name="pinned")
    assert address == pinned.ctypes.data
    result = np.zeros(16, np.uint32)
    body = "s_mov_b64 exec, 0xffff\nv_lshlrev_b32_e32 v1, 2, v0\nglobal_load_dword v2, v1, s[4:5]\n"
    launch(body + "global_store_dword v1, v2, s[6:7]", [DevicePointer(memory, address), result])
    np.testing.assert_array_equal(result, pinned)
    with pytest.raises(EmulationError, match="overlaps"):
        memory.map(np.zeros(4, np.uint8), address=address + 8)


def test_a_sparse_pool_beyond_four_gibibytes(tmp_path: Path) -> None:
    """Reserved memory and mapped files cost nothing until touched; offsets are 64 bits wide."""
    far = (5 << 30) + 64
    memory = DeviceMemory()
    pool = memory.reserve(6 << 30, name="pool")
    memory.write(pool + far, np.arange(64, dtype=np.uint32))
    file = np.memmap(tmp_path / "pool", np.uint8, "w+", shape=(5 << 30) + 4096)
    body = f"""
        v_lshlrev_b32_e32 v1, 2, v0
        v_mov_b32_e32 v2, {far & 0xFFFFFFFF:#x}
        v_mov_b32_e32 v3, {far >> 32}
        v_lshl_add_u64 v[4:5], s[4:5], 0, v[2:3]
        v_add_co_u32_e32 v4, vcc, v4, v1
        v_addc_co_u32_e32 v5, vcc, 0, v5, vcc
        global_load_dword v6, v[4:5], off
        v_lshl_add_u64 v[4:5], s[6:7], 0, v[2:3]
        v_add_co_u32_e32 v4, vcc, v4, v1
        v_addc_co_u32_e32 v5, vcc, 0, v5, vcc
        v_add_u32_e32 v6, 1, v6
        global_store_dword v[4:5], v6, off
    """
    launch(body, [DevicePointer(memory, pool), file])
    np.testing.assert_array_equal(file[far : far + 256].view(np.uint32), LANE + 1)
    assert memory.read(pool + (3 << 30), 16).tolist() == [0] * 16


def test_peers_see_each_other_one_way() -> None:
    first, second = DeviceMemory(), DeviceMemory(base=0x7F00_0000_0000, name="device 1")
    theirs = second.map(np.full(64, 7, np.uint32), name="their data")
    mine = first.alloc(256)
    body = "v_lshlrev_b32_e32 v1, 2, v0\nglobal_load_dword v2, v1, s[4:5]\nglobal_store_dword v1, v2, s[6:7]"
    kernel = snippet(LOAD_POINTERS + body)
    arguments = struct.pack("<QQ", theirs, mine)
    with pytest.raises(EmulationError, match="out-of-bounds 4-byte load"):
        kernel.launch_raw(first, arguments, (1,), 1)
    first.enable_peer(second)
    kernel.launch_raw(first, arguments, (1,), 1)
    np.testing.assert_array_equal(first.read(mine, 256).view(np.uint32), 7)
    with pytest.raises(EmulationError, match="out-of-bounds 4-byte store"):
        kernel.launch_raw(second, arguments, (1,), 1)
    first.disable_peer(second)
    with pytest.raises(EmulationError, match="out-of-bounds 4-byte load"):
        kernel.launch_raw(first, arguments, (1,), 1)


def test_launches_of_one_kernel_share_nothing_but_its_code() -> None:
    body = "v_lshlrev_b32_e32 v1, 2, v0\nglobal_store_dword v1, v0, s[4:5]"
    first, second = snippet(LOAD_POINTERS + body), snippet(LOAD_POINTERS + body)
    assert first.program is second.program
    for kernel in (first, second):
        result = np.zeros(64, np.uint32)
        assert kernel.launch((1,), [result, None], ["*u32", "*u32"], 1) == kernel.count == 4
        np.testing.assert_array_equal(result, LANE)
    twice = np.zeros(128, np.uint32)
    first.launch((1,), [twice, None], ["*u32", "*u32"], 2)
    assert (first.count, first.wave_count) == (4, 8)
