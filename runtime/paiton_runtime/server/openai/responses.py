"""The bodies of answers, whole and in chunks, shared by completions and chats."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from typing import Any

from paiton_runtime.server.http import event
from paiton_runtime.server.openai.output import Delta
from paiton_runtime.server.openai.serving import Serving

_MARK = "\0text\0"
_ESCAPE = json.JSONEncoder().encode
"""JSON of a text in ASCII: some clients take the line separators beyond ASCII for the ends of an event's lines."""


class Envelope:
    """What all chunks of an answer, or the whole of it, have around the choices.

    Args:
        serving: the model.
        answer_id: what clients refer to it by.
        kind: its "object".
    """

    def __init__(self, serving: Serving, answer_id: str, kind: str) -> None:
        self._fields: dict[str, Any] = {
            "id": answer_id,
            "object": kind,
            "created": int(time.time()),
            "model": serving.names[0],
            "system_fingerprint": serving.fingerprint,
        }

    def whole(self, choices: list[dict[str, Any]], usage: Mapping[str, object]) -> dict[str, Any]:
        """Returns the body of an answer that is not streamed."""
        return {**self._fields, "choices": choices, "usage": usage}

    def chunk(self, choice: Mapping[str, object], usage: Mapping[str, object] | None = None) -> bytes:
        """Returns an event with a part of one choice."""
        return event({**self._fields, "choices": [choice], **({} if usage is None else {"usage": usage})})

    def usage(self, usage: Mapping[str, object]) -> bytes:
        """Returns the event with the usage, which has no choices."""
        return event({**self._fields, "choices": [], "usage": usage})

    def text_chunk(self, choice: Mapping[str, object]) -> TextChunk:
        """Returns a writer of events that differ by their text only, which stands for `TextChunk.MARK` in `choice`."""
        return TextChunk(self.chunk(choice))


class TextChunk:
    """Writes an event in less than a microsecond: everything around the text is there already."""

    MARK = _MARK

    def __init__(self, example: bytes) -> None:
        head, _, tail = example.partition(_ESCAPE(_MARK).encode())
        self._head = head.decode()
        self._tail = tail.decode()

    def write(self, text: str) -> bytes:
        """Returns the event with this text."""
        return f"{self._head}{_ESCAPE(text)}{self._tail}".encode()


def stop_reason(delta: Delta, eos: Collection[int]) -> str | int | None:
    """Returns vLLM's field of this name: the stop text or stop token; None for an end of sequence."""
    return None if isinstance(delta.ended_by, int) and delta.ended_by in eos else delta.ended_by
