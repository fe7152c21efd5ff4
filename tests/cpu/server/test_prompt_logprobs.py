"""Log-probabilities of prompts, as lm_eval asks for them: the official client against transformers' numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from paiton_artifacts.reader import open_bundle
from paiton_runtime.text import TextCodec
from tests.cpu.server.server_process import Server
from tests.reference import load_reference, reference_logits

TEXTS = ("The quick brown fox, 12 naïve cafés 🙂; " * 4, "def add(left, right):\n    return left + right")
TOLERANCE = 0.02
"""In nats: the reference sums in another order, and rounds where the bundle does."""


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def codec(tiny_bundle: Path) -> TextCodec:
    return TextCodec(open_bundle(tiny_bundle))


@pytest.fixture(scope="module")
def prompts(codec: TextCodec) -> list[list[int]]:
    return [codec.encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, prompts: list[list[int]]) -> list[NDArray[np.float64]]:
    """Log-probabilities [tokens, vocabulary] of each prompt, by transformers on the bundle's own weights."""
    model = load_reference(tiny_bundle)
    found = []
    for ids in prompts:
        logits = reference_logits(model, ids).astype(np.float64)
        shifted = logits - logits.max(1, keepdims=True)
        found.append(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
    return found


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.completions.create(**{"model": client.models.list().data[0].id, "temperature": 0, **fields})


def test_echoed_logprobs_are_those_of_transformers(
    client: openai.OpenAI, prompts: list[list[int]], expected: list[NDArray[np.float64]]
) -> None:
    """The request of lm_eval's local completions: token ids, several prompts, one token, echo."""
    answer = ask(client, prompt=prompts, max_tokens=1, logprobs=1, seed=1, echo=True)
    assert len(answer.choices) == len(prompts)
    for choice, ids, logprobs in zip(answer.choices, prompts, expected, strict=True):
        report = choice.logprobs
        assert len(report.tokens) == len(report.token_logprobs) == len(report.top_logprobs) == len(ids) + 1
        assert report.token_logprobs[0] is report.top_logprobs[0] is None
        wanted = logprobs[np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(report.token_logprobs[1:-1], wanted, atol=TOLERANCE)
        best = [max(top.values()) for top in report.top_logprobs[1:]]
        np.testing.assert_allclose(best, logprobs.max(1), atol=TOLERANCE)
        clear = np.sort(logprobs, 1)[:-1, -1] - np.sort(logprobs, 1)[:-1, -2] > 2 * TOLERANCE
        greedy = np.array([lp == top for lp, top in zip(report.token_logprobs[1:-1], best[:-1], strict=True)])
        assert (greedy == (logprobs[:-1].argmax(1) == ids[1:]))[clear].all()


def test_the_prefix_cache_changes_nothing(client: openai.OpenAI, prompts: list[list[int]]) -> None:
    fields: Any = {"prompt": prompts[0], "max_tokens": 1, "logprobs": 0, "echo": True}
    plain = ask(client, prompt=prompts[0], max_tokens=1)
    first, again = ask(client, **fields), ask(client, **fields)
    assert first.choices[0].logprobs == again.choices[0].logprobs
    assert again.usage.prompt_tokens_details.cached_tokens == 0
    assert again.choices[0].text.endswith(plain.choices[0].text)


def test_texts_and_offsets(client: openai.OpenAI) -> None:
    answer = ask(client, prompt=list(TEXTS), max_tokens=3, logprobs=2, echo=True, extra_body={"ignore_eos": True})
    for choice, text in zip(answer.choices, TEXTS, strict=True):
        report = choice.logprobs
        assert choice.text.startswith(text)
        assert report.text_offset[0] == 0
        assert report.text_offset == sorted(report.text_offset)
        assert report.text_offset[-3] == len(text)
        prompt = report.tokens[:-3]  # behind it, a random model writes halves of characters
        whole = [i for i, token in enumerate(prompt) if not token.startswith("bytes:")]
        assert all(choice.text[report.text_offset[i] :].startswith(report.tokens[i]) for i in whole)


def test_no_token_at_all(client: openai.OpenAI, prompts: list[list[int]]) -> None:
    one = ask(client, prompt=prompts[1], max_tokens=1, logprobs=1, echo=True)
    none = ask(client, prompt=prompts[1], max_tokens=0, logprobs=1, echo=True)
    (choice,) = none.choices
    assert (choice.text, choice.finish_reason) == (TEXTS[1], "length")
    assert choice.logprobs.token_logprobs == one.choices[0].logprobs.token_logprobs[:-1]
    assert none.usage.completion_tokens == 0
    with pytest.raises(openai.BadRequestError, match="nothing to show"):
        ask(client, prompt=prompts[1], max_tokens=0)


def test_a_stream_begins_with_the_prompts(client: openai.OpenAI, prompts: list[list[int]]) -> None:
    fields: Any = {"prompt": prompts[1], "max_tokens": 4, "logprobs": 1, "echo": True, "n": 2, "seed": 3}
    fields["temperature"] = 1
    whole = ask(client, **fields)
    texts, logprobs = ["", ""], [[], []]  # type: tuple[list[str], list[list[float]]]
    for event in ask(client, **fields, stream=True):
        (choice,) = event.choices
        texts[choice.index] += choice.text
        logprobs[choice.index] += choice.logprobs.token_logprobs
    assert texts == [choice.text for choice in whole.choices]
    assert logprobs == [choice.logprobs.token_logprobs for choice in whole.choices]


def test_vllms_prompt_logprobs(client: openai.OpenAI, prompts: list[list[int]]) -> None:
    ids = prompts[1]
    echoed = ask(client, prompt=ids, max_tokens=1, logprobs=2, echo=True).choices[0].logprobs
    answer = ask(client, prompt=ids, max_tokens=1, extra_body={"prompt_logprobs": 2})
    shown = answer.choices[0].model_dump()["prompt_logprobs"]
    assert shown[0] is None
    assert [shown[i][str(ids[i])]["logprob"] for i in range(1, len(ids))] == echoed.token_logprobs[1:-1]
    for entry in shown[1:]:
        ranks = sorted(report["rank"] for report in entry.values())
        assert ranks[:2] == [1, 2]
        assert len(entry) == len(ranks) in (2, 3)
    name = client.models.list().data[0].id
    chat: Any = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    whole = client.chat.completions.create(**chat, extra_body={"prompt_logprobs": 0, "return_token_ids": True})
    assert len(whole.model_dump()["prompt_logprobs"]) == len(whole.model_dump()["prompt_token_ids"])
    with pytest.raises(openai.BadRequestError, match="whole answers only"):
        ask(client, prompt=ids, stream=True, extra_body={"prompt_logprobs": 0})
