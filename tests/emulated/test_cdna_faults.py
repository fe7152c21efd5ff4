"""What the emulator refuses, and that it says where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.emulated.cdna import DeviceMemory, DevicePointer, EmulationError, Kernel
from tests.emulated.cdna.kernel import Order
from tests.emulated.cdna.snippets import run_lanes, snippet

LOAD_POINTER = "s_load_dwordx2 s[4:5], s[0:1], 0x0\n"
ORDERS = (None, "rev")


def launch(body: str, *arrays: Any, num_warps: int = 1, grid: int = 1, **options: Any) -> None:
    kernel = snippet(LOAD_POINTER + body, shared_bytes=options.pop("shared_bytes", 0))
    kernel.launch((grid,), list(arrays), ["*u8"] * len(arrays), num_warps, **options)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("v_frobnicate_f32 v1, v2", "unknown vector instruction"),
        ("s_frobnicate_b32 s4, s5", "unknown scalar instruction"),
        ("ds_frobnicate_b32 v1, v2", "unknown LDS instruction"),
        ("global_frobnicate v1, v2", "unknown memory instruction"),
        ("v_mfma_f32_2x2x2_f16 v[10:13], v[1:2], v[3:4], 0", "unknown matrix"),
        ("v_add_f32_e64 v1, v2, v3 frobnicate:1", "unknown modifier frobnicate"),
        ("v_add_f32_e64 v1, v2", "2 sources expected"),
        ("v_mov_b32_e32 v200, v1", "beyond the registers"),
        ("v_mov_b32_e32 v64, v1", "beyond the registers"),
        ("v_accvgpr_read_b32 v1, a32", "beyond the registers"),
        ("s_mov_b64 s[5:6], 0", "aligned"),
        ("v_add_u32_e32 v1, -v2, v3", "sign modifier"),
        ("s_cbranch_scc0 .Lnowhere", "unknown label"),
        ("buffer_load_dword v1, v2, s[4:7], 0 idxen", "indexed buffer"),
        ("s_setreg_imm32_b32 hwreg(HW_REG_TRAPSTS, 0, 1), 0", "HW_REG_MODE"),
    ],
)
def test_what_is_unknown_is_named(text: str, reason: str) -> None:
    with pytest.raises(EmulationError, match=reason) as caught:
        snippet(text).launch((1,), [], [], 1)
    assert repr(" ".join(text.split())) in str(caught.value)


def test_what_is_no_kernel() -> None:
    with pytest.raises(EmulationError, match="unknown architecture gfx90a"):
        Kernel("", "gfx90a")
    with pytest.raises(EmulationError, match="no kernel descriptor"):
        Kernel("s_endpgm", "gfx942")
    with pytest.raises(EmulationError, match="unknown order"):
        snippet("s_nop 0").launch((1,), [], [], 1, order="backward")
    with pytest.raises(EmulationError, match="3 for a pointer"):
        snippet("s_nop 0").launch((1,), [3], ["*u8"], 1)


@pytest.mark.parametrize("order", ORDERS)
def test_accesses_outside_an_array(order: Any) -> None:
    array = np.zeros(300, np.uint32)
    body = "v_lshl_add_u32 v1, s2, 8, v0\nv_lshlrev_b32_e32 v1, 2, v1\nglobal_load_dword v2, v1, s[4:5]"
    with pytest.raises(EmulationError) as caught:
        launch(body, array, num_warps=4, grid=2, order=order)
    message = str(caught.value)
    assert "global_load_dword v2, v1, s[4:5]" in message
    assert "out-of-bounds 4-byte load at 0x7e" in message
    wave = 0 if order is None else 3
    assert f"workgroup 1, wave {wave}, lane {44 if order is None else 0}" in message
    after = 0 if order is None else (256 + 192 - 300) * 4
    assert f"{after} bytes after argument 0 of 1200 bytes" in message


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_last_bytes_of_an_array_are_its_end(size: int) -> None:
    array = np.zeros(size, np.uint8)
    launch("s_mov_b64 exec, 1\nv_mov_b32_e32 v1, 0\n" + f"global_load_ubyte v2, v1, s[4:5] offset:{size - 1}", array)
    with pytest.raises(EmulationError, match=f"after argument 0 of {size} bytes"):
        launch(f"s_mov_b64 exec, 1\nv_mov_b32_e32 v1, 0\nglobal_load_ubyte v2, v1, s[4:5] offset:{size}", array)
    with pytest.raises(EmulationError, match="out-of-bounds"):
        launch(
            f"s_mov_b64 exec, 1\nv_mov_b32_e32 v1, 0\nglobal_load_dword v2, v1, s[4:5] offset:{max(size - 3, 0)}", array
        )


def test_inactive_lanes_do_not_access() -> None:
    array = np.zeros(10, np.uint32)
    body = "s_mov_b64 exec, 0x3ff\nv_lshlrev_b32_e32 v1, 2, v0\nglobal_store_dword v1, v0, s[4:5]"
    launch(body, array)
    np.testing.assert_array_equal(array, np.arange(10))
    with pytest.raises(EmulationError, match="lane 10"):
        launch(body.replace("0x3ff", "0x7ff"), array)


def test_stores_and_atomics_to_what_is_read_only() -> None:
    array = np.zeros(64, np.uint32)
    array.flags.writeable = False
    address = "v_lshlrev_b32_e32 v1, 2, v0\n"
    launch(address + "global_load_dword v2, v1, s[4:5]", array)
    for text in ("global_store_dword v1, v0, s[4:5]", "global_atomic_add v1, v0, s[4:5]"):
        with pytest.raises(EmulationError, match="read-only"):
            launch(address + text, array)
    with pytest.raises(EmulationError, match=r"read-only array.*kernel arguments"):
        snippet("v_lshlrev_b32_e32 v1, 2, v0\nglobal_store_dword v1, v0, s[0:1]").launch((1,), [1], ["i32"], 1)


def test_memory_that_was_freed() -> None:
    memory = DeviceMemory()
    address = memory.alloc(256, name="block")
    pointer = DevicePointer(memory, address)
    body = "v_lshlrev_b32_e32 v1, 2, v0\nglobal_store_dword v1, v0, s[4:5]"
    launch(body, pointer)
    memory.free(address)
    with pytest.raises(EmulationError, match="0 bytes into block of 256 bytes, which was freed"):
        launch(body, pointer)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("v_add_u32_e32 v1, v0, v7", "v7"),
        ("s_add_u32 s8, s9, 1", "s9"),
        ("v_mov_b32_e32 v1, v7\nv_add_u32_e32 v1, v0, v1", "v1"),
        ("global_store_dword v0, v9, s[4:5]", "v9"),
        ("ds_write_b64 v0, v[0:1]", "v1"),
        ("s_cbranch_vccnz .Lend\n.Lend:", "s106"),
        ("s_cselect_b32 s8, 1, 0", "scc"),
        ("v_mfma_f32_16x16x16_f16 v[10:13], v[0:1], v[2:3], 0", "v1"),
        ("v_accvgpr_read_b32 v1, a3\nv_add_u32_e32 v1, v1, v1", "v1"),
        ("s_mov_b64 s[8:9], s[10:11]\ns_lshl_b64 s[8:9], s[8:9], 2", "s8, s9"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_registers_that_were_never_written(text: str, name: str, order: Any) -> None:
    with pytest.raises(EmulationError, match=f"reads {name}.*never written"):
        launch(text, np.zeros(256, np.uint8), shared_bytes=512, order=order)


def test_copies_and_packs_of_undefined_values_are_no_use() -> None:
    body = "v_mov_b32_e32 v2, v0\nv_mov_b64_e32 v[4:5], v[2:3]\nv_perm_b32 v6, v4, v5, v0\nv_mov_b32_e32 v10, v4"
    np.testing.assert_array_equal(run_lanes(body)[0], np.arange(64))


@pytest.mark.parametrize("order", ORDERS)
def test_endless_loops(order: Any) -> None:
    with pytest.raises(EmulationError, match="more than 1000 instructions, an endless loop") as caught:
        launch("s_nop 0\n.Lagain:\ns_branch .Lagain", max_instructions=1000, order=order)
    assert "'s_branch .Lagain'" in str(caught.value)


@pytest.mark.parametrize("text", ["ds_read_b32 v1, v2", "ds_write_b32 v2, v0", "ds_add_u32 v2, v0"])
def test_accesses_outside_shared_memory(text: str) -> None:
    body = f"v_lshlrev_b32_e32 v2, 2, v0\n{text}"
    launch(body, shared_bytes=256)
    with pytest.raises(EmulationError, match=r"lane 63: out-of-bounds LDS .* of 4 bytes at 0xfc; LDS is 252 bytes"):
        launch(body, shared_bytes=252)


def test_accesses_outside_scratch() -> None:
    run_lanes("scratch_store_dword off, v0, off offset:12", results=("v0",), scratch_bytes=16)
    with pytest.raises(EmulationError, match="out-of-bounds scratch access of 4 bytes at 0xd; scratch is 16 bytes"):
        run_lanes("scratch_store_dword off, v0, off offset:13", results=("v0",), scratch_bytes=16)


FORWARD_AND_BACK: tuple[Order, ...] = ("fwd", "rev")


def test_a_missing_barrier_shows_in_another_order() -> None:
    """Lane i reads what lane 255 - i wrote: without a barrier right in lockstep, wrong one wave after the other."""
    exchange = """
        v_lshlrev_b32_e32 v1, 2, v0
        ds_write_b32 v1, v0
        {barrier}
        v_sub_u32_e32 v2, 0x3fc, v1
        ds_read_b32 v10, v2
    """
    expected = 255 - np.arange(256)
    for order in (None, *FORWARD_AND_BACK):
        found = run_lanes(exchange.format(barrier="s_barrier"), shared_bytes=1024, num_warps=4, order=order)[0]
        np.testing.assert_array_equal(found, expected)
    racy = exchange.format(barrier="s_nop 0")
    np.testing.assert_array_equal(run_lanes(racy, shared_bytes=1024, num_warps=4)[0], expected)
    for order in FORWARD_AND_BACK:
        assert (run_lanes(racy, shared_bytes=1024, num_warps=4, order=order)[0] != expected).any()


def test_workgroups_run_from_the_last_in_reverse() -> None:
    """A counter tells each workgroup how many came before it."""
    body = """
        v_mov_b32_e32 v1, 0
        v_mov_b32_e32 v2, 1
        s_mov_b64 exec, 1
        global_atomic_add v3, v1, v2, s[4:5] sc0
        s_lshl_b32 s6, s2, 2
        v_mov_b32_e32 v4, s6
        global_store_dword v4, v3, s[4:5] offset:4
    """
    for order in (None, "fwd", "rev"):
        array = np.zeros(101, np.uint32)
        launch(body, array, grid=100, order=order)
        arrival = np.arange(100) if order != "rev" else np.arange(100)[::-1]
        np.testing.assert_array_equal(array, np.append(100, arrival))
