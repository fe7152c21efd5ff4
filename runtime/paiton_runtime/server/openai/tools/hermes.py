"""The format of Hermes, Qwen and many others: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

Source: https://huggingface.co/NousResearch/Hermes-2-Pro-Llama-3-8B, section "Prompt Format for Function Calling".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from paiton_runtime.server.openai.stop import StopText
from paiton_runtime.server.openai.tools.calls import Piece, ToolCall, call_rules, read_call

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_KEY = "arguments"


class HermesParser:
    """Finds calls in one answer; see `CallParser`."""

    def __init__(self) -> None:
        self._inside = False
        self._after_call = False
        self._tag = StopText([OPEN])
        self._text = ""  # what is inside a call so far; outside, white space that a call may follow

    def push(self, text: str) -> list[Piece]:
        """See `CallParser`."""
        pieces: list[Piece] = []
        while True:
            before = self._tag.push(text)
            self._text += before
            found = self._tag.found is not None
            if self._inside:
                if found:
                    pieces += self._calls(self._text)
                    self._text = ""
            else:
                pieces += self._outside(call_follows=found)
            if not found:
                return pieces
            text = self._tag.rest
            self._inside = not self._inside
            self._tag = StopText([CLOSE if self._inside else OPEN])

    def finish(self) -> list[Piece]:
        """See `CallParser`. A call without an end is one nevertheless if it is complete otherwise."""
        text = self._text + self._tag.flush()
        self._text = ""
        if self._inside:
            return self._calls(text)
        if self._after_call:
            text = text.lstrip()
        return [text] if text else []

    def _outside(self, *, call_follows: bool) -> list[Piece]:
        """White space that separates calls from text and from each other is part of neither."""
        text, self._text = self._text, ""
        shown = text.rstrip()
        if not call_follows:
            self._text = text[len(shown) :]
        if self._after_call:
            shown = shown.lstrip()
        self._after_call = self._after_call and not shown
        return [shown] if shown else []

    def _calls(self, text: str) -> list[Piece]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        calls = [read_call(item, _KEY) for item in (value if isinstance(value, list) else [value])]
        found: list[ToolCall] = [call for call in calls if call is not None]
        if not calls or len(found) < len(calls):
            return [OPEN + text + (CLOSE if self._tag.found is not None else "")]
        self._after_call = True
        return list(found)


def hermes_grammar(functions: Sequence[dict[str, Any]], special: frozenset[str], *, many: bool) -> str:
    """Returns a Lark grammar of answers that are calls.

    Args:
        functions: that may be called.
        special: names of the tokenizer's special tokens, which the grammar has to name as such.
        many: allow several calls.
    """
    opening, closing = (tag if tag in special else json.dumps(tag) for tag in (OPEN, CLOSE))
    line = json.dumps("\n")
    one = f"{opening} {line} call {line} {closing}"
    more = f" ({line} {one})*" if many else ""
    return f"start: {one}{more}\n{call_rules(functions, _KEY)}"
