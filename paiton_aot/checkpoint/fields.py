"""Typed access to configuration and metadata that somebody else wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeGuard

from paiton_artifacts.errors import CheckpointFormatError

MAX_INT = (1 << 31) - 1
MAX_LAYERS = 1 << 14
MAX_HEAD_DIM = 1 << 14


def shown(value: object) -> str:
    """Returns a value from a file as a message shows it: on one line, cut to 80 characters."""
    return repr(value)[:80]


def _is_positive(value: object) -> TypeGuard[int | float]:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < math.inf


class Fields:
    """Typed access to a JSON object; an error names the file, the field and its value."""

    def __init__(self, values: Mapping[str, object], what: str) -> None:
        self.values = values
        self.what = what

    def integer(self, name: str, default: int | None = None, *, limit: int = MAX_INT) -> int:
        """Returns a positive integer of at most `limit`."""
        value = self._value(name, default)
        if type(value) is not int or not 0 < value <= limit:
            raise self._wrong(name, value, f"a positive integer of at most {limit}")
        return value

    def count(self, name: str, default: int) -> int:
        """Returns an integer that is not negative."""
        return 0 if self._value(name, default) == 0 else self.integer(name, default)

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a positive, finite number."""
        value = self._value(name, default)
        if not _is_positive(value):
            raise self._wrong(name, value, "a positive number")
        return float(value)

    def optional_number(self, name: str, default: float) -> float:
        """Returns a positive, finite number; 0 where the field is null, `default` where it is absent."""
        if name not in self.values:
            return default
        return 0.0 if self.values[name] is None else self.number(name)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Returns a truth value."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def section(self, name: str) -> Fields | None:
        """Returns an object; None where it is absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return Fields(value, f"{self.what} {name}")

    def strings(self, name: str) -> list[str]:
        """Returns a list of strings; absent and null are empty."""
        value = self.values.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, value, "a list of strings")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """Returns a list of positive, finite numbers."""
        value = self._value(name, None)
        if not isinstance(value, list) or not all(map(_is_positive, value)):
            raise self._wrong(name, value, "a list of positive numbers")
        return tuple(map(float, value))

    def token_ids(self, name: str, vocab_size: int) -> tuple[int, ...]:
        """Returns one or several token ids; absent and null are empty."""
        return self._below(name, vocab_size, f"token ids below the vocabulary size {vocab_size}")

    def layers(self, name: str, count: int) -> tuple[int, ...]:
        """Returns the numbers of some of `count` layers; absent and null are empty."""
        return self._below(name, count, f"numbers of layers below {count}")

    def _below(self, name: str, limit: int, expected: str) -> tuple[int, ...]:
        value = self.values.get(name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(item) is int and 0 <= item < limit for item in items):
            raise self._wrong(name, value, expected)
        return tuple(items)

    def _value(self, name: str, default: object) -> object:
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointFormatError(
                f"{self.what} has no field {name}", hint="the checkpoint is incomplete: fetch it again"
            )
        return value

    def _wrong(self, name: str, value: object, expected: str) -> CheckpointFormatError:
        return self.error(f"{name} {shown(value)}, expected {expected}")

    def error(self, problem: str) -> CheckpointFormatError:
        """Returns an error about the object's content."""
        return CheckpointFormatError(f"{self.what} has {problem}", hint="correct the field or fetch the file again")
