"""From a request's prompt or conversation to token ids."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from paiton_artifacts.errors import UsageError
from paiton_runtime.chat_template import ChatOptions
from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.openai.requests import (
    CalledTool,
    CompletionRequest,
    ContentPart,
    Message,
    TemplateRequest,
)
from paiton_runtime.server.openai.serving import Serving
from paiton_runtime.text import TextCodec

_LONG = 1000
"""Characters from which on encoding takes longer (0.25 ms) than handing it to a thread."""

_TEXT_PARTS = {"text", "input_text", "output_text"}


async def encode(codec: TextCodec, text: str, *, add_special_tokens: bool) -> list[int]:
    """Returns the ids of a text, without stopping the event loop for a long one."""
    if len(text) < _LONG:
        return codec.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(codec.encode, text, add_special_tokens=add_special_tokens)


async def completion_prompts(serving: Serving, body: CompletionRequest) -> list[list[int]]:
    """Returns the prompts of a completion.

    Raises:
        ApiError: 400: a token does not exist, or a text has none.
    """
    prompt: Any = body.prompt
    given: Sequence[str | list[int]] = prompt if isinstance(prompt, tuple) else (prompt,)
    prompts = []
    for item in given:
        if isinstance(item, str):
            ids = await encode(serving.codec, item, add_special_tokens=body.add_special_tokens)
            if not ids:
                raise ApiError(400, "the prompt has no tokens", param="prompt", code="invalid_value")
        else:
            check_tokens(serving, item, "prompt")
            ids = item
        prompts.append(ids)
    return prompts


def check_tokens(serving: Serving, ids: Sequence[int], param: str) -> None:
    """Raises ApiError 400 unless all tokens exist."""
    if ids and max(ids) >= serving.vocab_size:
        text = f"{param} has the token {max(ids)}; the model's go from 0 to {serving.vocab_size - 1}"
        raise ApiError(400, text, param=param, code="invalid_value")


def render_chat(serving: Serving, messages: Sequence[Message], body: TemplateRequest, *, with_tools: bool) -> str:
    """Returns a conversation as text.

    Raises:
        ApiError: 400: the template refuses it, or there is none.
    """
    begin = not body.continue_final_message if body.add_generation_prompt is None else body.add_generation_prompt
    options = ChatOptions(
        tools=body.tools if with_tools and body.tools else None,
        documents=body.documents,
        add_generation_prompt=begin,
        continue_final_message=body.continue_final_message,
        extra=body.chat_template_kwargs,
    )
    shown = [_template_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    try:
        # Here and not in a thread: it calls back into Python, with a lock of its own held.
        return serving.codec.render(shown, options)
    except UsageError as error:
        raise ApiError(400, error.message, param="messages", code="invalid_value") from error


def _template_message(message: Message, where: str) -> dict[str, Any]:
    """Returns a message as templates expect it: with text as content, and with objects as arguments of calls."""
    # Templates know the role by its older name.
    shown: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    shown["content"] = _content(message.content, f"{where}.content")
    if message.tool_calls:
        shown["tool_calls"] = [
            _template_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
        ]
    for name in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, name) is not None:
            shown[name] = getattr(message, name)
    return shown


def _content(content: str | Sequence[ContentPart] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for i, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in _TEXT_PARTS | {"refusal"}:
            message = f"{where}[{i}] is of type {part.type[:100]!r}; this model reads text only"
            raise ApiError(400, message, param=f"{where}[{i}].type", code="unsupported_content")
        if text is None:
            raise ApiError(400, f"{where}[{i}] has no text", param=f"{where}[{i}]", code="missing_required_parameter")
        texts.append(text)
    return "\n".join(texts)


def _template_call(call: CalledTool, where: str) -> dict[str, Any]:
    arguments: object = call.function.arguments or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            where = f"{where}.function.arguments"
            raise ApiError(400, f"{where} is not a JSON object", param=where, code="invalid_value")
    shown: dict[str, Any] = {"type": call.type, "function": {"name": call.function.name, "arguments": arguments}}
    return shown if call.id is None else {"id": call.id, **shown}
