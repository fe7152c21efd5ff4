"""Atomic read-modify-write: what each operation computes, and how colliding lanes are ordered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.number_formats import bf16_bits, bf16_values

Array = NDArray[Any]
Words = NDArray[np.uint32]
Combine = Callable[[Words, Words], Words]
"""From old contents and operands, uint32[lanes, words] each, to new contents uint32[lanes, words]."""


def _increment(old: Array, limit: Array) -> Array:
    result: Array = np.where(old >= limit, old.dtype.type(0), old + old.dtype.type(1))
    return result


def _decrement(old: Array, limit: Array) -> Array:
    return np.where((old == 0) | (old > limit), limit, old - old.dtype.type(1))


_OPERATIONS: Final[dict[str, tuple[str, Callable[[Array, Array], Array]]]] = {
    "swap": ("u", lambda _old, value: value),
    "add": ("u", np.add),
    "sub": ("u", np.subtract),
    "and": ("u", np.bitwise_and),
    "or": ("u", np.bitwise_or),
    "xor": ("u", np.bitwise_xor),
    "umax": ("u", np.maximum),
    "umin": ("u", np.minimum),
    "smax": ("i", np.maximum),
    "smin": ("i", np.minimum),
    "inc": ("u", _increment),
    "dec": ("u", _decrement),
    "fadd": ("f", np.add),
    "fmax": ("f", np.fmax),
    "fmin": ("f", np.fmin),
}
"""Kind of number, and function."""


def combine(operation: str, words: int) -> Combine:
    """Returns what an atomic operation does to 32-bit (1 word) or 64-bit (2 words) contents.

    Args:
        operation: a key of the table above, ``cmpswap`` (operands: new value, then the value to compare with),
            ``pk_add_f16`` or ``pk_add_bf16``.
        words: size of the contents.

    Raises:
        EmulationError: unknown.
    """
    if operation == "cmpswap":
        return lambda old, operands: np.where(
            (old == operands[:, words:]).all(axis=1, keepdims=True), operands[:, :words], old
        )
    if operation == "pk_add_f16":
        return lambda old, value: (old.view(np.float16) + value.view(np.float16)).view(np.uint32)
    if operation == "pk_add_bf16":
        return _add_bf16_pairs
    if operation not in _OPERATIONS:
        raise EmulationError(f"unknown atomic {operation}")
    kind, function = _OPERATIONS[operation]
    dtype = f"{kind}{4 * words}"
    return lambda old, value: np.ascontiguousarray(function(old.view(dtype), value.view(dtype))).view(np.uint32)


def _add_bf16_pairs(old: Words, value: Words) -> Words:
    total = bf16_values(old.view(np.uint16)) + bf16_values(value.view(np.uint16))
    return bf16_bits(total).astype(np.uint16).view(np.uint32)


def operand_words(operation: str, words: int) -> int:
    """Returns how many registers an operation's operand has."""
    return 2 * words if operation == "cmpswap" else words


def apply_in_order(
    places: Array,
    operands: Words,
    load: Callable[[Array], Words],
    store: Callable[[Array, Words], None],
    function: Combine,
) -> Words:
    """Performs atomics of some lanes; those at the same place follow each other in the order of the lanes.

    Args:
        places: addresses or offsets, [lanes].
        operands: uint32[lanes, words].
        load: reads uint32[lanes, words] at places.
        store: writes them.
        function: what to do.

    Returns:
        What each lane found, uint32[lanes, words].
    """
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    turn = np.empty(len(places), np.int64)  # how many earlier lanes use the same place
    turn[order] = np.arange(len(places)) - np.repeat(first, np.diff(np.append(first, len(places))))
    found: Words | None = None
    for number in range(int(turn.max()) + 1):
        lanes = np.flatnonzero(turn == number)
        old = load(places[lanes])
        store(places[lanes], function(np.ascontiguousarray(old), np.ascontiguousarray(operands[lanes])))
        if found is None:
            found = np.empty((len(places), old.shape[1]), np.uint32)
        found[lanes] = old
    assert found is not None
    return found
