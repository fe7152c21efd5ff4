"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.http import DONE, EventStream, HttpRequest, Response
from paiton_runtime.server.openai.chat_choice import ChatChoice
from paiton_runtime.server.openai.generation import Generation, Job
from paiton_runtime.server.openai.logprobs import prompt_logprobs
from paiton_runtime.server.openai.output import TextOptions
from paiton_runtime.server.openai.prompts import encode, render_chat
from paiton_runtime.server.openai.requests import ChatRequest
from paiton_runtime.server.openai.responses import Envelope
from paiton_runtime.server.openai.sampling import check_prompt_logprobs, sampling_params, wanted_grammar
from paiton_runtime.server.openai.serving import Interface, Serving
from paiton_runtime.server.openai.tools.calls import only_text
from paiton_runtime.server.openai.tools.choice import ToolUse, tool_use
from paiton_runtime.server.openai.validate import read_body


async def create_chat_completion(interface: Interface, request: HttpRequest) -> Response | EventStream:
    """Continues a conversation."""
    serving = interface.serving()
    body = read_body(ChatRequest, await request.json())
    serving.check_model(body.model)
    _check(body)
    tools = tool_use(serving.tools, body)
    text = render_chat(serving, body.messages, body, with_tools=bool(tools.functions))
    prompt = await encode(serving.codec, text, add_special_tokens=False)
    if not prompt:
        raise ApiError(400, "the chat template makes no tokens of the messages", param="messages", code="invalid_value")
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    serving.room(prompt, limit, "messages")
    grammar = tools.grammar or wanted_grammar(body)
    skip_special = body.skip_special_tokens and not (tools.functions and serving.tools.shows_special_tokens)
    job = Job(
        prompts=[prompt],
        params=sampling_params(
            serving,
            body,
            max_tokens=limit,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            prompt_logprobs=body.prompt_logprobs,
        ),
        text=TextOptions(body.stops, body.include_stop_str_in_output, skip_special, body.min_tokens),
        constraint=None if grammar is None else await serving.grammars.compile(grammar),
        priority=body.priority,
    )
    if body.stream:
        return EventStream(_events(serving, request, body, job, tools))
    return Response.json(await _whole(serving, request, body, job, tools))


def _check(body: ChatRequest) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs", code="invalid_value")
    check_prompt_logprobs(body)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream", param="stream_options", code="invalid_value")


async def _whole(serving: Serving, request: HttpRequest, body: ChatRequest, job: Job, tools: ToolUse) -> dict[str, Any]:
    generation = Generation(serving, request, job)
    choices = [ChatChoice(serving, body, tools, index) for index in range(body.n)]
    async with aclosing(generation.deltas()) as deltas:
        async for index, delta in deltas:
            choices[index].add(delta)
    envelope = Envelope(serving, f"chatcmpl-{request.request_id}", "chat.completion")
    whole = envelope.whole([choice.whole() for choice in choices], generation.usage())
    if body.return_token_ids:
        whole["prompt_token_ids"] = list(job.prompts[0])
    if body.prompt_logprobs is not None:
        rated = generation.outputs[0].prompt_logprobs
        whole["prompt_logprobs"] = prompt_logprobs(serving.codec, job.prompts[0], rated, body.prompt_logprobs)
    return whole


async def _events(
    serving: Serving, request: HttpRequest, body: ChatRequest, job: Job, tools: ToolUse
) -> AsyncGenerator[bytes, None]:
    options = body.stream_options
    continuous = options is not None and options.continuous_usage_stats
    generation = Generation(serving, request, job)
    envelope = Envelope(serving, f"chatcmpl-{request.request_id}", "chat.completion.chunk")
    choices = [ChatChoice(serving, body, tools, index) for index in range(body.n)]
    writers = [
        envelope.text_chunk(choice.text_example()) if choice.bare and not continuous else None for choice in choices
    ]
    async with aclosing(generation.deltas()) as deltas:
        async for index, delta in deltas:
            choice, writer = choices[index], writers[index]
            pieces = choice.add(delta)
            text = only_text(pieces) if writer is not None and choice.begun and delta.reason is None else None
            if writer is not None and text is not None:
                if text:
                    yield writer.write(text)
                continue
            usage = generation.usage_of(index) if continuous else None
            if events := [envelope.chunk(chunk, usage) for chunk in choice.chunks(pieces)]:
                yield b"".join(events)
    if options is not None and options.include_usage:
        yield envelope.usage(generation.usage())
    yield DONE
