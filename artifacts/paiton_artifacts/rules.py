"""Rules that turn an untrusted msgpack value into typed data, or say precisely what is wrong with it.

A rule is a function from a value to the checked value. Rules compose: `struct(Chunk, offset=integer(0, 9), ...)`.
The success path does no string work, so that a manifest of hundreds of tensors costs milliseconds; where a value
sits is put together only while a rejection travels outwards.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from typing import Any, TypeVar

from paiton_artifacts.errors import VerificationError
from paiton_artifacts.limits import MAX_FIELDS, MAX_PATH, MAX_PATH_COMPONENTS

T = TypeVar("T")
Rule = Callable[[object], T]

_KINDS = {dict: "a map", tuple: "a list", str: "a string", bytes: "binary", int: "an integer", float: "a float"}

# Each component starts with a letter or a digit: neither "..", nor a hidden file, nor an option of some tool.
_COMPONENT = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT}){{0,{MAX_PATH_COMPONENTS - 1}}}", re.ASCII)


class RejectedError(Exception):
    """A value that broke a rule. Internal: `apply` turns it into an error of the tree."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = ""

    def inside(self, where: str) -> RejectedError:
        """Prefixes the position with the enclosing field or list index."""
        self.where = where + self.where
        return self


def show(value: object) -> str:
    """Returns a short one-line rendering of a value, for messages; never longer than about 100 characters."""
    return reprlib.repr(value)[:100]


def apply(rule: Rule[T], value: object, error: type[VerificationError], what: str) -> T:
    """Returns the value as checked by the rule.

    Args:
        rule: what to check.
        value: anything that msgpack decodes to.
        error: class to raise.
        what: names the document in the message, e.g. the file's path.

    Raises:
        VerificationError: of the class `error`, naming the field and the value.
    """
    try:
        return rule(value)
    except RejectedError as rejected:
        raise error(
            f"{what}: {rejected.where.lstrip('.') or 'content'} {rejected.reason}",
            hint="the file is damaged or was not written by paiton-build; build or fetch the bundle again",
        ) from None


def _mistyped(value: object, wanted: str) -> RejectedError:
    found = "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")
    return RejectedError(f"is {found}, not {wanted}")


def integer(low: int, high: int) -> Rule[int]:
    """Accepts an integer of `low` .. `high`; a boolean is none."""

    def rule(value: object) -> int:
        if type(value) is not int:
            raise _mistyped(value, "an integer")
        if not low <= value <= high:
            raise RejectedError(f"is {value}, outside {low} .. {high}")
        return value

    return rule


def real(low: float, high: float) -> Rule[float]:
    """Accepts a finite float of `low` .. `high`."""

    def rule(value: object) -> float:
        if type(value) is not float:
            raise _mistyped(value, "a float")
        if not low <= value <= high:  # also false for NaN
            raise RejectedError(f"is {value}, outside {low} .. {high}")
        return value

    return rule


def boolean(value: object) -> bool:
    """Accepts true or false."""
    if value is not True and value is not False:
        raise _mistyped(value, "a boolean")
    return value


def choice(*words: str) -> Rule[str]:
    """Accepts one of the words."""
    known = {word: word for word in words}

    def rule(value: object) -> str:
        if type(value) is not str:
            raise _mistyped(value, "a string")
        if value not in known:
            raise RejectedError(f"is {show(value)}, not one of {', '.join(map(repr, words))}")
        return known[value]

    return rule


def text(high: int, *, low: int = 1) -> Rule[str]:
    """Accepts printable text of `low` .. `high` characters: no control characters that a terminal would obey."""

    def rule(value: object) -> str:
        if type(value) is not str:
            raise _mistyped(value, "a string")
        if not low <= len(value) <= high:
            raise RejectedError(f"has {len(value)} characters, outside {low} .. {high}: {show(value)}")
        if not value.isprintable():
            raise RejectedError(f"is {show(value)}, which has unprintable characters")
        return value

    return rule


