"""Bodies: what is read, what is refused and how the refusal names it; and the description agrees."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema_rs
import pytest

from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.openai.description import describe
from paiton_runtime.server.openai.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from paiton_runtime.server.openai.validate import object_schema, read_body

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
PROMPT = {"prompt": "hello"}


def refuse(body: type[Any], value: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read_body(body, value)
    assert caught.value.status == 400
    return caught.value


def test_defaults_are_those_of_openai() -> None:
    chat = read_body(ChatRequest, HELLO)
    assert (chat.n, chat.max_tokens, chat.stream) == (1, None, False)
    assert (chat.temperature, chat.top_p) == (None, None)  # the model's own, where the bundle has any; else 1
    assert chat.messages[0].content == "hello"
    nulls = {name: None for name in object_schema(ChatRequest)["properties"] if name != "messages"}
    same = read_body(ChatRequest, {**HELLO, **nulls, "unknown": {"x": 1}})
    assert {**vars(same), "messages": None} == {**vars(chat), "messages": None}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("temperature", -0.1),
        ("temperature", "1"),
        ("temperature", math.nan),
        ("temperature", 1e400),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", [1]),
        ("max_tokens", -5),
        ("max_tokens", 1.5),
        ("max_tokens", 10**400),
        ("max_tokens", False),
        ("n", 0),
        ("n", 129),
        ("seed", 2**64),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", 5),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [1.5]),
        ("stop_token_ids", 5),
        ("stop_token_ids", 5.0),
        ("stop_token_ids", "5"),
        ("stop_token_ids", {}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", [1]),
        ("stream", "yes"),
        ("stream_options", []),
        ("response_format", {"type": "yaml"}),
        ("structured_outputs", {"choice": []}),
        ("priority", "high"),
        ("ignore_eos", 1),
    ],
)
def test_wrong_values_are_named(name: str, wrong: object) -> None:
    bodies: list[tuple[type[Any], dict[str, Any]]] = [(ChatRequest, HELLO), (CompletionRequest, PROMPT)]
    for body, required in bodies:
        error = refuse(body, {**required, name: wrong})
        assert error.param is not None
        assert error.param.partition(".")[0].partition("[")[0] == name
        assert error.code == "invalid_value"
        assert name in error.message


@pytest.mark.parametrize(
    "prompt",
    ["", [], [""], [[]], [1, "a"], ["a", 1], [True], [[1], []], [-1], [1.5], {}, 5, [None], [[["a"]]], "\ud800"],
)
def test_prompts_that_are_none(prompt: object) -> None:
    error = refuse(CompletionRequest, {"prompt": prompt})
    assert error.param is not None
    assert error.param.startswith("prompt")


@pytest.mark.parametrize("prompt", ["a", [1, 2], ["a", "b"], [[1], [2, 3]], [1.0, 2]])
def test_prompts_of_all_kinds(prompt: object) -> None:
    read = read_body(CompletionRequest, {"prompt": prompt}).prompt
    assert (list(read) if isinstance(read, tuple) else read) == prompt


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        ([1], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": 5, "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "messages[0].tool_calls[0].function.name"),
    ],
)
def test_messages_that_are_none(messages: object, param: str) -> None:
    assert refuse(ChatRequest, {"messages": messages}).param == param


def test_a_missing_field_and_a_body_that_is_no_object() -> None:
    missing = refuse(ChatRequest, {"model": "x"})
    assert (missing.param, missing.code) == ("messages", "missing_required_parameter")
    for odd in (list[object](), "x", 5, None):
        assert "JSON object" in refuse(ChatRequest, odd).message


@pytest.mark.parametrize(
    ("body", "name", "wrong", "harmless"),
    [
        (CompletionRequest, "suffix", "x", ""),
        (CompletionRequest, "use_beam_search", True, False),
        (CompletionRequest, "truncate_prompt_tokens", 1, None),
        (ChatRequest, "functions", [{}], []),
        (ChatRequest, "function_call", {"name": "f"}, "auto"),
    ],
)
def test_what_is_not_supported_says_so(body: type[Any], name: str, wrong: object, harmless: object) -> None:
    required = PROMPT if body is CompletionRequest else HELLO
    error = refuse(body, {**required, name: wrong})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    read_body(body, {**required, name: harmless})


def test_errors_stay_short_whatever_was_sent() -> None:
    for wrong in ("x" * 10**6, [["x" * 1000] * 1000] * 50, {"a" * 10**6: 1}, int("9" * 4000)):
        assert len(refuse(ChatRequest, {**HELLO, "temperature": wrong}).message) < 300


def test_lone_surrogates_are_refused_wherever_text_is_used() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": ["\udfff"]}}}
    assert refuse(ChatRequest, {**HELLO, "tools": [tool]}).param == "tools[0].function.parameters.x[0]"
    assert refuse(ChatRequest, {"messages": [{"role": "user", "content": "\ud800"}]}).param == "messages[0].content"


EXAMPLES: list[tuple[type[Any], dict[str, Any]]] = [
    (ChatRequest, HELLO),
    (ChatRequest, {**HELLO, "temperature": 0, "stop": ["a"], "logit_bias": {"5": -100}, "tool_choice": "auto"}),
    (ChatRequest, {**HELLO, "tool_choice": {"type": "function", "function": {"name": "f"}}, "stop": None}),
    (CompletionRequest, {"prompt": [[1, 2]], "logprobs": 3, "structured_outputs": {"choice": ["a"]}}),
    (TokenizeRequest, {"prompt": ""}),
    (DetokenizeRequest, {"tokens": []}),
]
WRONG: list[tuple[type[Any], dict[str, Any]]] = [
    (ChatRequest, {}),
    (ChatRequest, {**HELLO, "n": 0}),
    (ChatRequest, {**HELLO, "top_p": 0}),
    (ChatRequest, {**HELLO, "tool_choice": "sometimes"}),
    (CompletionRequest, {"prompt": ""}),
    (CompletionRequest, {"prompt": "x", "suffix": "y"}),
    (DetokenizeRequest, {"tokens": [-1]}),
]


def test_the_description_takes_what_is_taken_and_refuses_what_is_refused() -> None:
    document = json.loads(json.dumps(describe()))
    for body, example in EXAMPLES:
        read_body(body, example)
        assert jsonschema_rs.is_valid(document["components"]["schemas"][body.__name__], example), example
    for body, example in WRONG:
        refuse(body, example)
        assert not jsonschema_rs.is_valid(document["components"]["schemas"][body.__name__], example), example
