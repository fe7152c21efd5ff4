"""``norm_add``: the sum of all ranks' partial results, normalised and added to the residual stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.all_reduce import MAX_RANKS
from paiton_kernels.pack import rms_norm
from paiton_kernels.spec import COUNTS, WORKER_SCRATCH, WORKER_SCRATCH_STRIDE, Arg, KernelSpec, Macro, Value


def _name(macros: Mapping[str, Value]) -> str:
    return f"r{macros['RANKS']}_n{macros['HIDDEN']}{'_offset' if macros['NORM_OFFSET'] else ''}"


def _check(macros: Mapping[str, Value]) -> str:
    return "" if int(macros["RANKS"]) <= MAX_RANKS else f"RANKS is {macros['RANKS']}, more than {MAX_RANKS}"


NORM_ADD = KernelSpec(
    family="norm_add",
    args=(
        COUNTS,
        *(Arg(f"part{rank}", "f32*", f"f32[T][HIDDEN] of rank {rank}") for rank in range(MAX_RANKS)),
        Arg("norm_weight", "bf16*", "bf16[HIDDEN]"),
        Arg("eps", "f64", "added to the mean of squares"),
        Arg("out", "mut f32*", "f32[T][HIDDEN]: the residual stream"),
        WORKER_SCRATCH,
        WORKER_SCRATCH_STRIDE,
    ),
    macros=(
        Macro("RANKS", "parts to add"),
        Macro("HIDDEN", "elements of a row"),
        Macro("NORM_OFFSET", "1: norm weights are stored less 1", default=0, minimum=0),
    ),
    name=_name,
    check=_check,
    scratch=lambda macros, _max_tokens: 4 * int(macros["HIDDEN"]),
)


def norm_add(
    parts: Sequence[NDArray[np.float32]],
    weight: NDArray[np.float64],
    out: NDArray[np.float32],
    eps: float,
    offset: float,
) -> NDArray[np.float64]:
    """Returns f64[T][HIDDEN]: `out` plus the norm of the parts' sum."""
    total = np.sum([part.astype(np.float64) for part in parts], axis=0)
    return np.asarray(out.astype(np.float64) + rms_norm(total, weight, eps, offset))