def pattern(expression: str, high: int, wanted: str) -> Rule[str]:
    """Accepts at most `high` characters that match the whole expression; `wanted` describes it in messages."""
    match = re.compile(expression, re.ASCII).fullmatch

    def rule(value: object) -> str:
        if type(value) is not str:
            raise _mistyped(value, "a string")
        if len(value) > high:
            raise RejectedError(f"has {len(value)} characters, more than {high}: {show(value)}")
        if not match(value):
            raise RejectedError(f"is {show(value)}, not {wanted}")
        return value

    return rule


def relative_path(value: object) -> str:
    """Accepts a path inside the bundle: plain ASCII names joined by "/", no "..", no backslash, bounded."""
    if type(value) is not str:
        raise _mistyped(value, "a string")
    if len(value) > MAX_PATH or not _PATH.fullmatch(value):
        raise RejectedError(
            f"is {show(value)}, not a relative path of at most {MAX_PATH_COMPONENTS} plain names joined by '/'"
        )
    return value


def binary(high: int) -> Rule[bytes]:
    """Accepts at most `high` bytes."""

    def rule(value: object) -> bytes:
        if type(value) is not bytes:
            raise _mistyped(value, "binary")
        if len(value) > high:
            raise RejectedError(f"has {len(value)} bytes, more than {high}")
        return value

    return rule


def optional(inner: Rule[T]) -> Rule[T | None]:
    """Accepts null, or what the inner rule accepts."""

    def rule(value: object) -> T | None:
        return None if value is None else inner(value)

    return rule


def sequence(inner: Rule[T], high: int, *, low: int = 0) -> Rule[tuple[T, ...]]:
    """Accepts a list of `low` .. `high` items, each by the inner rule."""

    def rule(value: object) -> tuple[T, ...]:
        if type(value) is not tuple:
            raise _mistyped(value, "a list")
        if not low <= len(value) <= high:
            raise RejectedError(f"has {len(value)} items, outside {low} .. {high}")
        checked: list[T] = []
        try:
            for item in value:
                checked.append(inner(item))  # noqa: PERF401 - its length tells the handler where it stopped
        except RejectedError as rejected:
            raise rejected.inside(f"[{len(checked)}]") from None
        return tuple(checked)

    return rule


def struct(cls: Callable[..., T], *, exact: bool = False, **rules: Rule[Any]) -> Rule[T]:
    """Accepts a map with every field of a struct, and builds it.

    Args:
        cls: the struct. Its fields and the rules must be the same names in the same order.
        exact: refuses fields that are not known; otherwise they are ignored, as later minor versions may add some.
        rules: the rule of each field.

    Raises:
        TypeError: if the rules do not fit the struct (a mistake in this package, found at import).
    """
    if tuple(rules) != tuple(cls.__annotations__):
        raise TypeError(f"the rules of {cls} do not name its fields in order")
    items = tuple(rules.items())

    def rule(value: object) -> T:
        if type(value) is not dict:
            raise _mistyped(value, "a map")
        if len(value) != len(items):
            _check_names(value, rules, exact)
        name = ""
        try:
            arguments = []
            for name, inner in items:
                arguments.append(inner(value[name]))
        except KeyError:
            raise RejectedError("is missing").inside(f".{name}") from None
        except RejectedError as rejected:
            raise rejected.inside(f".{name}") from None
        return cls(*arguments)

    return rule


def _check_names(value: dict[Any, Any], rules: dict[str, Rule[Any]], exact: bool) -> None:
    """Bounds the number of fields; says which is unknown if none may be."""
    if len(value) > MAX_FIELDS:
        raise RejectedError(f"has {len(value)} fields, more than {MAX_FIELDS}")
    if exact:
        for name in value:
            if name not in rules:
                raise RejectedError(f"has the unknown field {show(name)}")
