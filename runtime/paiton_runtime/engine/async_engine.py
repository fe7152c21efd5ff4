"""The engine for an event loop: each request is a stream of updates, and a step wakes the loop once."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Sequence
from typing import Self

from paiton_runtime.engine.engine import Engine, Outbox
from paiton_runtime.engine.observer import EngineObserver
from paiton_runtime.engine.options import EngineOptions
from paiton_runtime.engine.params import Constraint, SamplingParams, Update
from paiton_runtime.engine.request import Request
from paiton_runtime.model import Model

_SWITCH_SECONDS = 0.0005
"""How long a thread may keep the others from running Python: the runner waits so long, at worst, before it starts the
next step (the interpreter's own default is ten times that)."""


class Stream:
    """The updates of one request: an asynchronous iterator that ends with the update that has a finish reason.

    Attributes:
        request_id: as submitted.
        prompt_tokens: length of the prompt.
    """

    def __init__(self, engine: Engine, request_id: str, prompt_tokens: int) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.request: Request
        self._engine = engine
        self._updates: deque[Update] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    def push(self, update: Update) -> None:
        """Takes an update; on the loop's thread."""
        self._updates.append(update)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Update:
        """Returns the next update."""
        if self._ended:
            raise StopAsyncIteration
        while not self._updates:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        update = self._updates.popleft()
        self._ended = update.finish_reason is not None
        return update

    def cancel(self) -> None:
        """Ends the request unless it has ended; the last update then has the finish reason "abort"."""
        if not self._ended:
            self._engine.cancel(self.request)


class AsyncEngine:
    """An engine of the running event loop.

    Args:
        model: closed by the caller, after `engine.stop`.
        options: see `EngineOptions`.
        observer: told of steps and requests, from the engine's thread.
        loop: that streams belong to.

    Attributes:
        engine: does the work.
        model: the same.
        failure: done, with the error as its result, when the engine has died.
    """

    def __init__(
        self,
        model: Model,
        options: EngineOptions | None = None,
        observer: EngineObserver | None = None,
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.model = model
        self._loop = loop
        self.failure: asyncio.Future[Exception] = loop.create_future()
        sys.setswitchinterval(_SWITCH_SECONDS)
        self.engine = Engine(model, options, observer, dispatch=self._dispatch, on_failure=self._fail)

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        constraint: Constraint | None = None,
        leader: Stream | None = None,
    ) -> Stream:
        """Takes a request; see `Engine.submit` for arguments and errors."""
        stream = Stream(self.engine, request_id, len(prompt))
        stream.request = self.engine.submit(
            prompt,
            params,
            stream.push,
            request_id=request_id,
            priority=priority,
            constraint=constraint,
            leader=None if leader is None else leader.request,
        )
        return stream

    def _dispatch(self, outbox: Outbox) -> None:
        self._loop.call_soon_threadsafe(_push_all, outbox)

    def _fail(self, error: Exception) -> None:
        def tell() -> None:
            if not self.failure.done():
                self.failure.set_result(error)

        self._loop.call_soon_threadsafe(tell)


def _push_all(outbox: Outbox) -> None:
    for push, update in outbox:
        push(update)
