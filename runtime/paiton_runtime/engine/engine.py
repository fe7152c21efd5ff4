"""The engine: requests in, tokens out.

Two threads. The runner's runs steps; the engine's prepares the next step while one runs, and looks at what the last one
gave while the next one runs. A step is prepared before the tokens of the one before are known: the device knows them.
Whether a request ended with such a token shows one step late; what that step computed for it is thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from queue import Empty, SimpleQueue
from threading import Condition, Thread

from paiton_artifacts.errors import (
    EngineStoppedError,
    PaitonError,
    PromptTooLongError,
    QueueFullError,
    StepTimeoutError,
    UsageError,
)
from paiton_runtime.engine.blocks import BlockManager
from paiton_runtime.engine.observer import EngineObserver
from paiton_runtime.engine.options import EngineOptions, context_of, limits_of
from paiton_runtime.engine.params import MAX_BIASES, Constraint, SamplingParams, Update
from paiton_runtime.engine.record import Recorder
from paiton_runtime.engine.request import Request, Status, make_sampling, random_seed
from paiton_runtime.engine.runner import Runner, Step
from paiton_runtime.engine.scheduler import Scheduler
from paiton_runtime.engine.step_rows import needs_history, rows_of
from paiton_runtime.model import Model

Outbox = list[tuple[Callable[[Update], None], Update]]

_SECONDS_TO_STOP = 5.0


def _discard(_: Update) -> None:
    """Takes updates of a request that has ended: there are none."""


def _deliver_each(outbox: Outbox) -> None:
    for deliver, update in outbox:
        deliver(update)


class Engine:
    """Serves requests with a booted model, which it must have for itself.

    Args:
        model: closed by the caller, after `stop`.
        options: see `EngineOptions`.
        observer: told of steps and requests.
        dispatch: hands out the updates of one step; by default calls each request's `deliver` on the engine's thread.
        on_failure: called from the engine's thread when the engine dies, after its requests were told.

    Raises:
        UsageError: an option exceeds what the bundle's plans hold.
    """

    def __init__(
        self,
        model: Model,
        options: EngineOptions | None = None,
        observer: EngineObserver | None = None,
        dispatch: Callable[[Outbox], None] = _deliver_each,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self.model = model
        self.options = EngineOptions() if options is None else options
        self.context = context_of(model, self.options)
        self.failed: Exception | None = None
        self._dispatch = dispatch
        self._on_failure = on_failure
        memory = model.memory
        caching = self.options.enable_prefix_caching
        self.blocks = BlockManager(model.kv_blocks, memory.kv_block_tokens, caching=caching)
        self._scheduler = Scheduler(self.blocks, limits_of(model, self.options))
        self._recorder = Recorder(observer, self._scheduler)
        self._orders = count()
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._state = Condition()  # guards the three that follow
        self._open = 0  # requests that have not ended
        self._draining = False
        self._stopped = False
        self._offered: Step | None = None  # may have been taken by the runner without our knowing
        self._flight: list[Step] = []  # taken, result not looked at yet
        self._outbox: Outbox = []
        self._runner = Runner(model, lambda step: self._commands.put(lambda: self._finish_step(step)))
        self._thread = Thread(target=self._serve, name="paiton-engine", daemon=True)
        self._thread.start()

    # Any thread

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        deliver: Callable[[Update], None],
        *,
        request_id: str,
        priority: int = 0,
        constraint: Constraint | None = None,
        leader: Request | None = None,
    ) -> Request:
        """Takes a request.

        Args:
            prompt: token ids, at least one.
            params: how to draw, and when to end.
            deliver: called with each update, on whatever thread `dispatch` uses; it must return at once.
            request_id: for logs.
            priority: lower ones are served first.
            constraint: restricts what may be sampled.
            leader: another request with the same prompt: this one waits until its prompt is in the prefix cache.

        Raises:
            UsageError: an empty prompt, tokens that do not exist, or parameters without a meaning.
            PromptTooLongError: the prompt, or prompt and `max_tokens`, exceed the context.
            QueueFullError: too many requests wait.
            EngineStoppedError: the engine drains, has stopped, or has failed.
        """
        request = self._make(prompt, params, deliver, (request_id, priority), constraint, leader)
        with self._state:
            if self._draining or self._stopped or self.failed is not None:
                raise EngineStoppedError("the engine takes no requests any more", hint="ask another server")
            if self._open - len(self._scheduler.running) >= self.options.max_waiting:
                raise QueueFullError(f"{self.options.max_waiting} requests wait already", hint="try again later")
            self._open += 1
            self._commands.put(lambda: self._scheduler.add(request))  # locked, so that none comes after the last look
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request, with the finish reason "abort", unless it has ended."""
        self._commands.put(lambda: self._end(request, "abort"))

    def drain(self, timeout: float | None = None) -> bool:
        """Refuses new requests and waits until all have ended; returns whether they did within `timeout` seconds."""
        with self._state:
            self._draining = True
            return self._state.wait_for(lambda: self._open == 0 or self.failed is not None, timeout)

    def stop(self) -> None:
        """Aborts what is left and ends the threads."""
        with self._state:
            if self._stopped:
                return
            self._stopped = True
        self._commands.put(lambda: None)
        self._thread.join()

    @property
    def open_requests(self) -> int:
        """Requests that have not ended."""
        return self._open

    @property
    def waiting_requests(self) -> int:
        """Of them, those that wait to be run, as far as the engine's thread has looked."""
        return len(self._scheduler.waiting)

    def _make(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        deliver: Callable[[Update], None],
        identity: tuple[str, int],
        constraint: Constraint | None,
        leader: Request | None,
    ) -> Request:
        facts = self.model.manifest.model
        params.check(facts.vocab_size)
        eos = frozenset(facts.eos_token_ids)
        if params.min_tokens and len(params.logit_bias) + len(params.stop_token_ids) + len(eos) > MAX_BIASES:
            raise UsageError("logit_bias, stop_token_ids and min_tokens ban too many tokens", hint="bias fewer")
        if not prompt:
            raise UsageError("the prompt is empty", hint="give at least one token")
        if not 0 <= min(prompt) <= max(prompt) < facts.vocab_size:
            raise UsageError(f"a token of the prompt is not within 0 .. {facts.vocab_size - 1}")
        room = self.context + 1 - len(prompt)  # the last token that is generated never enters the KV cache
        if room < max(1, params.max_tokens or 1):
            raise PromptTooLongError(
                f"a prompt of {len(prompt)} tokens and {params.max_tokens or 1} to generate exceed the context of "
                f"{self.context} tokens",
                hint="shorten the prompt or lower max_tokens",
            )
        seed = random_seed() if params.seed is None else params.seed
        return Request(
            request_id=identity[0],
            params=params,
            prompt_tokens=len(prompt),
            limit=room if params.max_tokens is None else params.max_tokens,
            eos=eos,
            deliver=deliver,
            priority=identity[1],
            constraint=constraint,
            leader=leader,
            order=next(self._orders),
            arrived=time.monotonic(),
            tokens=list(prompt),
            sampling=make_sampling(params, seed, params.logit_bias),
        )

    # The engine's thread

    def _serve(self) -> None:
        try:
            while not (self._stopped or self.failed):
                self._cycle()
        except Exception as error:  # noqa: BLE001  (a defect of ours: whoever watches `failed` ends the process)
            self.failed = error
        self._shut_down()

    def _cycle(self) -> None:
        """Waits for something to happen, looks at all that has happened, and prepares the next step."""
        commands = [self._next_command()]
        while not self._commands.empty():
            commands.append(self._commands.get())
        self._take_back()
        for command in commands:
            if command is not None:
                command()
        if self.failed is None:
            self._offer()
            self._answer_masks()
        self._flush()
        self._recorder.flush()

    def _next_command(self) -> Callable[[], None] | None:
        """Returns the next command; None when a step takes too long, which is then recorded as the engine's end."""
        if not self._flight:
            return self._commands.get()
        try:
            return self._commands.get(timeout=self.options.step_timeout)
        except Empty:
            seconds = self.options.step_timeout
            self.failed = StepTimeoutError(f"a step has not ended after {seconds:g} s", hint="raise --step-timeout")
            return None

    def _take_back(self) -> None:
        """Withdraws the step that the runner has not begun, so that another can be prepared from all that is known."""
        step = self._offered
        if step is not None and not self._runner.withdraw(step):
            self._settle(step)
        self._offered = None

    def _settle(self, step: Step) -> None:
        self._scheduler.settle(step.proposal)
        step.lives = [request.preemptions for request, _ in step.proposal.chunks]
        self._flight.append(step)

    def _offer(self) -> None:
        """Prepares the next step, and one to follow it: the latter may be taken back as long as it has not begun."""
        while len(self._flight) < 2 and self._offered is None and (step := self._prepare()) is not None:
            self._runner.offer(step)
            if self._flight:
                self._offered = step
            else:
                self._settle(step)  # nothing runs: the runner begins with it at once

    def _prepare(self) -> Step | None:
        """Returns the next step, or None if there is nothing to compute."""
        while (proposal := self._scheduler.propose()) is not None:
            chunks = [request.chunk(number) for request, number in proposal.chunks]
            try:
                packed = self.model.prepare(chunks)
            except PaitonError as error:
                self._fail_the_guilty(proposal.chunks, error)
                continue
            histories = [
                (request.slot, request.tokens[: request.prompt_tokens], request.tokens[request.prompt_tokens :])
                for request, _ in proposal.chunks
                if request.params.penalised and request.slot is not None and needs_history(proposal, request)
            ]
            return Step(proposal, packed, *rows_of(proposal, chunks), histories)
        return None

    def _fail_the_guilty(self, chunks: list[tuple[Request, int]], error: PaitonError) -> None:
        """Ends the requests that cannot be run, so that the others can."""
        guilty: list[tuple[Request, PaitonError]] = []
        for request, number in chunks:
            try:
                self.model.prepare([request.chunk(number)])
            except PaitonError as reason:
                guilty.append((request, reason))
        for request, cause in guilty or [(request, error) for request, _ in chunks]:
            self._end(request, "error", error=cause)

    def _answer_masks(self) -> None:
        """Computes the masks of a step once all tokens before it are known, while its forward plan runs."""
        step = self._flight[0] if self._flight else None
        if step is None or not step.packed.masked_rows or step.masks_ready.is_set():
            return
        masks: dict[int, bytes] = {}
        for row in step.packed.masked_rows:
            masks[row] = self._mask(step.rows[row])
        step.masks = masks
        step.masks_ready.set()

    def _mask(self, request: Request) -> bytes:
        everything = b"\xff" * (4 * -(-self.model.manifest.model.vocab_size // 32))
        if request.status is Status.FINISHED or request.constraint is None:
            return everything  # the row is thrown away
        try:
            return request.constraint.mask()
        except Exception as error:  # noqa: BLE001  (a constraint is foreign code; it ends its own request only)
            self._end(request, "error", error=error)
            return everything

    def _finish_step(self, step: Step) -> None:
        """Looks at what a step gave."""
        if self.failed is not None:
            return
        if step.error is not None:
            self.failed = step.error
            return
        self._flight.remove(step)
        self._recorder.step(step, self.blocks)
        for (request, number), life in zip(step.proposal.chunks, step.lives, strict=True):
            self._scheduler.advance(request, number, life)
        for row, (request, position) in step.rated.items():
            request.prompt_logprobs[position] = step.reports[row]
        for row, request in step.rows.items():
            request.pending -= 1
            if request.status is not Status.FINISHED:
                self._take_token(request, step.sampled[row], step, row)

    def _take_token(self, request: Request, token: int, step: Step, row: int) -> None:
        request.tokens.append(token)
        self._recorder.token(request, step.ended)
        report = step.reports.get(row)
        logprobs = () if report is None else (report,)
        reason, ended_by = None, None
        if request.ends_with(token):
            reason, ended_by = "stop", token
        elif request.generated == request.limit:
            reason = "length"
        elif request.constraint is not None:
            try:
                request.constraint.advance(token)
            except Exception as error:  # noqa: BLE001  (see _mask)
                self._end(request, "error", error=error)
                return
        rated = tuple(request.prompt_logprobs[i] for i in sorted(request.prompt_logprobs))
        request.prompt_logprobs = {}
        update = Update((token,), logprobs, reason, ended_by, None, request.cached_tokens or 0, rated)
        self._outbox.append((request.deliver, update))
        if reason is not None:
            self._close(request, reason)

    def _end(self, request: Request, reason: str, error: Exception | None = None) -> None:
        if request.status is not Status.FINISHED:
            self._outbox.append((request.deliver, Update((), finish_reason=reason, error=error)))
            self._close(request, reason)

    def _close(self, request: Request, reason: str) -> None:
        self._scheduler.finish(request)
        self._recorder.request(request, reason)
        # Whoever takes the updates usually holds the request: without this, only the garbage collector frees them.
        request.deliver, request.constraint, request.leader = _discard, None, None
        with self._state:
            self._open -= 1
            self._state.notify_all()

    def _flush(self) -> None:
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._dispatch(outbox)

    def _shut_down(self) -> None:
        """Ends what is left, and the runner; a runner that hangs is left behind."""
        with self._state:
            self._stopped = True
        for step in self._flight:
            step.masks_ready.set()  # without masks: the step fails, and its thread ends
        while not self._commands.empty():  # requests that were taken and never looked at
            self._commands.get()()
        error = self.failed
        reason = "abort" if error is None else "error"
        for request in [*self._scheduler.running, *self._scheduler.waiting]:
            self._end(request, reason, error=error)
        self._flush()
        self._recorder.flush()
        with self._state:
            self._state.notify_all()
        if error is not None and self._on_failure is not None:
            self._on_failure(error)
        self._runner.stop(_SECONDS_TO_STOP)
