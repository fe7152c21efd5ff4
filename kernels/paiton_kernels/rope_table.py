"""``rope_table``: cosines and sines of rotary position embedding, once per step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.spec import COUNTS, Arg, KernelSpec, Macro, Value


def _name(macros: Mapping[str, Value]) -> str:
    return f"d{macros['HEAD_DIM']}"


def _check(macros: Mapping[str, Value]) -> str:
    return "" if int(macros["HEAD_DIM"]) % 32 == 0 else f"HEAD_DIM is {macros['HEAD_DIM']}, not a multiple of 32"


ROPE_TABLE = KernelSpec(
    family="rope_table",
    args=(
        COUNTS,
        Arg("positions", "i32*", "i32[T]"),
        Arg("inv_freq", "f32*", "f32[HEAD_DIM/2]: radians per position"),
        Arg("out", "mut f32*", "f32[T][HEAD_DIM]: HEAD_DIM/2 cosines, then as many sines"),
    ),
    macros=(Macro("HEAD_DIM", "elements of a head"),),
    name=_name,
    check=_check,
)


def rope_table(positions: NDArray[np.int32], inv_freq: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns f64[T][HEAD_DIM], cosines then sines of the angles as f32 products, like transformers computes them."""
    angle = (positions[:, None].astype(np.float32) * inv_freq[None, :]).astype(np.float64)
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
