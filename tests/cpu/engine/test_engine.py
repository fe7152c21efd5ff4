"""The engine on a real model: what it gives equals what the model gives one request at a time."""

from __future__ import annotations

import math
import random
import threading
import time
from dataclasses import replace
from threading import Event

import numpy as np
import pytest

from paiton_artifacts.errors import (
    DeviceFaultError,
    EngineStoppedError,
    PromptTooLongError,
    QueueFullError,
    StepTimeoutError,
    UsageError,
)
from paiton_runtime.batch import StepInput
from paiton_runtime.engine.engine import Engine
from paiton_runtime.engine.observer import RequestRecord, StepRecord, TokenRecord
from paiton_runtime.engine.options import EngineOptions
from paiton_runtime.engine.params import SamplingParams
from paiton_runtime.model import Chunk, Model
from tests.cpu.engine.conftest import GREEDY, WAIT, Answer, alone, ask, prompts


def test_greedy_under_load_equals_greedy_alone(model: Model, engine: Engine) -> None:
    wanted = prompts(24)
    expected = [alone(model, prompt, 12) for prompt in wanted]
    answers = [ask(engine, prompt, GREEDY) for prompt in wanted]
    assert [(answer.wait().finish_reason, answer.tokens) for answer in answers] == [("length", e) for e in expected]


def test_greedy_under_memory_pressure_equals_greedy_alone(model: Model) -> None:
    wanted = prompts(12, seed=1)
    expected = [alone(model, prompt, 40) for prompt in wanted]
    blocks = 24  # of 16 tokens: about four of the requests
    engine = Engine(model)
    engine.blocks.take(engine.blocks.blocks - blocks)
    answers = [ask(engine, prompt, replace(GREEDY, max_tokens=40)) for prompt in wanted]
    assert [answer.wait().finish_reason for answer in answers] == ["length"] * 12
    assert [answer.tokens for answer in answers] == expected
    assert sum(answer.request.preemptions for answer in answers if answer.request) > 0
    assert engine.blocks.free == blocks
    engine.stop()


def test_draws_depend_on_the_seed_alone(engine: Engine) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=16, seed=7, ignore_eos=True)
    single = ask(engine, [5, 6, 7], params)
    single.wait()
    crowd = [ask(engine, [5, 6, 7] if i == 4 else [9, i], params) for i in range(9)]
    for answer in crowd:
        answer.wait()
    other = ask(engine, [5, 6, 7], replace(params, seed=8))
    other.wait()
    assert crowd[4].tokens == single.tokens != other.tokens


def test_a_repeated_prompt_is_computed_once(model: Model, engine: Engine) -> None:
    prompt = prompts(1, seed=3, longest=500)[0] + [1] * 64
    first = ask(engine, prompt, GREEDY)
    first.wait()
    before = model.steps
    again = ask(engine, prompt, GREEDY)
    again.wait()
    assert again.tokens == first.tokens
    assert first.updates[0].cached_tokens == 0
    assert again.updates[0].cached_tokens == (len(prompt) - 1) // 16 * 16
    assert model.steps - before <= 13


def test_followers_share_their_leaders_prompt(engine: Engine) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6] * 12
    leader = ask(engine, prompt, GREEDY)
    followers = [ask(engine, prompt, GREEDY, leader=leader.request) for _ in range(3)]
    for answer in followers:
        answer.wait()
        assert answer.updates[0].cached_tokens == 80
        assert answer.tokens == leader.tokens


