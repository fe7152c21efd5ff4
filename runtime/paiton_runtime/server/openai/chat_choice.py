"""One answer of a chat: its message, whole or in chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from paiton_runtime.server.openai.logprobs import chat_logprobs
from paiton_runtime.server.openai.output import Delta
from paiton_runtime.server.openai.requests import ChatRequest
from paiton_runtime.server.openai.responses import TextChunk, stop_reason
from paiton_runtime.server.openai.serving import Serving
from paiton_runtime.server.openai.tools.calls import Piece, ToolCall
from paiton_runtime.server.openai.tools.choice import ToolUse


class ChatChoice:
    """Puts deltas together.

    Attributes:
        begun: whether a chunk with the role was made.
        bare: whether chunks show nothing about tokens, so that those with text differ by it only.
    """

    def __init__(self, serving: Serving, body: ChatRequest, tools: ToolUse, index: int) -> None:
        self._serving = serving
        self._body = body
        self._tools = tools
        self._index = index
        self._parser = tools.parser()
        self._deltas: list[Delta] = []  # whose log-probabilities and tokens were not shown yet
        self._content: list[str] = []
        self._calls: list[ToolCall] = []
        self._last = Delta("", ())
        self.begun = False
        self.bare = not (body.logprobs or body.return_token_ids)

    def add(self, delta: Delta) -> list[Piece]:
        """Takes a delta and returns what it shows."""
        if not self.bare:
            self._deltas.append(delta)
        self._last = delta
        pieces = self._parser.push(delta.text) if delta.text else []
        if delta.reason is not None:
            pieces += self._parser.finish()
        shown: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, str):
                self._content.append(piece)
            elif self._calls and not self._body.parallel_tool_calls:
                continue
            else:
                self._calls.append(piece)
            shown.append(piece)
        return shown

    def whole(self) -> dict[str, Any]:
        """Returns the choice of an answer that is not streamed."""
        content = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if self._calls else "")}
        message["refusal"] = None
        if self._calls:
            message["tool_calls"] = [_call(call) for call in self._calls]
        return self._choice({"message": message})

    def chunks(self, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        """Returns the choices of the chunks that show what `add` returned."""
        changes = self._changes(pieces)
        if not changes and self._last.reason is None:
            return []
        opening: list[dict[str, Any]] = []
        if not self.begun:
            self.begun = True
            opening = [_plain_choice(self._index, {"role": "assistant", "content": ""})]
        *others, last = changes or [{}]
        return [*opening, *(_plain_choice(self._index, change) for change in others), self._choice({"delta": last})]

    def text_example(self) -> Mapping[str, object]:
        """Returns the choice of a chunk with `TextChunk.MARK` as text."""
        return _plain_choice(self._index, {"content": TextChunk.MARK})

    def _changes(self, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        numbers = count(len(self._calls) - sum(isinstance(piece, ToolCall) for piece in pieces))
        return [
            {"content": piece} if isinstance(piece, str) else {"tool_calls": [{"index": next(numbers), **_call(piece)}]}
            for piece in pieces
        ]

    def _choice(self, shown: dict[str, Any]) -> dict[str, Any]:
        """Returns a choice with everything that was not shown yet."""
        choice: dict[str, Any] = {"index": self._index, **shown, "logprobs": None, "finish_reason": self._reason()}
        if self._body.logprobs:
            choice["logprobs"] = chat_logprobs(self._serving.codec, self._deltas, self._body.top_logprobs or 0)
        if self._last.reason is not None:
            choice["stop_reason"] = stop_reason(self._last, self._serving.eos)
        if self._body.return_token_ids:
            choice["token_ids"] = [token for delta in self._deltas for token in delta.tokens]
        self._deltas = []
        return choice

    def _reason(self) -> str | None:
        reason = self._last.reason
        return "tool_calls" if reason == "stop" and self._calls and not self._tools.named else reason


def _plain_choice(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
