"""The format of Llama 3.1 and later: the answer is `{"name": ..., "parameters": {...}}`, or several with ";" between.

Source: https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/, section "JSON based tool calling".
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from paiton_runtime.server.openai.tools.calls import Piece, call_rules, read_call

TAG = "<|python_tag|>"

_KEY = "parameters"
_SPACE = " \t\r\n"
_DECODER = json.JSONDecoder()


class Llama3Parser:
    """Finds calls in one answer; see `CallParser`.

    Args:
        names: functions that may be called; JSON that calls none of them is the answer itself.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._text = ""  # not decided yet
        self._plain = False  # the answer is text
        self._called = False

    def push(self, text: str) -> list[Piece]:
        """See `CallParser`."""
        if self._plain:
            return [text] if text else []
        self._text += text
        start = self._text.lstrip(_SPACE + ";" if self._called else _SPACE)
        if not start or TAG.startswith(start):
            return []
        body = start.removeprefix(TAG).lstrip()
        if not self._called and body and not body.startswith("{"):
            return self._give_up()
        return self._complete_calls(body) if "}" in text else []

    def finish(self) -> list[Piece]:
        """See `CallParser`."""
        rest = self._text
        if self._called and not rest.strip(_SPACE + ";"):
            return []
        return self._give_up()

    def _complete_calls(self, body: str) -> list[Piece]:
        pieces: list[Piece] = []
        while body:
            try:
                value, end = _DECODER.raw_decode(body)
            except (ValueError, RecursionError):
                break
            other = isinstance(value, dict) and _KEY not in value
            call = read_call(value, "arguments" if other else _KEY)
            if call is None or call.name not in self._names:
                return [*pieces, *self._give_up()]
            pieces.append(call)
            self._called = True
            self._text = body[end:]
            body = self._text.lstrip(_SPACE + ";")
        return pieces

    def _give_up(self) -> list[Piece]:
        text, self._text = self._text, ""
        self._plain = True
        return [text] if text else []


def llama3_grammar(functions: Sequence[dict[str, Any]], *, many: bool) -> str:
    """Returns a Lark grammar of answers that are calls, of `functions` only, and of several where `many`."""
    more = f" ({json.dumps('; ')} call)*" if many else ""
    return f"start: call{more}\n{call_rules(functions, _KEY)}"
