"""What a value in a request's body may be: each kind reads JSON, refuses it by name, and describes itself.

Plain classes, because all of this is imported while the model boots: as dataclasses they took 30 ms.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from paiton_runtime.server.errors import ApiError

Schema = dict[str, Any]

_SHOWN = 100
"""Characters of a wrong value that an error shows."""

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN
_REPR.maxlevel = 3


def wrong(where: str, value: object, expected: str) -> NoReturn:
    """Refuses a value.

    Raises:
        ApiError: always; 400.
    """
    raise ApiError(400, f"{where} is {_shown(value)}, but must be {expected}", param=where, code="invalid_value")


def _shown(value: object) -> str:
    """Returns the beginning of a value; only the beginning of a long one is ever formatted."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = _REPR.repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


class Kind:
    """What a value may be."""

    def read(self, value: Any, where: str) -> Any:  # noqa: ANN401  (JSON)
        """Returns the value as the program uses it.

        Raises:
            ApiError: 400, with `where` as the field's name.
        """
        raise NotImplementedError

    def fits(self, value: object) -> bool:
        """Returns whether the value has the kind's JSON type, so that errors are about what else is wrong."""
        raise NotImplementedError

    def schema(self) -> Schema:
        """Returns the same as JSON schema."""
        raise NotImplementedError


class Integer(Kind):
    """A whole number within bounds; 3.0 is one, as JSON has only one kind of number."""

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high

    def read(self, value: Any, where: str) -> int:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or not self.low <= value <= self.high:
            wrong(where, value, f"an integer within [{self.low}, {self.high}]")
        return int(value)

    def schema(self) -> Schema:
        """See `Kind`."""
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


class Number(Kind):
    """A number within bounds; the lower one itself is refused where `above`."""

    def __init__(self, low: float, high: float, *, above: bool = False) -> None:
        self.low = low
        self.high = high
        self.above = above

    def read(self, value: Any, where: str) -> float:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high or (self.above and value == self.low):
            wrong(where, value, f"a number within {'(' if self.above else '['}{self.low:g}, {self.high:g}]")
        return float(value)

    def schema(self) -> Schema:
        """See `Kind`."""
        return {"type": "number", "exclusiveMinimum" if self.above else "minimum": self.low, "maximum": self.high}


class Boolean(Kind):
    """True or false."""

    def read(self, value: Any, where: str) -> bool:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        return value if isinstance(value, bool) else wrong(where, value, "true or false")

    def schema(self) -> Schema:
        """See `Kind`."""
        return {"type": "boolean"}


class Text(Kind):
    """Characters. JSON can write halves of surrogate pairs, which are none."""

    def __init__(self, most: int | None = None, least: int = 0) -> None:
        self.most = most
        self.least = least

    def read(self, value: Any, where: str) -> str:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        if not isinstance(value, str):
            wrong(where, value, "a string")
        if len(value) < self.least or (self.most is not None and len(value) > self.most):
            wrong(where, value, f"a string of {self.least} to {self.most or 'any number of'} characters")
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            wrong(where, value, "a string without lone surrogates")
        return value

    def fits(self, value: object) -> bool:
        """See `Kind`."""
        return isinstance(value, str)

    def schema(self) -> Schema:
        """See `Kind`."""
        least = {"minLength": self.least} if self.least else {}
        most = {"maxLength": self.most} if self.most is not None else {}
        return {"type": "string", **least, **most}


