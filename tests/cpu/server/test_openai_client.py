"""The official client against a server on SmolLM2: every feature as its users see it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from paiton_artifacts.reader import open_bundle
from paiton_runtime.boot import BootOptions, boot_bundle
from paiton_runtime.generate import GenerateOptions, Generator
from paiton_runtime.ledger import Ledger
from paiton_runtime.text import TextCodec
from tests.cpu.server.server_process import SECONDS, Server

PROMPT = "The capital of France is"
MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Says what the weather is like.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"enum": [1, 2]}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "maxProperties": 0}}},
]


@pytest.fixture(scope="module")
def client(smollm2_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smollm2_server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def name(client: openai.OpenAI) -> str:
    (model,) = client.models.list().data
    return model.id


@pytest.fixture(scope="module")
def greedy(smollm2_bundle: Path) -> dict[str, tuple[str, list[int]]]:
    """Answers to the prompt and to the chat without a server: text and tokens."""
    bundle = open_bundle(smollm2_bundle)
    codec = TextCodec(bundle)
    answers = {}
    with boot_bundle(bundle, BootOptions(kv_tokens=1024, target="cpu"), Ledger()) as model:
        for kind, ids in (("text", codec.encode(PROMPT)), ("chat", codec.encode_chat(MESSAGES))):
            done = Generator(model).generate(ids, GenerateOptions(max_tokens=24))
            answers[kind] = (codec.decode(done.token_ids), done.token_ids)
    return answers


def test_models(client: openai.OpenAI, name: str) -> None:
    model = client.models.retrieve(name)
    assert (model.id, model.object) == (name, "model")
    assert model.model_dump()["max_model_len"] == 8192
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_greedy_answers_are_those_without_a_server(
    client: openai.OpenAI, name: str, greedy: dict[str, tuple[str, list[int]]]
) -> None:
    text, tokens = greedy["text"]
    extra = {"return_token_ids": True}
    done = client.completions.create(model=name, prompt=PROMPT, max_tokens=24, temperature=0, extra_body=extra)
    assert done.choices[0].text == text
    assert done.choices[0].model_dump()["token_ids"] == tokens
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (5, len(tokens))
    chat = client.chat.completions.create(model=name, messages=MESSAGES, max_completion_tokens=24, temperature=0)
    assert chat.choices[0].message.content == greedy["chat"][0]
    assert chat.choices[0].message.role == "assistant"
    assert chat.choices[0].finish_reason == ("stop" if len(greedy["chat"][1]) < 24 else "length")
    assert chat.system_fingerprint == done.system_fingerprint


def test_streams_give_the_same_text(client: openai.OpenAI, name: str, greedy: dict[str, tuple[str, list[int]]]) -> None:
    options: Any = {"include_usage": True}
    chunks = list(
        client.completions.create(
            model=name, prompt=PROMPT, max_tokens=24, temperature=0, stream=True, stream_options=options
        )
    )
    *parts, last = chunks
    assert "".join(part.choices[0].text for part in parts) == greedy["text"][0]
    assert [part.choices[0].finish_reason for part in parts] == [None] * (len(parts) - 1) + ["length"]
    assert (last.choices, last.usage and last.usage.completion_tokens) == ([], 24)
    events = list(
        client.chat.completions.create(
            model=name, messages=MESSAGES, max_tokens=24, temperature=0, stream=True, stream_options=options
        )
    )
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in events[:-1]) == greedy["chat"][0]
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == len(greedy["chat"][1])
    assert len({event.id for event in events}) == 1


def test_usage_in_every_event(client: openai.OpenAI, name: str) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    events = list(
        client.chat.completions.create(
            model=name, messages=MESSAGES, max_tokens=4, temperature=0, stream=True, stream_options=options
        )
    )
    counts = [event.usage.completion_tokens for event in events if event.usage is not None]
    assert len(counts) == len(events)
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_a_prompt_is_computed_once_for_all_answers_and_for_later_ones(client: openai.OpenAI, name: str) -> None:
    prompt = "One, two, three. " * 20
    fields: Any = {"model": name, "prompt": [prompt, "Hello"], "n": 3, "max_tokens": 4, "seed": 7}
    fields["extra_body"] = {"ignore_eos": True}
    first = client.completions.create(**fields)
    assert [choice.index for choice in first.choices] == list(range(6))
    assert len({choice.text for choice in first.choices[:3]}) > 1
    again = client.completions.create(**fields)
    assert [choice.text for choice in again.choices] == [choice.text for choice in first.choices]
    alone = client.completions.create(**{**fields, "prompt": prompt, "n": 1, "seed": 8})
    assert alone.choices[0].text == first.choices[1].text
    assert again.usage is not None
    assert first.usage is not None
    assert again.usage.prompt_tokens == first.usage.prompt_tokens
    assert again.usage.completion_tokens == 24
    assert again.usage.prompt_tokens_details is not None
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert again.usage.prompt_tokens - 48 < cached < again.usage.prompt_tokens


def test_several_answers_stream_side_by_side(client: openai.OpenAI, name: str) -> None:
    texts = ["", "", ""]
    reasons: list[str | None] = [None] * 3
    fields: Any = {"model": name, "messages": MESSAGES, "n": 3, "max_tokens": 6, "seed": 3}
    for event in client.chat.completions.create(**fields, stream=True):
        (choice,) = event.choices
        assert reasons[choice.index] is None
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason
    whole = client.chat.completions.create(**fields)
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]


def test_stop_strings_and_echo(client: openai.OpenAI, name: str, greedy: dict[str, tuple[str, list[int]]]) -> None:
    text = greedy["text"][0]
    stop = text[9:13]
    fields: Any = {"model": name, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "stop": ["\0", stop]}
    done = client.completions.create(**fields, echo=True)
    assert done.choices[0].text == PROMPT + text[: text.index(stop)]
    assert done.choices[0].finish_reason == "stop"
    assert done.choices[0].model_dump()["stop_reason"] == stop
    assert done.usage is not None
    assert done.usage.completion_tokens < 24
    parts = client.completions.create(**fields, stream=True, extra_body={"include_stop_str_in_output": True})
    assert "".join(part.choices[0].text for part in parts) == text[: text.index(stop) + len(stop)]


def test_logprobs_of_a_completion(client: openai.OpenAI, name: str) -> None:
    fields: Any = {"model": name, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 3}
    (choice,) = client.completions.create(**fields).choices
    report = choice.logprobs
    assert report is not None
    assert report.tokens is not None
    assert report.token_logprobs is not None
    assert report.top_logprobs is not None
    assert report.text_offset is not None
    assert "".join(report.tokens) == choice.text
    for token, logprob, top, offset in zip(
        report.tokens, report.token_logprobs, report.top_logprobs, report.text_offset, strict=True
    ):
        assert len(top) == 3
        assert top[token] == logprob == max(top.values()) <= 0  # greedy
        assert choice.text[offset:].startswith(token)
    parts = [part.choices[0].logprobs for part in client.completions.create(**fields, stream=True)]
    assert [token for part in parts if part and part.tokens for token in part.tokens] == report.tokens
    assert [offset for part in parts if part for offset in part.text_offset or ()] == report.text_offset


def test_logprobs_of_a_chat(client: openai.OpenAI, name: str) -> None:
    fields: Any = {"model": name, "messages": MESSAGES, "max_tokens": 8, "temperature": 0, "logprobs": True}
    (choice,) = client.chat.completions.create(**fields, top_logprobs=2).choices
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    text = b"".join(bytes(token.bytes or ()) for token in content).decode()
    assert text.removesuffix("<|im_end|>") == choice.message.content
    for token in content:
        assert len(token.top_logprobs) == 2
        assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (token.token, token.logprob)
    streamed = [
        token.token
        for event in client.chat.completions.create(**fields, stream=True)
        if event.choices[0].logprobs is not None
        for token in event.choices[0].logprobs.content or ()
    ]
    assert streamed == [token.token for token in content]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_forced_tool_calls(client: openai.OpenAI, name: str, choice: Any) -> None:
    fields: Any = {"model": name, "messages": MESSAGES, "tools": TOOLS, "tool_choice": choice, "seed": 1}
    fields |= {"parallel_tool_calls": False, "max_tokens": 80}
    (answer,) = client.chat.completions.create(**fields).choices
    assert answer.message.tool_calls is not None
    (call,) = answer.message.tool_calls
    assert call.type == "function"
    assert answer.message.content is None
    assert answer.finish_reason == ("tool_calls" if choice == "required" else "stop")
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert len(arguments.pop("city")) <= 12
        assert arguments.pop("days") in {1, 2}
    assert arguments == {}
    deltas = [event.choices[0].delta for event in client.chat.completions.create(**fields, stream=True)]
    (streamed,) = [part for delta in deltas for part in delta.tool_calls or ()]
    assert (streamed.index, streamed.type) == (0, "function")
    assert streamed.function is not None
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)


def test_a_conversation_with_calls_goes_on(client: openai.OpenAI, name: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages: Any = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    ]
    done = client.chat.completions.create(model=name, messages=messages, tools=TOOLS, max_tokens=4)
    assert done.choices[0].finish_reason in {"length", "stop"}


def test_structured_output(client: openai.OpenAI, name: str) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "size": {"enum": ["small", "large"]}},
        "required": ["city", "size"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    fields: Any = {"model": name, "messages": MESSAGES, "response_format": wanted, "max_tokens": 400}
    done = client.chat.completions.create(**fields, n=2, seed=1)
    for choice in done.choices:
        value = json.loads(choice.message.content or "")
        assert set(value) == {"city", "size"}
        assert value["size"] in {"small", "large"}
        assert choice.finish_reason == "stop"
    extra: dict[str, Any] = {"structured_outputs": {"regex": "[0-9]{3}-[a-f]+!"}}
    text = (
        client.completions.create(model=name, prompt="Code: ", max_tokens=60, seed=1, extra_body=extra).choices[0].text
    )
    assert re.fullmatch("[0-9]{3}-[a-f]*!?", text)
    extra = {"guided_choice": ["Paris", "Rome"]}
    parts = client.completions.create(model=name, prompt=PROMPT, temperature=0, extra_body=extra, stream=True)
    assert "".join(part.choices[0].text for part in parts).strip() == "Paris"


def test_errors_are_the_clients_own(client: openai.OpenAI, name: str) -> None:
    def chat(**fields: Any) -> object:
        return client.chat.completions.create(**{"model": name, "messages": MESSAGES, "max_tokens": 1, **fields})

    with pytest.raises(openai.NotFoundError) as missing:
        chat(model="gpt-4")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    cases: list[tuple[dict[str, Any], str | None, str | None]] = [
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"max_tokens": 8192}, "messages", "context_length_exceeded"),
        ({"max_tokens": 2_000_000_000}, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, "messages", "context_length_exceeded"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logit_bias": {"99999": 1}}, None, "invalid_value"),
        ({"extra_body": {"guided_regex": "["}}, "guided_regex", "invalid_grammar"),
        ({"extra_body": {"chat_template": "x"}}, "chat_template", "unsupported_parameter"),
        ({"temperature": -1, "stream": True}, "temperature", "invalid_value"),
        ({"max_tokens": 8192, "stream": True}, "messages", "context_length_exceeded"),
    ]
    for fields, param, code in cases:
        with pytest.raises(openai.BadRequestError) as caught:
            chat(**fields)
        assert (caught.value.param, caught.value.code) == (param, code), fields
        assert caught.value.type == "invalid_request_error"
    wrong: list[dict[str, Any]] = [
        {"prompt": ""},
        {"prompt": [[]]},
        {"prompt": [49152]},
        {"prompt": "x", "suffix": "y"},
    ]
    for fields in wrong:
        with pytest.raises(openai.BadRequestError):
            client.completions.create(**{"model": name, "max_tokens": 1, **fields})


def test_a_client_that_leaves_frees_the_engine(client: openai.OpenAI, smollm2_server: Server, name: str) -> None:
    fields: Any = {"model": name, "prompt": "Once", "max_tokens": 8000, "extra_body": {"ignore_eos": True}}
    with client.completions.create(**fields, stream=True) as stream:
        next(iter(stream))
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(**fields)
    aborted: list[str] = []
    deadline = time.monotonic() + SECONDS
    while len(aborted) < 2:  # the one that streamed, and the one that waited for all of it
        aborted = re.findall(r"finish_reason=abort.* generated_tokens=(\d+)", smollm2_server.stderr)
        assert time.monotonic() < deadline, smollm2_server.stderr
        time.sleep(0.02)
    assert all(int(tokens) < 4000 for tokens in aborted)


def test_tokens_of_texts_and_chats(smollm2_server: Server, smollm2_bundle: Path) -> None:
    codec = TextCodec(open_bundle(smollm2_bundle))
    text = "Grüße, 世界 <|im_end|>"
    answer = smollm2_server.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert answer["tokens"] == codec.encode(text)
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), 8192)
    assert answer["token_strs"][-1] == "<|im_end|>"
    assert smollm2_server.post("/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": text}
    chat = smollm2_server.post("/tokenize", {"messages": MESSAGES}).json()
    assert chat["tokens"] == codec.encode_chat(MESSAGES)
    assert smollm2_server.post("/tokenize", {"prompt": "x", "messages": MESSAGES}).status == 400
    assert smollm2_server.post("/detokenize", {"tokens": [49152]}).error["param"] == "tokens"


def test_characters_of_several_tokens_arrive_whole(client: openai.OpenAI, name: str) -> None:
    extra: dict[str, Any] = {"guided_choice": ["🙂世界é"]}
    parts = client.completions.create(model=name, prompt="x", max_tokens=30, extra_body=extra, stream=True)
    texts = [part.choices[0].text for part in parts]
    assert "".join(texts) == "🙂世界é"
    assert not any("\ufffd" in text for text in texts)


def test_many_at_once_answer_as_each_alone(client: openai.OpenAI, name: str) -> None:
    prompts = [f"{word} is a word that" for word in ("Sun", "Moon", "Star", "Sea", "Tree", "Stone", "Bird", "Fish")]

    def ask(prompt: str) -> str:
        done = client.completions.create(model=name, prompt=prompt, max_tokens=12, temperature=0)
        return done.choices[0].text

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(ask, prompts)) == alone