def test_logprobs_are_those_of_the_models_logits(model: Model, engine: Engine) -> None:
    prompt = [11, 12, 13]
    params = SamplingParams(temperature=0.7, top_k=5, max_tokens=4, logprobs=3, seed=1, ignore_eos=True)
    answer = ask(engine, prompt, params)
    answer.wait()
    assert len(answer.logprobs) == 4
    for i, report in enumerate(answer.logprobs):
        tokens = prompt + answer.tokens[:i]
        result = model.step([Chunk(tokens, 0, list(range(4)))])
        logits = np.array(result.logits(0), np.float64)
        logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        sampled = answer.tokens[i]
        best = np.argsort(-logprobs, kind="stable")[:3]
        assert report.logprob == pytest.approx(logprobs[sampled], abs=1e-4)
        assert report.rank == 1 + int((logits > logits[sampled]).sum())
        assert [token for token, _ in report.top] == best.tolist()
        assert [value for _, value in report.top] == pytest.approx(logprobs[best].tolist(), abs=1e-4)


def test_bias_bans_and_forces_tokens(engine: Engine) -> None:
    plain = ask(engine, [5, 6], GREEDY)
    plain.wait()
    banned = ask(engine, [5, 6], replace(GREEDY, logit_bias=((plain.tokens[0], -math.inf),)))
    forced = ask(engine, [5, 6], replace(GREEDY, logit_bias=((77, 100.0),)))
    for answer in (banned, forced):
        answer.wait()
    assert banned.tokens[0] != plain.tokens[0]
    assert set(forced.tokens) == {77}


def test_penalties_count_prompt_and_output(engine: Engine) -> None:
    prompt = [20, 21, 22]
    forced = replace(GREEDY, max_tokens=6, logit_bias=tuple((token, 50.0) for token in (20, 30, 31)))
    repeated = ask(engine, prompt, forced)
    spread = ask(engine, prompt, replace(forced, frequency_penalty=2.0, presence_penalty=2.0))
    new = ask(engine, prompt, replace(forced, repetition_penalty=50.0))
    for answer in (repeated, spread, new):
        answer.wait()
    assert len(set(repeated.tokens)) < 3
    assert set(spread.tokens) == {20, 30, 31}  # what was generated often gives way, the prompt does not count
    assert set(new.tokens[:2]) == {30, 31}  # what the prompt has gives way at once


def test_penalties_survive_preemption(model: Model) -> None:
    params = replace(GREEDY, max_tokens=40, frequency_penalty=1.5, repetition_penalty=1.2)
    wanted = prompts(8, seed=5)
    engine = Engine(model)
    expected = []
    for prompt in wanted:
        answer = ask(engine, prompt, params)
        answer.wait()
        expected.append(answer.tokens)
    engine.blocks.clear()
    engine.blocks.take(engine.blocks.blocks - 20)
    answers = [ask(engine, prompt, params) for prompt in wanted]
    for answer in answers:
        answer.wait()
    assert sum(answer.request.preemptions for answer in answers if answer.request) > 0
    assert [answer.tokens for answer in answers] == expected
    engine.stop()


def test_end_of_sequence_and_stop_tokens_end_a_request(model: Model, engine: Engine) -> None:
    plain = ask(engine, [5, 6], GREEDY)
    plain.wait()
    third = plain.tokens[2]
    first = plain.tokens.index(third)
    stopped = ask(engine, [5, 6], replace(GREEDY, stop_token_ids=(third,)))
    assert stopped.wait().finish_reason == "stop"
    assert stopped.updates[-1].ended_by == third
    assert stopped.tokens == plain.tokens[: first + 1]
    eos = model.manifest.model.eos_token_ids[0]
    ends = SamplingParams(temperature=0, max_tokens=12, logit_bias=((eos, 100.0),))
    at_once = ask(engine, [5, 6], ends)
    later = ask(engine, [5, 6], replace(ends, min_tokens=4))
    never = ask(engine, [5, 6], replace(ends, ignore_eos=True))
    assert (at_once.wait().ended_by, at_once.tokens) == (eos, [eos])
    assert later.wait().ended_by == eos
    assert len(later.tokens) == 5
    assert eos not in later.tokens[:4]
    assert (never.wait().finish_reason, never.tokens) == ("length", [eos] * 12)


