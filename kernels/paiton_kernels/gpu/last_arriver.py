"""Split work within one launch: every program of a tile leaves a partial result, the last one to arrive finishes."""

from __future__ import annotations

import triton
import triton.language as tl


@tl.core.builtin
def on_amd(_semantic=None):
    """Whether the kernel is being compiled for an AMD target."""
    return tl.constexpr(_semantic.builder.options.backend_name == "hip")


@triton.jit
def arrives_last(semaphore, arrivals):
    """Counts an arrival, after everything that this program has stored; true for the last of `arrivals`.

    What the others stored is visible to the last one, to loads that bypass the first-level cache (".cg") or come after
    this call. The caller stores 0 to the semaphore when it is done, so that the launch can be repeated.
    """
    if on_amd():
        # A barrier here does not wait for the other waves' stores, and the release below only for its own wave's
        # (LLVM's memory model of gfx942): every wave waits for its own first.
        tl.inline_asm_elementwise(
            "s_waitcnt vmcnt(0)\nv_mov_b32 $0, $1", "=v,v", [tl.arange(0, 1)], dtype=tl.int32, is_pure=False, pack=1
        )
    tl.debug_barrier()
    return tl.atomic_add(semaphore, 1, sem="acq_rel", scope="gpu") == arrivals - 1
