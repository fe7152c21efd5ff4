"""How the vector ALU's tables describe an instruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(full)
    for name, full in (
        ("u16", np.uint16),
        ("i16", np.int16),
        ("f16", np.float16),
        ("u32", np.uint32),
        ("i32", np.int32),
        ("f32", np.float32),
        ("u64", np.uint64),
        ("i64", np.int64),
        ("f64", np.float64),
    )
}
"""The types that operands are read as."""


class Operation(NamedTuple):
    """An instruction whose lanes are independent.

    Attributes:
        result: type of the destination.
        sources: types of the sources.
        function: from arrays of the sources' types to the result, elementwise.
    """

    result: str
    sources: tuple[str, ...]
    function: Callable[..., NDArray[Any]]


Table = dict[str, Operation]