class OnlyEven:
    """Allows even tokens, and notes what it was told."""

    def __init__(self, vocab: int) -> None:
        self.taken: list[int] = []
        self.masks = 0
        self._mask = b"\x55" * (4 * -(-vocab // 32))

    def mask(self) -> bytes:
        """Returns the same mask each time."""
        self.masks += 1
        return self._mask

    def advance(self, token: int) -> None:
        """Notes the token."""
        self.taken.append(token)


def test_a_constraint_concerns_its_own_request_only(model: Model, engine: Engine) -> None:
    wanted = prompts(6, seed=6)
    expected = [alone(model, prompt, 12) for prompt in wanted]
    constraint = OnlyEven(model.manifest.model.vocab_size)
    answers = [
        ask(engine, prompt, GREEDY, constraint=constraint if i == 3 else None) for i, prompt in enumerate(wanted)
    ]
    for answer in answers:
        answer.wait()
    assert [answer.tokens for i, answer in enumerate(answers) if i != 3] == [
        e for i, e in enumerate(expected) if i != 3
    ]
    assert all(token % 2 == 0 for token in answers[3].tokens)
    assert constraint.taken == answers[3].tokens[:11]  # the last one ends the request


def test_a_constraint_that_fails_ends_its_own_request_only(model: Model, engine: Engine) -> None:
    class Broken(OnlyEven):
        def mask(self) -> bytes:
            if self.masks == 2:
                raise ValueError("broken")
            return super().mask()

    broken = ask(engine, [4, 5], GREEDY, constraint=Broken(model.manifest.model.vocab_size))
    sound = ask(engine, [4, 5], GREEDY)
    assert sound.wait().finish_reason == "length"
    assert broken.wait().finish_reason == "error"
    assert str(broken.updates[-1].error) == "broken"


def test_cancelled_requests_end_and_others_do_not_notice(model: Model, engine: Engine) -> None:
    wanted = prompts(8, seed=8)
    expected = [alone(model, prompt, 60) for prompt in wanted]
    params = replace(GREEDY, max_tokens=60)
    answers = [ask(engine, prompt, params) for prompt in wanted]
    for answer in answers[::2]:
        assert answer.started.wait(WAIT)
        assert answer.request is not None
        engine.cancel(answer.request)
        engine.cancel(answer.request)
    for i, answer in enumerate(answers):
        last = answer.wait()
        assert last.finish_reason == "length" if i % 2 else last.finish_reason in {"abort", "length"}
        assert answer.tokens == expected[i][: len(answer.tokens)]


@pytest.mark.parametrize(
    ("prompt", "params", "error"),
    [
        ([], GREEDY, UsageError),
        ([10**6], GREEDY, UsageError),
        ([-1], GREEDY, UsageError),
        ([1] * 600, GREEDY, PromptTooLongError),
        ([1] * 10, replace(GREEDY, max_tokens=10**6), PromptTooLongError),
        ([1], replace(GREEDY, temperature=math.nan), UsageError),
        ([1], replace(GREEDY, top_p=0.0), UsageError),
        ([1], replace(GREEDY, logit_bias=((10**6, 1.0),)), UsageError),
        ([1], replace(GREEDY, logit_bias=((1, 1e9),)), UsageError),
        ([1], replace(GREEDY, logprobs=21), UsageError),
        ([1], replace(GREEDY, seed=-1), UsageError),
        ([1], replace(GREEDY, min_tokens=2, logit_bias=((1, 1.0),) * 300), UsageError),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(
    engine: Engine, prompt: list[int], params: SamplingParams, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ask(engine, prompt, params)
    assert engine.open_requests == 0


def test_a_full_queue_and_a_stopped_engine_refuse(model: Model) -> None:
    engine = Engine(model, EngineOptions(max_num_seqs=1, max_waiting=2))
    answers: list[Answer] = []
    with pytest.raises(QueueFullError):
        answers.extend(ask(engine, [1, 2, 3], replace(GREEDY, max_tokens=200)) for _ in range(50))
    for answer in answers:
        assert answer.wait().finish_reason == "length"
    assert engine.drain(WAIT)
    with pytest.raises(EngineStoppedError):
        ask(engine, [1])
    engine.stop()


def test_stop_aborts_what_runs_and_what_waits(model: Model) -> None:
    engine = Engine(model, EngineOptions(max_num_seqs=1))
    answers = [ask(engine, [1, 2, 3], replace(GREEDY, max_tokens=250)) for _ in range(3)]
    assert answers[0].started.wait(WAIT)
    engine.stop()
    assert [answer.wait().finish_reason for answer in answers] == ["abort"] * 3
    assert engine.blocks.free == engine.blocks.blocks


def test_a_step_that_fails_ends_the_engine_and_every_request(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Exception] = []
    engine = Engine(model, on_failure=told.append)
    fault = DeviceFaultError("running plan forward", "illegal address", 700, hint="none")

    def crash(_: StepInput) -> None:
        raise fault

    answers = [ask(engine, [1, 2, 3], replace(GREEDY, max_tokens=250)) for _ in range(3)]
    assert answers[2].started.wait(WAIT)
    monkeypatch.setattr(model, "run", crash)
    assert [answer.wait().finish_reason for answer in answers] == ["error"] * 3
    assert all(answer.updates[-1].error is fault for answer in answers)
    with pytest.raises(EngineStoppedError):
        ask(engine, [1])
    engine.stop()
    assert engine.failed is fault
    assert told == [fault]


def test_a_step_that_hangs_ends_the_engine(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = Event()
    monkeypatch.setattr(model, "run", lambda _: hang.wait(WAIT))
    engine = Engine(model, EngineOptions(step_timeout=0.2))
    answer = ask(engine, [1, 2, 3], GREEDY)
    assert isinstance(answer.wait().error, StepTimeoutError)
    hang.set()
    engine.stop()


def test_what_is_observed_adds_up(model: Model) -> None:
    class Observer:
        def __init__(self) -> None:
            self.steps: list[StepRecord] = []
            self.tokens: list[TokenRecord] = []
            self.requests: list[RequestRecord] = []

        def on_step(self, record: StepRecord) -> None:
            self.steps.append(record)

        def on_tokens(self, records: list[TokenRecord]) -> None:
            self.tokens += records

        def on_request(self, record: RequestRecord) -> None:
            self.requests.append(record)

    observer = Observer()
    engine = Engine(model, observer=observer)
    wanted = prompts(6, seed=9)
    began = time.monotonic()
    answers = [ask(engine, prompt, GREEDY) for prompt in wanted]
    for answer in answers:
        answer.wait()
    ask(engine, [1] * 40, GREEDY).wait()
    ask(engine, [1] * 40, GREEDY).wait()
    engine.stop()
    ended = time.monotonic()
    wanted += [[1] * 40] * 2
    assert [record.cached_tokens for record in observer.requests] == [0] * 7 + [32]
    assert sum(record.first for record in observer.tokens) == 8
    assert len(observer.tokens) == 96 == sum(record.generated_tokens for record in observer.requests)
    assert sum(record.prefix_queries for record in observer.steps) == sum(map(len, wanted))
    assert sum(record.tokens for record in observer.steps) >= sum(map(len, wanted)) - 32 + 88
    assert all(0 < record.kv_usage < 1 for record in observer.steps[:1])
    for record in observer.requests:
        assert record.scheduled is not None
        assert record.first_token is not None
        assert began <= record.arrived <= record.scheduled <= record.first_token <= record.finished <= ended


def test_many_threads_may_submit_and_cancel(model: Model, engine: Engine) -> None:
    expected = alone(model, [8, 9], 12)
    failures: list[object] = []

    def client(number: int) -> None:
        rng = random.Random(number)
        for _ in range(12):
            answer = ask(engine, [8, 9], GREEDY)
            if rng.random() < 0.4 and answer.request is not None:
                engine.cancel(answer.request)
            answer.wait()
            if answer.tokens != expected[: len(answer.tokens)]:
                failures.append(answer.tokens)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
