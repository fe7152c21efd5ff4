"""Small kernels written in assembly, for tests: instructions between loads of sources and stores of results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tests.emulated.cdna.kernel import Kernel, Order
from tests.emulated.cdna.waves import LANES

_DESCRIPTOR = """
.amdhsa_kernel snippet
    .amdhsa_group_segment_fixed_size {shared_bytes}
    .amdhsa_private_segment_fixed_size {scratch_bytes}
    .amdhsa_kernarg_size 64
    .amdhsa_user_sgpr_count 2
    .amdhsa_user_sgpr_kernarg_segment_ptr 1
    .amdhsa_system_sgpr_workgroup_id_x 1
    .amdhsa_next_free_vgpr {registers}
    .amdhsa_accum_offset {accumulators}
.end_amdhsa_kernel
"""


def snippet(
    body: str,
    arch: str = "gfx942",
    *,
    registers: int = 96,
    accumulators: int = 64,
    shared_bytes: int = 0,
    scratch_bytes: int = 0,
) -> Kernel:
    """Returns a kernel that executes `body`, then ends.

    At the start s[0:1] is the address of the arguments, s2 the workgroup, v0 the lane (wave * 64 + lane).

    Args:
        body: instructions and labels, one a line.
        arch: ``gfx942`` or ``gfx950``.
        registers: vector and accumulation registers together.
        accumulators: how many of them are vector registers.
        shared_bytes: LDS of a workgroup.
        scratch_bytes: private memory of a lane.
    """
    descriptor = _DESCRIPTOR.format(
        shared_bytes=shared_bytes, scratch_bytes=scratch_bytes, registers=registers, accumulators=accumulators
    )
    return Kernel(f"snippet:\n{body}\ns_endpgm\n.Lfunc_end0:\n{descriptor}", arch)


def run_lanes(
    body: str,
    vectors: Sequence[ArrayLike] = (),
    scalars: Sequence[int] = (),
    results: Sequence[str] = ("v10",),
    *,
    arch: str = "gfx942",
    shared_bytes: int = 0,
    scratch_bytes: int = 0,
    num_warps: int = 1,
    order: Order = None,
) -> NDArray[np.uint32]:
    """Runs instructions on the lanes of one workgroup.

    Args:
        body: instructions; v0 is the lane, s[0:7] and v60 to v63 are not theirs.
        vectors: 32-bit patterns, [64 * num_warps] each (or one for all), in v1, v2, ...
        scalars: in s8, s9, ...
        results: registers to return, vector or scalar.
        arch: see `snippet`, like the two that follow.
        shared_bytes: see `snippet`.
        scratch_bytes: see `snippet`.
        num_warps: waves of the workgroup.
        order: of the waves.

    Returns:
        uint32[results, 64 * num_warps]
    """
    lanes = LANES * num_warps
    given = np.zeros((max(len(vectors), 1), lanes), np.uint32)
    for row, vector in zip(given, vectors, strict=False):
        values = np.asarray(vector)
        row[:] = values.view(np.uint32) if values.dtype.itemsize == 4 else values.astype(np.uint64).astype(np.uint32)
    found = np.zeros((len(results), lanes), np.uint32)
    lines = ["s_load_dwordx4 s[4:7], s[0:1], 0x0", "v_lshlrev_b32_e32 v63, 2, v0"]
    for number in range(len(vectors)):
        lines.append(f"s_add_u32 s0, s4, {number * lanes * 4}")
        lines.append("s_addc_u32 s1, s5, 0")
        lines.append(f"global_load_dword v{1 + number}, v63, s[0:1]")
    lines += [f"s_mov_b32 s{8 + number}, {value & 0xFFFFFFFF:#x}" for number, value in enumerate(scalars)]
    lines += [body, "s_mov_b64 exec, -1"]
    for number, register in enumerate(results):
        lines.append(f"v_mov_b32_e32 v62, {register}")
        lines.append(f"s_add_u32 s0, s6, {number * lanes * 4}")
        lines.append("s_addc_u32 s1, s7, 0")
        lines.append("global_store_dword v63, v62, s[0:1]")
    kernel = snippet("\n".join(lines), arch, shared_bytes=shared_bytes, scratch_bytes=scratch_bytes)
    kernel.launch((1,), [given, found], ["*u32", "*u32"], num_warps, order=order)
    return found
