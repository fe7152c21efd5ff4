"""What all formats of tool calls have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, Protocol

from paiton_artifacts.record import dataclass, field
from paiton_runtime.server.openai.grammar import with_whitespace


def _call_id() -> str:
    return f"call_{os.urandom(12).hex()}"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete call; `arguments` is JSON text."""

    name: str
    arguments: str
    id: str = field(default_factory=_call_id)


Piece = str | ToolCall
"""A part of an answer: text, or a call."""


def only_text(pieces: Sequence[Piece]) -> str | None:
    """Returns the text of pieces, or None where one is a call."""
    texts = [piece for piece in pieces if isinstance(piece, str)]
    return "".join(texts) if len(texts) == len(pieces) else None


class CallParser(Protocol):
    """Finds the calls in one answer, whose text arrives in pieces; what turns out to be no call comes out as text."""

    def push(self, text: str) -> list[Piece]:
        """Takes the next text and returns what became certain."""

    def finish(self) -> list[Piece]:
        """Returns what is left at the end of the answer."""


class PlainText:
    """For answers without calls."""

    def push(self, text: str) -> list[Piece]:
        """See `CallParser`."""
        return [text] if text else []

    def finish(self) -> list[Piece]:
        """See `CallParser`."""
        return []


def read_call(value: object, key: str) -> ToolCall | None:
    """Returns the call that a JSON object describes, or None if it does not.

    Args:
        value: parsed JSON.
        key: under which the arguments stand.
    """
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get(key, {})
    if isinstance(arguments, str):  # some models write JSON into JSON
        return ToolCall(value["name"], arguments)
    if not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


def call_rule(function: dict[str, Any], key: str) -> str:
    """Returns a rule of llguidance's Lark dialect that a call of this function matches.

    The arguments follow the function's own schema, which stays the root of what it refers to.
    """
    head = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "{key}": '
    schema = function.get("parameters") or {"type": "object"}
    arguments = json.dumps(with_whitespace(schema), ensure_ascii=False)
    return f"{json.dumps(head, ensure_ascii=False)} %json {arguments} {json.dumps('}')}"


def call_rules(functions: Sequence[dict[str, Any]], key: str) -> str:
    """Returns the rule `call`, which matches a call of any of the functions."""
    rules = [f"function_{i}: {call_rule(function, key)}" for i, function in enumerate(functions)]
    return "\n".join((f"call: {' | '.join(f'function_{i}' for i in range(len(functions)))}", *rules))
