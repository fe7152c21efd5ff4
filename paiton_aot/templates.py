"""Chat templates, checked at build time: what the runtime's engine renders beside what transformers renders.

transformers renders templates with jinja2, the runtime with minijinja, which lacks a few of Python's string methods and
formats. A set of conversations shows whether a template uses one of them: the outcome goes into the manifest.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from paiton_artifacts.errors import TokenizerError, UsageError
from paiton_artifacts.schema import TemplateCheck
from paiton_runtime.chat_template import TEMPLATE_FUEL, ChatOptions, ChatTemplate

Message = Mapping[str, Any]

_SYSTEM: Message = {"role": "system", "content": "Answer briefly; quote <b>tags</b> & signs."}
_QUESTION: Message = {"role": "user", "content": "What is the weather in “Zürich” at 5 °C?\nAnd tomorrow?  "}
_ANSWER: Message = {"role": "assistant", "content": "  It is 'sunny'.\n\n```py\nprint(\"{{ 1 }}\")\n```"}
_THOUGHT: Message = {"role": "assistant", "content": "<think>\nThe city is known.\n</think>\n\nSunny, 你好 🙂"}
_FOLLOW_UP: Message = {"role": "user", "content": "Thanks! {% raw %} 100 %"}
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call00001",
            "type": "function",
            "function": {
                "name": "get_weather",
                "arguments": {"city": "Zürich", "days": 2, "exact": True, "unit": None},
            },
        }
    ],
}
_RESULT: Message = {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": '{"celsius": 21.5}'}
_TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'Says what the weather is "like" & where.',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name of the <city>"},
                    "days": {"type": "integer", "enum": [1, 2]},
                },
                "required": ["city"],
            },
        },
    },
)
_DAY = dt.datetime(2026, 1, 31, 12, 0, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Probe:
    """A conversation to render.

    Attributes:
        name: in the manifest.
        messages: of the conversation.
        options: see `ChatOptions`.
    """

    name: str
    messages: Sequence[Message]
    options: ChatOptions


_CONVERSATIONS: Mapping[str, tuple[Sequence[Message], Mapping[str, Any]]] = {
    "question": ((_QUESTION,), {}),
    "system": ((_SYSTEM, _QUESTION), {}),
    "turns": ((_QUESTION, _ANSWER, _FOLLOW_UP), {}),
    "system-turns": ((_SYSTEM, _QUESTION, _ANSWER, _FOLLOW_UP, _THOUGHT, _FOLLOW_UP), {}),
    "empty-content": (({"role": "user", "content": ""},), {}),
    "answered": ((_QUESTION, _THOUGHT), {}),
    "tools": ((_QUESTION,), {"tools": _TOOLS}),
    "system-tools": ((_SYSTEM, _QUESTION), {"tools": _TOOLS}),
    "call": ((_QUESTION, _CALL, _RESULT), {"tools": _TOOLS}),
    "call-answered": ((_SYSTEM, _QUESTION, _CALL, _RESULT, _ANSWER, _FOLLOW_UP), {"tools": _TOOLS}),
    "two-results": ((_QUESTION, _CALL, _RESULT, _RESULT), {"tools": _TOOLS}),
    "no-thinking": ((_SYSTEM, _QUESTION), {"extra": {"enable_thinking": False}}),
    "two-questions": ((_QUESTION, _FOLLOW_UP), {}),
}

PROBES = tuple(
    Probe(name + suffix, messages, ChatOptions(add_generation_prompt=begins, **options))
    for name, (messages, options) in _CONVERSATIONS.items()
    for suffix, begins in (("", True), ("-complete", False))
)
"""Each conversation with and without what begins an assistant's message."""


def check_template(source: str, special_tokens: Mapping[str, str], probes: Sequence[Probe] = PROBES) -> TemplateCheck:
    """Renders all probes with both engines.

    A template may refuse a conversation; both engines must then do so. `strftime_now` gives the same day to both.

    Args:
        source: Jinja.
        special_tokens: see `TokenizerFiles.special_tokens`.
        probes: conversations.

    Raises:
        TokenizerError: rendering a short conversation takes more steps than the runtime allows.
    """
    reference = Reference(source)
    template = ChatTemplate(source, special_tokens, now=_DAY.strftime)
    differing = [
        probe.name
        for probe in probes
        if _rendered(template, probe) != reference.render(probe.messages, special_tokens, probe.options)
    ]
    return TemplateCheck(len(probes), tuple(differing))


def _rendered(template: ChatTemplate, probe: Probe) -> str | None:
    """Returns what the runtime makes of a conversation, None where it refuses."""
    try:
        return template.render(probe.messages, probe.options)
    except UsageError as error:
        # Before jinja2, which knows no such limit, is asked to render it for hours.
        if str(getattr(error.__cause__, "kind", "")) == "OutOfFuel":
            text = f"the chat template takes more than {TEMPLATE_FUEL:,} steps for conversation {probe.name}"
            raise TokenizerError(text, hint="correct the template, or remove it from the checkpoint") from error
        return None


class Reference:
    """A template in jinja2, set up as transformers does it; see its utils/chat_template_utils.py.

    The template comes from a checkpoint that somebody else made: hence the sandbox.
    """

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _DAY.strftime
        self._template: jinja2.Template | None
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError:
            self._template = None

    def render(
        self, messages: Sequence[Message], special_tokens: Mapping[str, str], options: ChatOptions
    ) -> str | None:
        """Returns the conversation as text, None where the template refuses it or fails."""
        context = {
            **(options.extra or {}),
            **special_tokens,
            "messages": list(messages),
            "tools": None if options.tools is None else list(options.tools),
            "documents": None if options.documents is None else list(options.documents),
            "add_generation_prompt": options.add_generation_prompt,
        }
        if self._template is None:
            return None
        try:
            return self._template.render(context)
        # A template may also do what Python refuses: add text to nothing, call what is no function.
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
            return None


class _Generation(jinja2.ext.Extension):
    """transformers' tag {% generation %}, which renders what it encloses."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """See jinja2."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
