"""``all_reduce``: the sum of all ranks' partial results, in rank order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.spec import COUNTS, Arg, KernelSpec, Macro, Value

MAX_RANKS = 16


def _name(macros: Mapping[str, Value]) -> str:
    return f"r{macros['RANKS']}_n{macros['HIDDEN']}_{str(macros['MODE']).lower()}"


def _check(macros: Mapping[str, Value]) -> str:
    return "" if int(macros["RANKS"]) <= MAX_RANKS else f"RANKS is {macros['RANKS']}, more than {MAX_RANKS}"


ALL_REDUCE = KernelSpec(
    family="all_reduce",
    args=(
        COUNTS,
        *(Arg(f"part{rank}", "f32*", f"f32[T][HIDDEN] of rank {rank}") for rank in range(MAX_RANKS)),
        Arg("out", "mut f32*", "f32[T][HIDDEN]"),
    ),
    macros=(
        Macro("RANKS", "parts to add"),
        Macro("HIDDEN", "elements of a row"),
        Macro("MODE", "whether the sum replaces `out` or is added to it", choices=("STORE", "ADD")),
    ),
    name=_name,
    check=_check,
)


def all_reduce(parts: Sequence[NDArray[np.float32]], out: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """Returns the f64 sum of the parts, plus `out` if there is one (MODE=ADD)."""
    total = np.sum([part.astype(np.float64) for part in parts], axis=0)
    return np.asarray(total if out is None else total + out.astype(np.float64))
