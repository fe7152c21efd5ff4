"""``route``: the experts that every token goes through, and how much each counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.spec import COUNTS, MAX_EXPERTS, MAX_TOP_K, Arg, KernelSpec, Macro, Value


def _name(macros: Mapping[str, Value]) -> str:
    return f"e{macros['EXPERTS']}_top{macros['TOP_K']}{'_normalise' if macros['NORMALISE'] else ''}"


def check_choice(macros: Mapping[str, Value]) -> str:
    """Returns what is wrong with macros EXPERTS and TOP_K, or ""."""
    experts, top_k = int(macros["EXPERTS"]), int(macros["TOP_K"])
    if experts > MAX_EXPERTS:
        return f"EXPERTS is {experts}, more than {MAX_EXPERTS}"
    most = min(experts, MAX_TOP_K)
    return f"TOP_K is {top_k} of {experts} experts, more than {most}" if top_k > most else ""


def _check(macros: Mapping[str, Value]) -> str:
    return check_choice(macros) or ("" if int(macros["NORMALISE"]) <= 1 else f"NORMALISE is {macros['NORMALISE']}")


ROUTE = KernelSpec(
    family="route",
    args=(
        COUNTS,
        Arg("scores", "f32*", "f32[T][EXPERTS] written by `router`"),
        Arg("chosen", "mut i32*", "i32[T][TOP_K]: experts, the most probable first, of equal ones the lower"),
        Arg("probability", "mut f32*", "f32[T][TOP_K]: of the chosen"),
    ),
    macros=(
        Macro("EXPERTS", "to choose from"),
        Macro("TOP_K", "experts of a token"),
        Macro("NORMALISE", "1: the probabilities of the chosen are divided by their sum", minimum=0),
    ),
    name=_name,
    check=_check,
)


def route(scores: NDArray[np.float64], top_k: int, *, normalise: bool) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Returns i32[T][top_k] and f64[T][top_k]: the chosen experts of scores [T][experts], and their probabilities."""
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    picked = np.take_along_axis(odds, chosen, axis=1)
    total = (picked if normalise else odds).sum(axis=1, keepdims=True)
    return chosen.astype(np.int32), np.asarray(picked / total)
