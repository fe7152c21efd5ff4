"""Places the arrays of the io region one after the other."""

from __future__ import annotations

from collections.abc import Iterable

from paiton_artifacts.layout import ROW_ALIGNMENT, align_up
from paiton_artifacts.schema import IoField

_BYTES = {"i32": 4, "f32": 4, "u64": 8}
_ALIGNMENT = 4 * ROW_ALIGNMENT


def place(wanted: Iterable[tuple[str, str, int]], start: int = 0) -> tuple[IoField, ...]:
    """Returns the arrays at aligned offsets from `start` on.

    Args:
        wanted: name, dtype ("i32", "f32" or "u64") and number of elements of each.
        start: bytes that come before them.
    """
    fields = []
    offset = align_up(start, _ALIGNMENT)
    for name, dtype, count in wanted:
        fields.append(IoField(name, dtype, count, offset))
        offset = align_up(offset + count * _BYTES[dtype], _ALIGNMENT)
    return tuple(fields)


def extent(field: IoField) -> int:
    """Returns the bytes of one array."""
    return field.count * _BYTES[field.dtype]


def end_of(fields: Iterable[IoField]) -> int:
    """Returns the byte after the last array."""
    return max((field.offset + extent(field) for field in fields), default=0)
