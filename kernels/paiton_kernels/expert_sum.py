"""``expert_sum``: what a token's experts made of it, weighted by their probabilities and added up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.spec import COUNTS, Arg, KernelSpec, Macro, Value


def _name(macros: Mapping[str, Value]) -> str:
    return f"top{macros['TOP_K']}_n{macros['N']}_{str(macros['MODE']).lower()}"


EXPERT_SUM = KernelSpec(
    family="expert_sum",
    args=(
        COUNTS,
        Arg("product", "f32*", "f32[T][TOP_K][N] written by `experts`"),
        Arg("probability", "f32*", "f32[T][TOP_K] written by `route`"),
        Arg("out", "mut f32*", "f32[T][N]"),
    ),
    macros=(
        Macro("TOP_K", "experts of a token"),
        Macro("N", "elements of a row"),
        Macro("MODE", "whether the sum replaces `out` or is added to it", choices=("STORE", "ADD")),
    ),
    name=_name,
)


def expert_sum(product: NDArray[np.float64], probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns f64[T][N] of products f64[T][TOP_K][N] and probabilities f64[T][TOP_K]."""
    return np.asarray((product * probability[..., None]).sum(axis=1))
