"""The thread that runs steps on the device, one after the other without a pause while there are prepared ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import Condition, Event, Thread

from paiton_artifacts.record import dataclass, field
from paiton_runtime.batch import StepInput
from paiton_runtime.engine.params import TokenLogprobs
from paiton_runtime.engine.request import Request
from paiton_runtime.engine.scheduler import Proposal
from paiton_runtime.model import Model, StepResult


@dataclass(eq=False, slots=True)
class Step:
    """A prepared step, and what became of it.

    Attributes:
        proposal: what it computes.
        packed: the same for the model.
        rows: the request of each logits row that is sampled.
        rated: of the other rows, the request and position: they rate the token that follows in its prompt.
        histories: (slot, prompt, output) of requests whose penalties the device must be told about first.
        masks: of masked rows; the engine sets `masks_ready` when they are there.
        lives: preemptions of each request of the proposal when the step was taken.
        started: and `ended`: seconds of `time.monotonic()`; 0 before.
        sampled: token of each row; the target of a rated one.
        reports: log-probabilities of the rows that asked for them.
        error: what went wrong.
    """

    proposal: Proposal
    packed: StepInput
    rows: Mapping[int, Request]
    rated: Mapping[int, tuple[Request, int]]
    histories: Sequence[tuple[int, Sequence[int], Sequence[int]]]
    masks: Mapping[int, bytes] | None = None
    masks_ready: Event = field(default_factory=Event)
    lives: list[int] = field(default_factory=list)
    started: float = 0.0
    ended: float = 0.0
    sampled: list[int] = field(default_factory=list)
    reports: dict[int, TokenLogprobs] = field(default_factory=dict)
    error: Exception | None = None


class Runner:
    """Runs the steps that it is offered, each as soon as the one before is done.

    Args:
        model: the booted model; nobody else runs steps on it.
        on_done: called with each step that ended, from the runner's thread.
    """

    def __init__(self, model: Model, on_done: Callable[[Step], None]) -> None:
        self._model = model
        self._on_done = on_done
        self._changed = Condition()
        self._offered: deque[Step] = deque()
        self._stopping = False
        # A daemon: a device that never comes back must not keep the process alive.
        self._thread = Thread(target=self._serve, name="paiton-runner", daemon=True)
        self._thread.start()

    def offer(self, step: Step) -> None:
        """Gives the runner a step to run behind all others."""
        with self._changed:
            self._offered.append(step)
            self._changed.notify()

    def withdraw(self, step: Step) -> bool:
        """Takes back a step that was offered; False if it has begun."""
        with self._changed:
            if step not in self._offered:
                return False
            self._offered.remove(step)
            return True

    def stop(self, timeout: float) -> bool:
        """Ends the thread after the step that runs; returns whether it ended within `timeout` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while (step := self._take()) is not None:
            try:
                self._run(step)
            except Exception as error:  # noqa: BLE001  (the engine decides what it means)
                step.error = error
            step.ended = time.monotonic()
            self._on_done(step)

    def _take(self) -> Step | None:
        with self._changed:
            while not self._offered and not self._stopping:
                self._changed.wait()
            return None if self._stopping else self._offered.popleft()

    def _run(self, step: Step) -> None:
        step.started = time.monotonic()
        for slot, prompt, output in step.histories:
            self._model.load_history(slot, prompt, output)
        result = self._run_masked(step) if step.packed.masked_rows else self._model.run(step.packed)
        step.sampled = result.sampled
        wanted = {row: request.params.logprobs for row, request in step.rows.items()}
        wanted |= {row: request.params.prompt_logprobs for row, (request, _) in step.rated.items()}
        for row, count in wanted.items():
            if count is not None:
                report = result.report(row, count)
                step.reports[row] = TokenLogprobs(report.logprob, report.rank, report.top)

    def _run_masked(self, step: Step) -> StepResult:
        """Masks are computed while the forward plan runs."""
        self._model.forward(step.packed)
        step.masks_ready.wait()
        return self._model.sample(step.packed, step.masks)
