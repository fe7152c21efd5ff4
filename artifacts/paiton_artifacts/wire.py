"""From structs to what msgpack packs: the writing side of `rules.py`."""

from __future__ import annotations

from typing import Any


def to_wire(value: Any) -> Any:  # noqa: ANN401 - the one place where structs lose their types
    """Returns a struct as a map from field names, in order, to values; sequences become lists, the rest stays.

    A struct is any object whose class declares fields (the manifest's and the plan's structs).
    """
    if isinstance(value, (str, bytes, int, float, bool, type(None))):
        return value
    if hasattr(type(value), "__annotations__"):
        return {name: to_wire(getattr(value, name)) for name in type(value).__annotations__}
    return [to_wire(item) for item in value]
