"""Constrained output: random walks along the masks end in texts that json, re and a JSON schema validator accept."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest
from tokenizers import Tokenizer

from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.openai.grammar import MAX_REGEX, MAX_SOURCE, Grammar, GrammarConstraint, Grammars
from paiton_runtime.server.openai.requests import CompletionRequest
from paiton_runtime.server.openai.sampling import wanted_grammar
from paiton_runtime.server.openai.tools.formats import ToolFormat
from paiton_runtime.server.openai.validate import read_body
from paiton_runtime.text import TextCodec
from tests.text_codec import byte_tokenizer, make_codec

EOS = 257
VOCAB = 300  # more logits than tokens, as models have
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "count": {"type": "integer", "minimum": -5, "maximum": 1200},
        "kind": {"enum": ["a", "b c", None]},
        "inner": {"$ref": "#/$defs/inner"},
        "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "count", "kind", "inner", "list"],
    "additionalProperties": False,
    "$defs": {
        "inner": {
            "type": "object",
            "properties": {"é": {"const": 1.5}},
            "required": ["é"],
            "additionalProperties": False,
        }
    },
}


def compile_grammar(kind: str, source: str, codec: TextCodec | None = None) -> Callable[[], GrammarConstraint]:
    async def run() -> Callable[[], GrammarConstraint]:
        return await Grammars(codec or make_codec(), VOCAB, [EOS]).compile(Grammar(kind, source, "p"))

    return asyncio.run(run())


def allowed(mask: bytes) -> list[int]:
    assert len(mask) == 4 * -(-VOCAB // 32)
    bits = int.from_bytes(mask, "little")
    return [token for token in range(VOCAB) if bits >> token & 1]


def walk(constraint: GrammarConstraint, draw: random.Random, codec: TextCodec, steps: int = 2000) -> str:
    """Returns a random text that the masks allow; it ends as soon as it may, now and then."""
    ids: list[int] = []
    for _ in range(steps):
        choices = allowed(constraint.mask())
        token = EOS if EOS in choices and draw.random() < 0.3 else draw.choice(choices)
        constraint.advance(token)
        if token == EOS:
            return codec.decode(ids, skip_special_tokens=False)
        ids.append(token)
    raise AssertionError("the text does not end")


@pytest.mark.parametrize(
    ("kind", "source", "accepts"),
    [
        ("json", json.dumps(SCHEMA), lambda text: jsonschema_rs.is_valid(SCHEMA, json.loads(text))),
        ("regex", r"(ab|[0-9]{2,4})+[x-z]?", lambda text: re.fullmatch(r"(ab|[0-9]{2,4})+[x-z]?", text) is not None),
        ("choice", '["yes", "no\\n", "\\"é\\" /x/", ""]', lambda text: text in {"yes", "no\n", '"é" /x/', ""}),
        ("grammar", 'start: "(" start ")" | /[ab]/', lambda text: re.fullmatch(r"\(*[ab]\)*", text) is not None),
        ("grammar", 'root ::= "x" ("-" [0-9])*', lambda text: re.fullmatch(r"x(-[0-9])*", text) is not None),
    ],
    ids=["schema", "regex", "choice", "lark", "gbnf"],
)
def test_what_the_masks_allow_is_accepted(kind: str, source: str, accepts: Callable[[str], bool]) -> None:
    make, codec, draw = compile_grammar(kind, source), make_codec(), random.Random(5)
    texts = {walk(make(), draw, codec) for _ in range(40)}
    assert len(texts) > 1
    assert all(accepts(text) for text in texts), texts


def test_a_json_object_is_any_object() -> None:
    make, codec = compile_grammar("json", '{"type":"object"}'), make_codec()
    constraint = make()
    for token in codec.encode('{"a": [1, {"b": null}], "ü": "x"}'):
        assert token in allowed(constraint.mask())
        constraint.advance(token)
    assert EOS in allowed(constraint.mask())
    assert codec.encode("[")[0] not in allowed(make().mask())


@pytest.mark.parametrize(
    ("between", "size"),
    [("", 0), (" ", 1), ("\n" + 20 * " ", 21), ("\r\n\t\t", 4), ("\n\n", 1), (100 * " ", 4), ("\n" + 100 * " ", 41)],
)
def test_whitespace_in_json_is_bounded(between: str, size: int) -> None:
    """A model that repeats itself cannot fill its answer with blank lines; pretty-printed JSON remains possible."""
    call = ToolFormat("llama3_json").grammar([{"name": "f", "parameters": {"type": "object"}}], many=False)
    sources = {"json": ('{"type": "object"}', "{"), "lark": (call, '{"name": "f", "parameters": {')}
    for kind, (source, start) in sources.items():
        constraint = compile_grammar(kind, source)()
        codec = make_codec()
        for token in codec.encode(start):
            constraint.advance(token)
        accepted = 0
        for token in codec.encode(between):
            if token not in allowed(constraint.mask()):
                break
            constraint.advance(token)
            accepted += 1
        assert accepted == size, kind


def test_a_schema_may_be_true() -> None:
    assert walk(compile_grammar("json", "true")(), random.Random(1), make_codec())


def test_when_it_is_complete_only_the_end_is_left() -> None:
    constraint = compile_grammar("choice", '["a"]')()
    constraint.advance(make_codec().encode("a")[0])
    for _ in range(3):
        assert allowed(constraint.mask()) == [EOS]
        constraint.advance(EOS)


def test_a_token_against_the_mask_is_an_error() -> None:
    constraint = compile_grammar("choice", '["a"]')()
    with pytest.raises(Exception, match="does not follow the grammar"):
        constraint.advance(make_codec().encode("b")[0])


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "["),
        ("regex", "(?=a)b"),
        ("regex", "(a{1000}){1000}"),
        ("regex", "a" * (MAX_REGEX + 1)),
        ("json", "{"),
        ("json", "[1]"),
        ("json", '{"type": "yaml"}'),
        ("json", '{"$ref": "http://127.0.0.1:1/x"}'),
        ("json", '{"$ref": "#/$defs/missing"}'),
        ("json", '{"type": "string", "pattern": "("}'),
        ("json", "[" * 10_000),
        ("json", json.dumps({"enum": ["x" * MAX_SOURCE]})),
        ("grammar", "start: missing"),
        ("grammar", "start: ("),
        ("grammar", ""),
    ],
)
def test_grammars_that_are_none_are_refused_soon(kind: str, source: str) -> None:
    with pytest.raises(ApiError) as caught:
        compile_grammar(kind, source)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "p", "invalid_grammar")
    assert len(caught.value.message) < 1500


def test_grammars_are_compiled_once_and_answers_are_apart() -> None:
    async def run() -> None:
        grammars = Grammars(make_codec(), VOCAB, [EOS])
        grammar = Grammar("choice", '["ab"]', "p")
        first, second = (await grammars.compile(grammar))(), (await grammars.compile(grammar))()
        assert len(grammars._kept) == 1
        first.advance(make_codec().encode("a")[0])
        assert allowed(first.mask()) == make_codec().encode("b")
        assert allowed(second.mask()) == make_codec().encode("a")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, "json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}, "json"),
        ({"structured_outputs": {"regex": "a"}}, "regex"),
        ({"structured_outputs": {"json": "{}"}}, "json"),
        ({"structured_outputs": {"json_object": True}}, "json"),
        ({"guided_choice": ["a"]}, "choice"),
        ({"guided_grammar": "x"}, "grammar"),
    ],
)
def test_where_grammars_come_from(fields: dict[str, Any], kind: str | None) -> None:
    grammar = wanted_grammar(read_body(CompletionRequest, {"prompt": "x", **fields}))
    assert (None if grammar is None else grammar.kind) == kind


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"guided_regex": "a", "min_tokens": 3}, "min_tokens"),
    ],
)
def test_grammars_that_contradict_each_other(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        wanted_grammar(read_body(CompletionRequest, {"prompt": "x", **fields}))
    assert (caught.value.status, caught.value.param) == (400, param)


FUNCTIONS: list[dict[str, Any]] = [
    {"name": "first", "parameters": SCHEMA},
    {"name": 'se"cond', "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
    {"name": "third"},
]


def tagged_tokenizer() -> bytes:
    """A tokenizer in which the marks of calls are special tokens."""
    tokenizer: Tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<tool_call>", "</tool_call>"])
    return tokenizer.to_str().encode()


@pytest.mark.parametrize("name", ["hermes", "llama3_json"])
@pytest.mark.parametrize("tagged", [False, True], ids=["text", "special"])
def test_forced_calls_are_parsed_and_follow_their_schema(name: str, tagged: bool) -> None:
    codec = make_codec(source=tagged_tokenizer() if tagged else None)
    special = frozenset(codec.token_bytes(token).decode() for token in codec.special_ids)
    form = ToolFormat(name, special)
    assert form.shows_special_tokens == (tagged and name == "hermes")
    draw = random.Random(2)
    counts = set()
    for functions, many in ((FUNCTIONS[:2], True), (FUNCTIONS[:1], False)):
        make = compile_grammar("lark", form.grammar(functions, many=many), codec)
        for _ in range(15):
            text = walk(make(), draw, codec)
            parser = form.parser(FUNCTIONS)
            calls = [*parser.push(text), *parser.finish()]
            assert calls
            for call in calls:
                assert not isinstance(call, str), text
                (function,) = (function for function in functions if function["name"] == call.name)
                assert jsonschema_rs.is_valid(function["parameters"], json.loads(call.arguments))
            counts.add((many, len(calls)))
    assert (False, 1) in counts
    assert not any(not many and count > 1 for many, count in counts)
    assert any(many and count > 1 for many, count in counts)
    compile_grammar("lark", form.grammar(FUNCTIONS, many=True), codec)  # one has no schema
