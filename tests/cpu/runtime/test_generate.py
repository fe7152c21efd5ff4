"""Generation on a booted model: chunked prefill, cache reuse, limits and stopping, against single steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from paiton_artifacts.errors import PromptTooLongError, UsageError
from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.generate import DEFAULT_MAX_TOKENS, GenerateOptions, Generator
from paiton_runtime.model import Chunk, Model, Sampling

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    with boot(tiny_bundle, BootOptions(threads=2)) as booted:
        yield booted


def greedy(count: int, *, ignore_eos: bool = True) -> GenerateOptions:
    return GenerateOptions(max_tokens=count, ignore_eos=ignore_eos)


def by_hand(model: Model, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy tokens, the whole sequence computed anew in one step for each."""
    tokens = list(prompt)
    blocks = range(model.kv_blocks)
    for _ in range(count):
        logits = model.step([Chunk(tokens, 0, blocks)]).logits(0).tolist()
        tokens.append(logits.index(max(logits)))
    return tokens[len(prompt) :]


def test_decoding_equals_computing_everything_anew(model: Model) -> None:
    """Bit for bit: a row does not depend on what else is in the step, or on decode or prefill form."""
    seen: list[int] = []
    done = Generator(model).generate(PROMPT, greedy(12), seen.append)
    assert done.token_ids == seen == by_hand(model, PROMPT, 12)
    assert (done.prompt_tokens, done.reused_tokens, done.finish_reason) == (20, 0, "length")
    assert done.prefill_seconds > 0
    assert done.decode_rate == pytest.approx(11 / done.decode_seconds)


def test_a_prompt_may_come_in_chunks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Generator(model).generate(PROMPT, greedy(4)).token_ids
    monkeypatch.setattr(model, "memory", replace(model.memory, max_tokens=7))
    before = model.steps
    assert Generator(model).generate(PROMPT, greedy(4)).token_ids == whole
    assert model.steps - before == 3 + 3  # 7 + 7 + 6 tokens, then one each


def test_a_continued_conversation_reuses_the_cache(model: Model) -> None:
    generator = Generator(model)
    first = generator.generate(PROMPT, greedy(5))
    longer = [*PROMPT, *first.token_ids, 11, 12, 13]
    second = generator.generate(longer, greedy(5))
    # The last token of the first answer was never fed.
    assert second.reused_tokens == len(PROMPT) + 4
    assert second.token_ids == Generator(model).generate(longer, greedy(5)).token_ids
    other = [*PROMPT[:10], 200, 201]
    third = generator.generate(other, greedy(5))
    assert third.reused_tokens == 10
    assert third.token_ids == Generator(model).generate(other, greedy(5)).token_ids
    assert generator.generate(other, greedy(5)).reused_tokens == len(other) - 1


def test_an_end_of_sequence_stops(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    free = Generator(model).generate(PROMPT, greedy(8)).token_ids
    end = free[3]
    facts = replace(model.manifest.model, eos_token_ids=(end,))
    monkeypatch.setattr(model, "manifest", replace(model.manifest, model=facts))
    done = Generator(model).generate(PROMPT, greedy(8, ignore_eos=False))
    assert done.token_ids == free[: free.index(end) + 1]
    assert done.finish_reason == "stop"
    assert Generator(model).generate(PROMPT, greedy(8)).token_ids == free


def test_the_context_bounds_prompt_and_answer(model: Model) -> None:
    context = model.manifest.model.max_model_len
    prompt = [i % 300 for i in range(context - 3)]
    assert len(Generator(model).generate(prompt, greedy(4)).token_ids) == 4
    with pytest.raises(
        PromptTooLongError, match=f"{context - 3} tokens and 5 to generate exceed the context of {context}"
    ):
        Generator(model).generate(prompt, greedy(5))
    with pytest.raises(PromptTooLongError):
        Generator(model).generate([1] * (context + 1), GenerateOptions())
    clipped = Generator(model).generate(prompt, GenerateOptions(ignore_eos=True))
    assert len(clipped.token_ids) == 4 < DEFAULT_MAX_TOKENS


def test_the_kv_cache_bounds_them_too(tiny_bundle: Path) -> None:
    with boot(tiny_bundle, BootOptions(kv_tokens=20, threads=1)) as small:
        assert small.kv_blocks == 2
        generator = Generator(small)
        assert len(generator.generate(PROMPT, greedy(13)).token_ids) == 13
        assert len(generator.generate(PROMPT, greedy(13)).token_ids) == 13
        with pytest.raises(PromptTooLongError, match="exceed the KV cache of 32 tokens; hint: raise --kv-tokens"):
            generator.generate(PROMPT, greedy(14))


def test_seeds_repeat_and_differ(model: Model) -> None:
    def draw(seed: int) -> list[int]:
        options = GenerateOptions(16, Sampling(temperature=2.0, seed=seed), ignore_eos=True)
        return Generator(model).generate(PROMPT, options).token_ids

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(4)}) == 4
    assert len(set(draw(1))) > 4  # the counter moves on with every token


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (GenerateOptions(sampling=Sampling(temperature=-1.0)), "temperature -1.0"),
        (GenerateOptions(sampling=Sampling(top_p=1.5)), "top-p 1.5"),
        (GenerateOptions(sampling=Sampling(top_k=-1)), "top-k -1"),
        (GenerateOptions(sampling=Sampling(seed=2**64)), "seed 18446744073709551616"),
        (GenerateOptions(max_tokens=0), "--max-tokens 0"),
    ],
)
def test_parameters_without_a_meaning_are_refused(model: Model, options: GenerateOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Generator(model).generate(PROMPT, options)


def test_an_empty_prompt_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        Generator(model).generate([])
