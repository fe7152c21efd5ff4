"""``rope_kv``: RMSNorm of every head of q and k, RoPE, and the write of K and V into the cache.

A launch of its own behind ``linear``, whose units of work are parts of heads: a norm needs the whole head.
"""

from __future__ import annotations

from collections.abc import Mapping

from paiton_kernels.spec import (
    COUNTS,
    KV_CACHE,
    PAGING,
    WORKER_SCRATCH,
    WORKER_SCRATCH_STRIDE,
    Arg,
    KernelSpec,
    Macro,
    Value,
)


def _name(macros: Mapping[str, Value]) -> str:
    offset = "_offset" if macros["NORM_OFFSET"] else ""
    kv = "_kvfp8" if macros["KV"] == "FP8" else ""
    return f"q{macros['Q_HEADS']}_kv{macros['KV_HEADS']}_d{macros['HEAD_DIM']}{offset}{kv}"


def _check(macros: Mapping[str, Value]) -> str:
    return "" if int(macros["HEAD_DIM"]) % 32 == 0 else f"HEAD_DIM is {macros['HEAD_DIM']}, not a multiple of 32"


ROPE_KV = KernelSpec(
    family="rope_kv",
    args=(
        COUNTS,
        Arg("qkv", "f32*", "f32[T][Q_HEADS + 2*KV_HEADS][HEAD_DIM], as `linear` stores them"),
        Arg("q_norm", "bf16*", "bf16[HEAD_DIM]: weights of the norm of q's heads"),
        Arg("k_norm", "bf16*", "bf16[HEAD_DIM]: weights of the norm of k's heads"),
        Arg("eps", "f64", "added to the mean of squares"),
        Arg("rope", "f32*", "f32[T][HEAD_DIM] written by `rope_table`"),
        *PAGING,
        *KV_CACHE,
        Arg("out", "mut bf16*", "bf16[T][Q_HEADS][HEAD_DIM]: q"),
        WORKER_SCRATCH,
        WORKER_SCRATCH_STRIDE,
    ),
    macros=(
        Macro("Q_HEADS", "query heads of this rank"),
        Macro("KV_HEADS", "KV heads of this rank"),
        Macro("HEAD_DIM", "elements of a head"),
        Macro("NORM_OFFSET", "1: norm weights are stored less 1", default=0, minimum=0),
        Macro("KV", "how K and V are stored", choices=("BF16", "FP8"), default="BF16"),
    ),
    name=_name,
    check=_check,
    scratch=lambda macros, _max_tokens: 4 * int(macros["HEAD_DIM"]),
)
