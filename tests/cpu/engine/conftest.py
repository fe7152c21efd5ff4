"""A booted tiny model, and a way to run requests through an engine and wait for them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import pytest

from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.engine.engine import Engine
from paiton_runtime.engine.params import SamplingParams, TokenLogprobs, Update
from paiton_runtime.engine.request import Request
from paiton_runtime.generate import GenerateOptions, Generator
from paiton_runtime.model import Model

WAIT = 60.0
"""Seconds after which a request counts as stuck."""

KV_TOKENS = 2048

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    """The tiny model; engines of one module use it one after the other."""
    with boot(tiny_bundle, BootOptions(kv_tokens=KV_TOKENS, target="cpu")) as booted:
        yield booted


@dataclass
class Answer:
    """What a request gave."""

    request: Request | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    ended: Event = field(default_factory=Event)
    started: Event = field(default_factory=Event)

    def take(self, update: Update) -> None:
        """Takes an update; none may follow the last one."""
        assert not self.ended.is_set()
        self.updates.append(update)
        self.tokens += update.tokens
        self.logprobs += update.logprobs
        if update.tokens:
            self.started.set()
        if update.finish_reason is not None:
            self.ended.set()

    def wait(self) -> Update:
        """Waits for the end and returns the last update."""
        assert self.ended.wait(WAIT), "the request is stuck"
        return self.updates[-1]


def ask(engine: Engine, prompt: Sequence[int], params: SamplingParams | None = None, **more: object) -> Answer:
    """Submits a request, greedy unless told otherwise."""
    answer = Answer()
    params = SamplingParams(temperature=0, max_tokens=8) if params is None else params
    answer.request = engine.submit(prompt, params, answer.take, request_id="test", **more)  # type: ignore[arg-type]
    return answer


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    """An engine that must have given everything back when the test ends."""
    made = Engine(model)
    yield made
    assert made.drain(WAIT)
    made.stop()
    assert made.failed is None
    assert made.blocks.free == made.blocks.blocks


def prompts(count: int, seed: int = 0, longest: int = 90) -> list[list[int]]:
    """Returns random prompts of 1 to `longest` tokens."""
    rng = random.Random(seed)
    return [[rng.randrange(3, 200) for _ in range(rng.randrange(1, longest))] for _ in range(count)]


def alone(model: Model, prompt: Sequence[int], tokens: int) -> list[int]:
    """Returns what the model generates for a prompt without an engine."""
    options = GenerateOptions(max_tokens=tokens, ignore_eos=True)
    return Generator(model).generate(prompt, options).token_ids
