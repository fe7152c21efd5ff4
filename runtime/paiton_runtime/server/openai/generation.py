"""Runs the answers to one HTTP request: all its prompts, each as often as asked for, as one stream of deltas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing

from paiton_artifacts.record import dataclass
from paiton_runtime.engine.async_engine import Stream
from paiton_runtime.engine.params import Constraint, SamplingParams, Update
from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.http import HttpRequest
from paiton_runtime.server.openai.output import Delta, Output, TextOptions
from paiton_runtime.server.openai.serving import Serving


@dataclass(frozen=True, slots=True)
class Job:
    """What one HTTP request wants generated.

    Attributes:
        prompts: token ids of each.
        params: one for each answer to a prompt.
        text: how text is made of tokens.
        continues: the text of an answer continues its prompt's.
        constraint: makes what restricts an answer; None: nothing does.
        priority: lower ones are served first.
    """

    prompts: Sequence[Sequence[int]]
    params: Sequence[SamplingParams]
    text: TextOptions
    continues: bool = False
    constraint: Callable[[], Constraint] | None = None
    priority: int = 0


class Generation:
    """A job on its way. Answer i of prompt p has the index p x answers + i.

    Attributes:
        outputs: by index.
    """

    def __init__(self, serving: Serving, request: HttpRequest, job: Job) -> None:
        self._serving = serving
        self._request = request
        self._job = job
        self.outputs = [
            Output(serving.codec, job.text, prompt if job.continues else ())
            for prompt in job.prompts
            for _ in job.params
        ]

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """Submits the job, and gives the index of an answer and what was added to it, until all have ended.

        Requests that still run are cancelled when it is left.

        Raises:
            ApiError: 503: the server aborted an answer.
            PaitonError: the engine refused the job, or an answer failed.
        """
        streams: list[Stream] = []
        try:
            self._submit(streams)
            left = len(streams)
            async with aclosing(_merge(streams)) as updates:
                async for index, update in updates:
                    output = self.outputs[index]
                    if output.finished:
                        continue
                    delta = output.push(update if update.finish_reason is None else _healthy(update))
                    if delta.reason is not None:
                        left -= 1
                        streams[index].cancel()  # a stop string, of which the engine knows nothing
                    yield index, delta
                    if not left:
                        return
        finally:
            for stream in streams:
                stream.cancel()

    def _submit(self, streams: list[Stream]) -> None:
        """Submits all answers; the further ones to a prompt wait until the first has computed it."""
        job, request_id = self._job, self._request.request_id
        if self._serving.telemetry is not None:
            headers, name = self._request.headers, self._serving.names[0]
            self._serving.telemetry.describe(request_id, headers, name, job.params[0], len(self.outputs))
        for prompt in job.prompts:
            leader: Stream | None = None
            for params in job.params:
                stream = self._serving.engine.submit(
                    prompt,
                    params,
                    request_id=f"{request_id}-{len(streams)}" if streams else request_id,
                    priority=job.priority,
                    constraint=None if job.constraint is None else job.constraint(),
                    leader=leader,
                )
                leader = leader or stream
                streams.append(stream)

    def usage(self) -> dict[str, object]:
        """Returns the tokens so far, as OpenAI counts them: a prompt once, whatever the number of answers to it."""
        prompts = sum(map(len, self._job.prompts))
        completions = sum(output.tokens for output in self.outputs)
        cached = sum(output.cached_tokens for output in self.outputs[:: len(self._job.params)])
        return {
            "prompt_tokens": prompts,
            "completion_tokens": completions,
            "total_tokens": prompts + completions,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def usage_of(self, index: int) -> dict[str, object]:
        """Returns the tokens of one answer so far."""
        prompt, output = len(self._job.prompts[index // len(self._job.params)]), self.outputs[index]
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output.tokens,
            "total_tokens": prompt + output.tokens,
            "prompt_tokens_details": {"cached_tokens": output.cached_tokens},
        }


def _healthy(update: Update) -> Update:
    """Returns the update unless it says that the request has failed."""
    if update.finish_reason == "abort":
        raise ApiError(503, "the server aborted the request", code="aborted", headers=(("retry-after", "1"),))
    if update.finish_reason == "error":
        raise update.error or RuntimeError("the engine ended a request without saying why")
    return update


async def _merge(streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, Update], None]:
    """Gives the updates of all streams as they come."""
    if len(streams) == 1:
        async for update in streams[0]:
            yield 0, update
        return
    updates: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()

    async def pump(index: int, stream: AsyncIterator[Update]) -> None:
        async for update in stream:
            updates.put_nowait((index, update))

    pumps = [asyncio.ensure_future(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        while True:
            yield await updates.get()
    finally:
        for task in pumps:
            task.cancel()
