"""Log-probabilities of prompts: those of the model's own logits, whatever else the engine does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paiton_runtime.engine.engine import Engine
from paiton_runtime.engine.params import SamplingParams
from paiton_runtime.model import Model
from tests.cpu.engine.conftest import GREEDY, alone, ask, prompts
from tests.teacher_forced import logits_of


def test_a_prompts_logprobs_are_those_of_the_models_logits(model: Model, engine: Engine) -> None:
    """Whatever the prefix cache holds, and while others decode."""
    prompt = prompts(1, seed=5)[0] + [7] * 40
    ask(engine, prompt, GREEDY).wait()
    params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=2, ignore_eos=True)
    others = [ask(engine, one, GREEDY) for one in prompts(6, seed=6)]
    answer = ask(engine, prompt, params)
    answer.wait()
    for other in others:
        other.wait()
    rated = answer.updates[0].prompt_logprobs
    assert [len(update.prompt_logprobs) for update in answer.updates] == [len(prompt) - 1, 0, 0]
    assert answer.tokens == alone(model, prompt, 3)
    logits = logits_of(model, prompt).astype(np.float64)
    logprobs = logits - logits.max(1, keepdims=True)
    logprobs -= np.log(np.exp(logprobs).sum(1, keepdims=True))
    for i, report in enumerate(rated):
        best = np.argsort(-logprobs[i], kind="stable")[:2]
        assert report.logprob == pytest.approx(logprobs[i, prompt[i + 1]], abs=1e-4)
        assert report.rank == 1 + int((logits[i] > logits[i, prompt[i + 1]]).sum())
        assert [token for token, _ in report.top] == best.tolist()


def test_rating_a_prompt_leaves_its_penalties_as_they_are(engine: Engine) -> None:
    params = replace(GREEDY, frequency_penalty=1.5, repetition_penalty=1.3, max_tokens=24)
    prompt = prompts(1, seed=9)[0]
    plain, rated = ask(engine, prompt, params), ask(engine, prompt, replace(params, prompt_logprobs=0))
    plain.wait()
    rated.wait()
    assert rated.tokens == plain.tokens


def test_prompts_are_rated_under_memory_pressure(model: Model) -> None:
    wanted = prompts(8, seed=2)
    engine = Engine(model)
    params = replace(GREEDY, max_tokens=40, prompt_logprobs=0)
    expected = [ask(engine, prompt, params) for prompt in wanted]
    for answer in expected:
        answer.wait()
    engine.blocks.take(engine.blocks.blocks - 24)
    answers = [ask(engine, prompt, params) for prompt in wanted]
    for answer in answers:
        answer.wait()
    assert sum(answer.request.preemptions for answer in answers if answer.request) > 0
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in expected]
    assert [a.updates[0].prompt_logprobs for a in answers] == [e.updates[0].prompt_logprobs for e in expected]
    engine.stop()
