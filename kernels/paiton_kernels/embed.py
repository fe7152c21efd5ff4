"""``embed``: rows of the embedding table as f32, the start of the residual stream."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.spec import COUNTS, Arg, KernelSpec, Macro, Value


def _name(macros: Mapping[str, Value]) -> str:
    stride = "" if macros["ROW_STRIDE"] == 2 * int(macros["HIDDEN"]) else f"_s{macros['ROW_STRIDE']}"
    return f"n{macros['ROWS']}_k{macros['HIDDEN']}{stride}{'_scaled' if macros['SCALED'] else ''}"


def _check(macros: Mapping[str, Value]) -> str:
    if int(macros["ROW_STRIDE"]) < 2 * int(macros["HIDDEN"]):
        return f"ROW_STRIDE {macros['ROW_STRIDE']} is less than a row of {macros['HIDDEN']} bf16"
    return ""


EMBED = KernelSpec(
    family="embed",
    args=(
        COUNTS,
        Arg("token_ids", "i32*", "i32[T]: a token, or -1 - s for what slot s sampled last"),
        Arg("last_token", "i32*", "i32[slots]: what each slot sampled last"),
        Arg("table", "bf16*", "bf16[ROWS][HIDDEN]: this rank's rows of the embedding table"),
        Arg("first_token", "i64", "token id of the table's row 0"),
        Arg("out", "mut f32*", "f32[T][HIDDEN]; zeros for ids of other ranks"),
        Arg("scale", "f64", "what rows are multiplied by (SCALED=1)"),
    ),
    macros=(
        Macro("HIDDEN", "elements of a row"),
        Macro("ROWS", "rows of the table"),
        Macro("ROW_STRIDE", "bytes from one row to the next"),
        Macro("SCALED", "1: rows are multiplied by `scale`", default=0, minimum=0),
    ),
    name=_name,
    check=_check,
)


def embed(
    token_ids: NDArray[np.int32], table: NDArray[np.float64], first_token: int, scale: float = 1.0
) -> NDArray[np.float64]:
    """Returns f64[T][HIDDEN]: the table's row of each id times `scale`, or zeros where this rank does not hold it."""
    rows = token_ids.astype(np.int64) - first_token
    held = (rows >= 0) & (rows < len(table))
    picked: NDArray[np.float64] = np.where(held[:, None], table[np.where(held, rows, 0)] * scale, 0.0)
    return picked
