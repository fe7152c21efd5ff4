"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import accumulate
from typing import Any

from paiton_artifacts.record import dataclass
from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.http import DONE, EventStream, HttpRequest, Response
from paiton_runtime.server.openai.generation import Generation, Job
from paiton_runtime.server.openai.logprobs import completion_logprobs, echoed_logprobs, prompt_logprobs
from paiton_runtime.server.openai.output import Delta, TextOptions
from paiton_runtime.server.openai.prompts import completion_prompts
from paiton_runtime.server.openai.requests import CompletionRequest
from paiton_runtime.server.openai.responses import Envelope, TextChunk, stop_reason
from paiton_runtime.server.openai.sampling import check_prompt_logprobs, sampling_params, wanted_grammar
from paiton_runtime.server.openai.serving import Interface, Serving
from paiton_runtime.server.openai.validate import read_body

DEFAULT_MAX_TOKENS = 16
"""As OpenAI's and vLLM's."""


async def create_completion(interface: Interface, request: HttpRequest) -> Response | EventStream:
    """Continues prompts."""
    serving = interface.serving()
    body = read_body(CompletionRequest, await request.json())
    serving.check_model(body.model)
    _check(body)
    prompts = await completion_prompts(serving, body)
    room = min(serving.room(prompt, body.max_tokens, "prompt") for prompt in prompts)
    # All prompts have the same limit: of a request that names none, the shortest room counts.
    limit = min(DEFAULT_MAX_TOKENS, room) if body.max_tokens is None else max(1, body.max_tokens)
    rated = [count for count in (body.prompt_logprobs, body.logprobs if body.echo else None) if count is not None]
    grammar = wanted_grammar(body)
    job = Job(
        prompts=prompts,
        params=sampling_params(
            serving, body, max_tokens=limit, logprobs=body.logprobs, prompt_logprobs=max(rated, default=None)
        ),
        text=TextOptions(
            body.stops,
            body.include_stop_str_in_output,
            body.skip_special_tokens,
            body.min_tokens,
            prompt_only=body.max_tokens == 0,
        ),
        continues=True,
        constraint=None if grammar is None else await serving.grammars.compile(grammar),
        priority=body.priority,
    )
    answer = _Answer(serving, request, body, job)
    return EventStream(answer.events()) if body.stream else Response.json(await answer.whole())


def _check(body: CompletionRequest) -> None:
    if body.best_of not in {None, body.n}:
        raise ApiError(400, "best_of must equal n", param="best_of", code="unsupported_parameter")
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        text = "max_tokens 0 leaves nothing to show: add echo or prompt_logprobs"
        raise ApiError(400, text, param="max_tokens", code="invalid_value")
    check_prompt_logprobs(body)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream", param="stream_options", code="invalid_value")


@dataclass
class _Answer:
    """The answer to one request."""

    serving: Serving
    request: HttpRequest
    body: CompletionRequest
    job: Job

    def __post_init__(self) -> None:
        self.generation = Generation(self.serving, self.request, self.job)
        self.envelope = Envelope(self.serving, f"cmpl-{self.request.request_id}", "text_completion")

    async def whole(self) -> dict[str, Any]:
        """Returns the body."""
        answers: list[list[Delta]] = [[] for _ in self.generation.outputs]
        async with aclosing(self.generation.deltas()) as deltas:
            async for index, delta in deltas:
                answers[index].append(delta)
        choices = [
            self._choice(i, self._echo(i) + "".join(delta.text for delta in answer), answer, begins=True)
            for i, answer in enumerate(answers)
        ]
        return self.envelope.whole(choices, self.generation.usage())

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Gives the events."""
        options = self.body.stream_options
        continuous = options is not None and options.continuous_usage_stats
        plain = self.body.logprobs is None and not self.body.return_token_ids and not continuous
        waiting: list[list[Delta]] = [[] for _ in self.generation.outputs]
        writers: list[TextChunk | None] = [None] * len(waiting)
        async with aclosing(self.generation.deltas()) as deltas:
            async for index, delta in deltas:
                writer = writers[index]
                if writer is not None and plain and delta.reason is None:
                    if delta.text:
                        yield writer.write(delta.text)
                    continue
                waiting[index].append(delta)
                if not delta.text and delta.reason is None:
                    continue
                shown = "".join(part.text for part in waiting[index])
                if writer is None:
                    writers[index] = self.envelope.text_chunk(self._choice(index, TextChunk.MARK, (), begins=False))
                    shown = self._echo(index) + shown
                usage = self.generation.usage_of(index) if continuous else None
                choice = self._choice(index, shown, waiting[index], begins=writer is None)
                yield self.envelope.chunk(choice, usage)
                waiting[index].clear()
        if options is not None and options.include_usage:
            yield self.envelope.usage(self.generation.usage())
        yield DONE

    def _echo(self, index: int) -> str:
        if not self.body.echo:
            return ""
        given = self._given(index)
        return given if isinstance(given, str) else self.serving.codec.decode(given)

    def _given(self, index: int) -> str | list[int]:
        """Returns the prompt of an answer as it came."""
        prompt: Any = self.body.prompt
        given: str | list[int] = prompt[index // self.body.n] if isinstance(prompt, tuple) else prompt
        return given

    def _choice(self, index: int, text: str, deltas: Sequence[Delta], *, begins: bool) -> dict[str, Any]:
        """Returns what the deltas add to an answer; what it begins with, too, where it begins here."""
        last = deltas[-1] if deltas else Delta("", ())
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": last.reason}
        if self.body.logprobs is not None:
            choice["logprobs"] = self._logprobs(index, deltas, begins=begins)
        if last.reason is not None:
            choice["stop_reason"] = stop_reason(last, self.serving.eos)
        if self.body.return_token_ids:
            choice["token_ids"] = [token for delta in deltas for token in delta.tokens]
            if not self.body.stream:
                choice["prompt_token_ids"] = list(self.job.prompts[index // self.body.n])
        if self.body.prompt_logprobs is not None:
            prompt, rated = self.job.prompts[index // self.body.n], self.generation.outputs[index].prompt_logprobs
            choice["prompt_logprobs"] = prompt_logprobs(self.serving.codec, prompt, rated, self.body.prompt_logprobs)
        return choice

    def _logprobs(self, index: int, deltas: Sequence[Delta], *, begins: bool) -> dict[str, Any]:
        """Returns the log-probabilities of the deltas; behind the prompt's, where it is shown."""
        codec, top = self.serving.codec, self.body.logprobs or 0
        shown = completion_logprobs(codec, deltas, top, len(self._echo(index)))
        if not (self.body.echo and begins):
            return shown
        prompt, rated = self.job.prompts[index // self.body.n], self.generation.outputs[index].prompt_logprobs
        echoed = echoed_logprobs(codec, prompt, rated, top, self._echoed_offsets(index, prompt))
        return {name: echoed[name] + values for name, values in shown.items()}

    def _echoed_offsets(self, index: int, prompt: Sequence[int]) -> list[int]:
        """Returns where each token of a prompt begins in what `_echo` returns, in characters."""
        given = self._given(index)
        stream = self.serving.codec.stream(skip_special_tokens=not isinstance(given, str))
        added = len(self.serving.codec.prefix) if isinstance(given, str) and self.body.add_special_tokens else 0
        lengths = [len("" if i < added else stream.push(token)) for i, token in enumerate(prompt)]
        return [0, *accumulate(lengths[:-1])]
