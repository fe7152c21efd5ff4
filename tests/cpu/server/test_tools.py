"""Tool calls: found in text however it is cut, left as text where they are none, and forced by a grammar."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.openai.prompts import render_chat
from paiton_runtime.server.openai.requests import ChatRequest
from paiton_runtime.server.openai.serving import Serving
from paiton_runtime.server.openai.tools.calls import CallParser, Piece, ToolCall
from paiton_runtime.server.openai.tools.choice import tool_use
from paiton_runtime.server.openai.tools.formats import ToolFormat, guess_format
from paiton_runtime.server.openai.tools.hermes import HermesParser
from paiton_runtime.server.openai.tools.llama3 import Llama3Parser
from paiton_runtime.server.openai.validate import read_body
from tests.text_codec import make_codec

Found = list[str | tuple[str, Any]]

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": [1, "}</tool"], "y": "é"}}\n</tool_call>'
F = ("f", {"x": [1, "}</tool"], "y": "é"})
HERMES: list[tuple[str, Found]] = [
    ("no call at all", ["no call at all"]),
    (" a < b <tool_cal", [" a < b <tool_cal"]),
    (CALL, [F]),
    (f"Let me see.\n\n{CALL}\n", ["Let me see.", F]),
    (f"{CALL}\n{CALL} ", [F, F]),
    (f"{CALL}\nDone. {CALL} Bye", [F, "Done.", F, "Bye"]),
    ('<tool_call>{"name": "g"}</tool_call>', [("g", {})]),
    ('<tool_call>[{"name": "g", "arguments": {}}, {"name": "h"}]</tool_call>', [("g", {}), ("h", {})]),
    ('<tool_call>{"name": "g", "arguments": "{\\"x\\": 1}"}</tool_call>', [("g", {"x": 1})]),
    ('<tool_call>{"name": "g", "arguments": {}}', [("g", {})]),
    ("<tool_call>not JSON</tool_call> x", ["<tool_call>not JSON</tool_call> x"]),
    ('a <tool_call>{"name": "g", "argum', ['a<tool_call>{"name": "g", "argum']),
    ('<tool_call>{"arguments": {}}</tool_call>', ['<tool_call>{"arguments": {}}</tool_call>']),
    ("<tool_call>[]</tool_call>", ["<tool_call>[]</tool_call>"]),
]
LLAMA: list[tuple[str, Found]] = [
    ("plain { text }", ["plain { text }"]),
    ('{"name": "f", "parameters": {"x": "}"}}', [("f", {"x": "}"})]),
    ('<|python_tag|>{"name": "f", "parameters": {}}', [("f", {})]),
    (' {"name": "f", "parameters": {"x": {}}}; {"name": "g", "parameters": {}}\n', [("f", {"x": {}}), ("g", {})]),
    ('{"name": "f", "arguments": {"x": 1}}', [("f", {"x": 1})]),
    ('{"name": "unknown", "parameters": {}}', ['{"name": "unknown", "parameters": {}}']),
    ('{"answer": {"deep": 1}} and so on', ['{"answer": {"deep": 1}} and so on']),
    ('{"name": "f", "parameters": {', ['{"name": "f", "parameters": {']),
    ('<|python_tag|>print("x")', ['<|python_tag|>print("x")']),
    ('{"name": "f", "parameters": {}}; [5}', [("f", {}), "; [5}"]),
    ('{"name": "f", "parameters": {}} 5}', [("f", {}), " 5}"]),
    ("", []),
]


def parse(parser: CallParser, text: str, cuts: list[int]) -> Found:
    pieces: list[Piece] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        pieces += parser.push(text[start:end])
    pieces += parser.finish()
    found: Found = []
    for piece in pieces:
        if isinstance(piece, ToolCall):
            assert piece.id.startswith("call_")
            found.append((piece.name, json.loads(piece.arguments)))
        elif found and isinstance(found[-1], str):
            found[-1] += piece
        else:
            found.append(piece)
    return found


@pytest.mark.parametrize(
    ("make", "text", "expected"),
    [
        *((HermesParser, *case) for case in HERMES),
        *((lambda: Llama3Parser({"f", "g"}), *case) for case in LLAMA),
    ],
)
def test_calls_are_found_however_the_text_is_cut(make: Callable[[], CallParser], text: str, expected: Found) -> None:
    draw = random.Random(1)
    for cuts in ([], list(range(len(text))), *(sorted(draw.choices(range(len(text) + 1), k=4)) for _ in range(30))):
        assert parse(make(), text, cuts) == expected


def test_text_streams_while_no_call_is_near() -> None:
    parser = HermesParser()
    assert parser.push("Hello there") == ["Hello there"]
    assert parser.push(" <") == []
    assert parser.push("b> ok") == [" <b> ok"]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (None, "hermes"),
        ("{{ messages }}", "hermes"),
        ("... <tool_call> ... <|python_tag|>", "hermes"),
        ("... <|python_tag|> ...", "llama3_json"),
        ('{"name": function name, "parameters": dictionary of argument name and its value}', "llama3_json"),
    ],
)
def test_the_template_tells_the_format(template: str | None, name: str) -> None:
    assert guess_format(template) == name


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def chat(**more: object) -> ChatRequest:
    return read_body(ChatRequest, {"messages": [{"role": "user", "content": "x"}], **more})


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "required", "guided_regex": "a"}, "guided_regex"),
        ({"tools": [TOOL], "tool_choice": "required", "min_tokens": 5}, "min_tokens"),
    ],
)
def test_calls_that_cannot_be_made(more: dict[str, object], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        tool_use(ToolFormat("hermes"), chat(**more))
    assert (caught.value.status, caught.value.param) == (400, param)


def test_what_the_choice_of_tools_means() -> None:
    form = ToolFormat("hermes")
    assert tool_use(form, chat(tools=[TOOL], tool_choice="none")).functions == ()
    free = tool_use(form, chat(tools=[TOOL]))
    assert (len(free.functions), free.grammar) == (1, None)
    assert tool_use(form, chat(tools=[TOOL], tool_choice="required")).grammar is not None
    with pytest.raises(ApiError, match="--tool-call-parser"):
        tool_use(ToolFormat("none"), chat(tools=[TOOL], tool_choice="required"))


class FakeServing(Serving):
    """As much of it as rendering needs."""

    def __init__(self, template: str) -> None:
        self.codec = make_codec(template)


def test_messages_reach_the_template_as_it_expects_them() -> None:
    body = read_body(
        ChatRequest,
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": [1]}'}}],
                },
                {"role": "tool", "tool_call_id": "1", "content": "ok", "unknown": 5},
            ],
            "tools": [TOOL],
        },
    )
    template = "{% for m in messages %}{{ m | tojson }}{% endfor %}{{ tools | tojson }}"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": [1]}}}
    expected = [
        {"role": "system", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "ok", "tool_call_id": "1"},
    ]
    text = render_chat(FakeServing(template), body.messages, body, with_tools=True)
    assert text == "".join(map(json.dumps, expected)) + json.dumps([TOOL])
    assert render_chat(FakeServing("{{ tools is none }}"), body.messages, body, with_tools=False).lower() == "true"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages[0].content[0].type",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_messages_that_templates_cannot_show(message: dict[str, Any], param: str) -> None:
    body = read_body(ChatRequest, {"messages": [message]})
    with pytest.raises(ApiError) as caught:
        render_chat(FakeServing("x"), body.messages, body, with_tools=False)
    assert (caught.value.status, caught.value.param) == (400, param)
