"""Parses untrusted JSON within bounds: of bytes, of values and of depth, before the parser sees it.

`json` alone would do what the text says: 4 MiB of "[],[],..." become 90 MB of lists, and keys may occur twice.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

from paiton_artifacts.errors import VerificationError
from paiton_artifacts.limits import MAX_COMPANION_BYTES, MAX_JSON_DEPTH, MAX_JSON_VALUES
from paiton_artifacts.rules import RejectedError, Rule, show

T = TypeVar("T")

# Matches from every opening quote on, closed or not, and never goes back: linear whatever the text.
_STRING = re.compile(rb'"(?>[^"\\]+|\\.?)*+"?', re.DOTALL)
_NO_BRACKETS = re.compile(rb"[^][{}]+")
_HINT = "the file is damaged or of another format; fetch it again or write it anew"


def parse_json(data: bytes, error: type[VerificationError], what: str) -> object:
    """Returns the value of a JSON document: maps as dicts, lists as tuples.

    Args:
        data: the document, in UTF-8.
        error: class to raise.
        what: names the document in messages.

    Raises:
        VerificationError: of the class `error`: it exceeds a limit, is no JSON, or has a key twice in one map.
    """
    if len(data) > MAX_COMPANION_BYTES:
        raise error(f"{what}: {len(data)} bytes, more than {MAX_COMPANION_BYTES}", hint=_HINT)
    structure = _STRING.sub(b"", data)
    values = 1 + sum(map(structure.count, (b",", b"[", b"{")))
    if values > MAX_JSON_VALUES:
        raise error(f"{what}: about {values} values, more than {MAX_JSON_VALUES}", hint=_HINT)
    if (depth := _depth(structure)) > MAX_JSON_DEPTH:
        raise error(f"{what}: {depth} levels of lists and maps, more than {MAX_JSON_DEPTH}", hint=_HINT)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as failure:
        raise error(f"{what}: not JSON as we read it: {show(str(failure))}", hint=_HINT) from None
    return _frozen(value)


def member(value: object, name: str, rule: Rule[T]) -> T:
    """Returns a member of a JSON map, as checked by a rule; other members are ignored, as all formats here ask.

    Raises:
        RejectedError: the value is no map, lacks the member, or the rule refuses it.
    """
    if type(value) is not dict:
        raise RejectedError(f"is {show(value)}, not a map")
    if name not in value:
        raise RejectedError("is missing").inside(f".{name}")
    try:
        return rule(value[name])
    except RejectedError as rejected:
        raise rejected.inside(f".{name}") from None


def anything(value: object) -> object:
    """Accepts any value."""
    return value


def _depth(structure: bytes) -> int:
    """Returns the depth of at most MAX_JSON_VALUES opening brackets; looks no further than their closing ones."""
    depth = deepest = 0
    for byte in _NO_BRACKETS.sub(b"", structure)[: 2 * MAX_JSON_VALUES]:
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one map")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _frozen(value: object) -> object:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return {key: _frozen(inner) for key, inner in value.items()}
    return value
