"""Scalars that come out of reductions, made known to the compiler as the same in every thread."""

from __future__ import annotations

import triton
import triton.language as tl

from paiton_kernels.gpu.last_arriver import on_amd


@tl.core.extern
def _first_lane(value, _semantic=None):
    symbols = {(tl.int32,): ("llvm.amdgcn.readfirstlane.i32", tl.int32)}
    return tl.core.extern_elementwise("", "", [value], symbols, is_pure=True, _semantic=_semantic)


@triton.jit
def uniform(value):
    """Returns an i32 that all threads have computed alike.

    LLVM takes what comes out of a reduction for a value of each lane. AMD's loads from where it points would then be
    loops over the lanes, although all lanes agree.
    """
    if on_amd():
        value = _first_lane(value)
    return value
