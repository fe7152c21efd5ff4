"""Chat templates with tools and other options render as transformers' apply_chat_template renders them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from paiton_artifacts.errors import UsageError
from paiton_runtime.chat_template import ChatOptions
from tests.text_codec import byte_tokenizer, make_codec

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'Says what the weather is like <today> & "tomorrow" or 明日.',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1.5}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "description": "Stops.", "parameters": {"type": "object"}}},
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather in Paris?\n"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}},
            {"id": "call_2", "type": "function", "function": {"name": "stop", "arguments": {}}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "name": "get_weather", "content": '{"celsius": 21}'},
    {"role": "tool", "tool_call_id": "call_2", "name": "stop", "content": "ok"},
    {"role": "assistant", "content": "It is 21 °C  "},
]

XML_STYLE = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "You may call these:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\nAnswer with <tool_call>{\\"name\\": ..., \\"arguments\\": ...}</tool_call><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set state = namespace(count=0, found=false) %}
{%- for message in messages[::-1] %}
    {%- if not state.found and message.role == 'user' %}
        {%- set state.found = true %}{%- set state.count = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content.strip() + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content is string and message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
HEADER_STYLE = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|system|>" }}{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Date: " + (date_string if date_string is defined else "26 Jul 2024") + "\\n\\n" + system_message + eos_token }}
{%- macro show(tool) %}{{ tool | tojson(indent=4) }}{% endmacro %}
{%- if tools is not none %}
    {%- set first_user_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
    {{- '<|user|>Respond with {"name": function name, "parameters": dictionary of argument name and its value}.\\n' }}
    {%- for t in tools %}{{- show(t) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first_user_message + eos_token }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|' + message['role'] + '|>' }}
        {%- generation %}{{- message['content'] | trim + eos_token }}{%- endgeneration %}
    {%- elif 'tool_calls' in message %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|assistant|>{"name": "' + tool_call.name + '", "parameters": ' + (tool_call.arguments | tojson) + "}" }}
        {%- for name, value in tool_call.arguments.items() %}{{- "\\n" ~ name ~ "=" ~ value }}{%- endfor %}
    {%- elif message.role == "tool" %}
        {{- "<|ipython|>" }}{{- message.content | tojson if message.content is mapping else message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}
"""


def reference(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), bos_token="<s>", eos_token="</s>")  # noqa: S106
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("template", [XML_STYLE, HEADER_STYLE], ids=["xml", "header"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize(
    "more",
    [{}, {"add_generation_prompt": False}, {"enable_thinking": False, "date_string": "1 Jan 2026"}],
    ids=["plain", "closed", "extra"],
)
def test_tools_render_as_in_transformers(
    template: str, tools: list[dict[str, Any]] | None, more: Mapping[str, Any]
) -> None:
    begin = more.get("add_generation_prompt", True)
    extra = {name: value for name, value in more.items() if name != "add_generation_prompt"}
    made = make_codec(template).render(MESSAGES, ChatOptions(tools=tools, add_generation_prompt=begin, extra=extra))
    assert made == reference(template, MESSAGES, tools=tools, add_generation_prompt=begin, **extra)
    assert ("get_weather" in made.partition("Paris")[0]) == (tools is not None)


@pytest.mark.parametrize("template", [XML_STYLE, HEADER_STYLE], ids=["keeps spaces", "strips"])
@pytest.mark.parametrize("content", ["It is 21 °C  ", "Well, ", "It", "\n  Paris"])
def test_the_final_message_continues_as_in_transformers(template: str, content: str) -> None:
    messages = [*MESSAGES[:-1], {"role": "assistant", "content": content}]
    options = ChatOptions(add_generation_prompt=False, continue_final_message=True)
    made = make_codec(template).render(messages, options)
    assert made == reference(template, messages, continue_final_message=True)
    assert made.rstrip().endswith(content.strip())


def test_what_cannot_be_continued_is_refused() -> None:
    made = make_codec(XML_STYLE)
    for messages, begin in ((MESSAGES, True), ([{"role": "tool", "content": " "}], False), ([], False)):
        with pytest.raises(UsageError):
            made.render(messages, ChatOptions(add_generation_prompt=begin, continue_final_message=True))


def test_options_do_not_replace_what_the_template_is_given() -> None:
    made = make_codec("{{ messages[0].content }}{{ bos_token }}{{ word }}")
    extra = {"messages": [], "bos_token": "x", "word": "!"}
    assert made.render([{"role": "user", "content": "a"}], ChatOptions(extra=extra)) == "a<s>!"