class Word(Kind):
    """One of some words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def read(self, value: Any, where: str) -> str:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        if not isinstance(value, str) or value not in self.words:
            wrong(where, value, f"one of {', '.join(map(repr, self.words))}")
        return value

    def fits(self, value: object) -> bool:
        """See `Kind`."""
        return isinstance(value, str)

    def schema(self) -> Schema:
        """See `Kind`."""
        return {"type": "string", "enum": list(self.words)}


class Items(Kind):
    """An array, read as a tuple."""

    def __init__(self, kind: Kind, most: int, least: int = 0) -> None:
        self.kind = kind
        self.most = most
        self.least = least

    def read(self, value: Any, where: str) -> tuple[Any, ...]:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            wrong(where, value, f"an array of {self.least} to {self.most} items")
        return tuple(self.kind.read(item, f"{where}[{i}]") for i, item in enumerate(value))

    def fits(self, value: object) -> bool:
        """See `Kind`; the first item counts too."""
        return isinstance(value, list) and (not value or self.kind.fits(value[0]))

    def schema(self) -> Schema:
        """See `Kind`."""
        least = {"minItems": self.least} if self.least else {}
        return {"type": "array", "items": self.kind.schema(), "maxItems": self.most, **least}


class TokenIds(Kind):
    """An array of token ids, of which prompts may have many: checked without a look at each by Python."""

    def __init__(self, least: int = 1) -> None:
        self.least = least

    def read(self, value: Any, where: str) -> list[int]:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        expected = "an array of token ids" + (", at least one" if self.least else "")
        if not isinstance(value, list) or len(value) < self.least:
            wrong(where, value, expected)
        if float in (types := set(map(type, value))):  # 3.0 is an integer, see above
            value = [int(item) if isinstance(item, float) and item.is_integer() else item for item in value]
            types = set(map(type, value))
        if not types <= {int}:
            wrong(where, value, expected)
        ids: list[int] = value
        if ids and not 0 <= min(ids) <= max(ids) < 2**31:
            wrong(where, value, "an array of token ids, which are not negative")
        return ids

    def fits(self, value: object) -> bool:
        """See `Kind`; the first item counts too."""
        return isinstance(value, list) and bool(value) and isinstance(value[0], int | float)

    def schema(self) -> Schema:
        """See `Kind`."""
        ids = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
        return {"type": "array", "items": ids, **({"minItems": self.least} if self.least else {})}


class Anything(Kind):
    """An object whose inside is somebody else's business, such as a JSON schema."""

    def read(self, value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        if not isinstance(value, dict):
            wrong(where, value, "an object")
        check_text(value, where)
        return value

    def fits(self, value: object) -> bool:
        """See `Kind`."""
        return isinstance(value, dict)

    def schema(self) -> Schema:
        """See `Kind`."""
        return {"type": "object", "additionalProperties": True}


class Original(Kind):
    """What fits `kind`, but as the client sent it, undeclared names and all, because a template shows it."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def read(self, value: Any, where: str) -> Any:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        self.kind.read(value, where)
        check_text(value, where)
        return value

    def schema(self) -> Schema:
        """See `Kind`."""
        return self.kind.schema()


class Table(Kind):
    """An object with any names (`names` is the pattern that its schema shows), and values of one kind."""

    def __init__(self, kind: Kind, most: int, names: str) -> None:
        self.kind = kind
        self.most = most
        self.names = names

    def read(self, value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        if not isinstance(value, dict) or len(value) > self.most:
            wrong(where, value, f"an object with at most {self.most} entries")
        return {name: self.kind.read(item, f"{where}.{name[:_SHOWN]}") for name, item in value.items()}

    def schema(self) -> Schema:
        """See `Kind`."""
        values, names = self.kind.schema(), {"pattern": self.names}
        return {"type": "object", "additionalProperties": values, "maxProperties": self.most, "propertyNames": names}


class OneOf(Kind):
    """Values of several kinds, told apart by their JSON type; `expected` names them in errors."""

    def __init__(self, expected: str, *kinds: Kind) -> None:
        self.expected = expected
        self.kinds = kinds

    def read(self, value: Any, where: str) -> Any:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        for kind in self.kinds:
            if kind.fits(value):
                return kind.read(value, where)
        wrong(where, value, self.expected)

    def schema(self) -> Schema:
        """See `Kind`."""
        return {"anyOf": [kind.schema() for kind in self.kinds]}


class Unsupported(Kind):
    """A field of the interface that this server does not have: only the values that change nothing are taken."""

    def __init__(self, reason: str, *harmless: Any) -> None:  # noqa: ANN401  (JSON)
        self.reason = reason
        self.harmless = harmless

    def read(self, value: Any, where: str) -> None:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        if value not in self.harmless:
            text = f"{where} is not supported: {self.reason}"
            raise ApiError(400, text, param=where, code="unsupported_parameter")

    def schema(self) -> Schema:
        """See `Kind`."""
        return {"enum": [None, *self.harmless]}


def check_text(value: object, where: str) -> None:
    """Refuses halves of surrogate pairs anywhere inside a JSON value, whose depth the parser bounds.

    Raises:
        ApiError: 400.
    """
    if isinstance(value, str):
        _TEXT.read(value, where)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            check_text(name, where)
            check_text(item, f"{where}.{name[:_SHOWN]}")
    elif isinstance(value, Sequence):
        for i, item in enumerate(value):
            check_text(item, f"{where}[{i}]")


_TEXT = Text()
