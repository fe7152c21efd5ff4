"""The bodies of requests: OpenAI's fields, and those of vLLM's that this server knows as well."""

from __future__ import annotations

from typing import Any

from paiton_runtime.engine.params import MAX_BIASES, MAX_TOP_LOGPROBS
from paiton_runtime.server.openai.kinds import (
    Anything,
    Boolean,
    Integer,
    Items,
    Number,
    OneOf,
    Original,
    Table,
    Text,
    TokenIds,
    Unsupported,
    Word,
)
from paiton_runtime.server.openai.validate import Body, Record, value

MAX_CHOICES = 128
"""Answers to one prompt (the limit of OpenAI's interface)."""

MAX_PROMPTS = 1024
MAX_MESSAGES = 16_384
MAX_TOOLS = 1024
MAX_STOPS = 16
MAX_STOP_LENGTH = 512
"""Bounds of what one request may bring; they keep the work that it can cause within what its size suggests."""

_INT32 = 2**31 - 1
_DEFAULT = " (default: the model's own, else "


class StreamOptions(Body):
    """What a stream shows besides the text."""

    include_usage: bool = value(Boolean(), False, "A last event with the usage.")
    continuous_usage_stats: bool = value(Boolean(), False, "The usage so far in every event.")


class JsonSchemaFormat(Body):
    """The part of response_format that holds the schema."""

    schema: dict[str, Any] | None = value(Anything(), None, "JSON schema that the answer follows.")
    name: str | None = value(Text(), None)
    strict: bool | None = value(Boolean(), None, "Ignored: the answer follows the schema in any case.")


class ResponseFormat(Body):
    """What the answer must look like."""

    type: str = value(Word("text", "json_object", "json_schema"))
    json_schema: JsonSchemaFormat | None = value(Record(JsonSchemaFormat), None)


_SCHEMA = OneOf("a JSON schema, as an object or as text", Anything(), Text())
_CHOICES = Items(Text(least=1), most=4096, least=1)


class StructuredOutputs(Body):
    """vLLM's way to say what the answer must look like; exactly one of them."""

    json: dict[str, Any] | str | None = value(_SCHEMA, None, "JSON schema.")
    regex: str | None = value(Text(least=1), None, "Regular expression, as of Rust's regex crate.")
    choice: tuple[str, ...] | None = value(_CHOICES, None, "One of these texts.")
    grammar: str | None = value(Text(least=1), None, "Lark grammar, as llguidance reads it, or GBNF.")
    json_object: bool | None = value(Boolean(), None, "Any JSON object.")


class GenerationRequest(Body):
    """What completions and chats have in common."""

    model: str | None = value(Text(), None, "One of /v1/models; by default the first.")
    n: int = value(Integer(1, MAX_CHOICES), 1, "Answers to each prompt.")
    stream: bool = value(Boolean(), False, "Send server-sent events.")
    stream_options: StreamOptions | None = value(Record(StreamOptions), None)
    max_tokens: int | None = value(Integer(1, _INT32), None, "Tokens to generate at most.")
    min_tokens: int = value(Integer(0, _INT32), 0, "No end before this many tokens.")
    temperature: float | None = value(Number(0, 1e4), None, f"0 takes the most probable token{_DEFAULT}1).")
    top_p: float | None = value(Number(0, 1, above=True), None, f"Share of the most probable tokens{_DEFAULT}1).")
    top_k: int | None = value(Integer(-1, _INT32), None, f"0 and -1 switch it off{_DEFAULT}0).")
    min_p: float | None = value(Number(0, 1), None, f"Least probability, relative to the best one's{_DEFAULT}0).")
    presence_penalty: float = value(Number(-2, 2), 0.0)
    frequency_penalty: float = value(Number(-2, 2), 0.0)
    repetition_penalty: float | None = value(Number(0, 1e4, above=True), None, f"1 is off{_DEFAULT}1).")
    seed: int | None = value(Integer(-(2**63), 2**64 - 1), None, "Of the draws; the next answer takes the next one.")
    logit_bias: dict[str, float] | None = value(
        Table(Number(-100, 100), MAX_BIASES, "^[0-9]{1,10}$"), None, "By token id, added to the logits."
    )
    stop: str | tuple[str, ...] | None = value(
        OneOf("a string or an array of strings", Text(MAX_STOP_LENGTH, 1), Items(Text(MAX_STOP_LENGTH, 1), MAX_STOPS)),
        None,
        "Texts that end the answer and do not appear in it.",
    )
    stop_token_ids: list[int] | None = value(TokenIds(0), None, "Tokens that end the answer.")
    include_stop_str_in_output: bool = value(Boolean(), False, "What ended the answer appears in it.")
    ignore_eos: bool = value(Boolean(), False, "The model's own end of sequence does not end the answer.")
    skip_special_tokens: bool = value(Boolean(), True, "Special tokens do not appear in the answer.")
    return_token_ids: bool = value(Boolean(), False, "Token ids beside the text.")
    priority: int = value(Integer(-(2**31), _INT32), 0, "Lower ones are served first.")
    response_format: ResponseFormat | None = value(Record(ResponseFormat), None)
    structured_outputs: StructuredOutputs | None = value(Record(StructuredOutputs), None)
    guided_json: dict[str, Any] | str | None = value(_SCHEMA, None, "As structured_outputs.json.")
    guided_regex: str | None = value(Text(least=1), None, "As structured_outputs.regex.")
    guided_choice: tuple[str, ...] | None = value(_CHOICES, None, "As structured_outputs.choice.")
    guided_grammar: str | None = value(Text(least=1), None, "As structured_outputs.grammar.")
    user: str | None = value(Text(), None, "Ignored.")
    use_beam_search: None = value(Unsupported("there is no beam search", False), None)
    prompt_logprobs: int | None = value(
        Integer(0, MAX_TOP_LOGPROBS), None, "Log-probabilities of so many tokens at each position of the prompt."
    )
    truncate_prompt_tokens: None = value(Unsupported("send a shorter prompt"), None)
    allowed_token_ids: None = value(Unsupported("use structured_outputs", []), None)
    bad_words: None = value(Unsupported("use logit_bias", []), None)

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()


_PROMPT = OneOf(
    "a string, an array of token ids, or an array of either; none of them empty",
    Text(least=1),
    TokenIds(),
    Items(Text(least=1), MAX_PROMPTS, 1),
    Items(TokenIds(), MAX_PROMPTS, 1),
)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    max_tokens: int | None = value(
        Integer(0, _INT32), None, "Tokens to generate at most; 0 with echo or prompt_logprobs only."
    )
    prompt: str | list[int] | tuple[str, ...] | tuple[list[int], ...] = value(_PROMPT)
    logprobs: int | None = value(
        Integer(0, MAX_TOP_LOGPROBS), None, "Log-probabilities of so many tokens at each position."
    )
    echo: bool = value(Boolean(), False, "The answer begins with the prompt.")
    add_special_tokens: bool = value(Boolean(), True, "Begin a text with what the model expects there.")
    suffix: None = value(Unsupported("the model continues texts, it does not fill gaps", ""), None)
    best_of: int | None = value(Integer(1, MAX_CHOICES), None, "Must equal n.")


class ContentPart(Body):
    """A part of a message."""

    type: str = value(Text())
    text: str | None = value(Text(), None)
    refusal: str | None = value(Text(), None)


class CalledFunction(Body):
    """The function of a call that an assistant made."""

    name: str = value(Text(256, 1))
    arguments: str | dict[str, Any] | None = value(OneOf("JSON text or an object", Text(), Anything()), None)


class CalledTool(Body):
    """A call that an assistant made."""

    function: CalledFunction = value(Record(CalledFunction))
    id: str | None = value(Text(), None)
    type: str = value(Word("function"), "function")


class Message(Body):
    """A message of a conversation."""

    role: str = value(Text(64, 1), text="system, developer, user, assistant, tool, or what the chat template knows.")
    content: str | tuple[ContentPart, ...] | None = value(
        OneOf("a string or an array of parts", Text(), Items(Record(ContentPart), MAX_MESSAGES)), None
    )
    name: str | None = value(Text(), None)
    reasoning_content: str | None = value(Text(), None)
    tool_calls: tuple[CalledTool, ...] | None = value(Items(Record(CalledTool), MAX_TOOLS), None)
    tool_call_id: str | None = value(Text(), None)


_MESSAGES = Items(Record(Message), MAX_MESSAGES, 1)


class Function(Body):
    """A function that the assistant may call."""

    name: str = value(Text(256, 1))
    description: str | None = value(Text(), None)
    parameters: dict[str, Any] | None = value(Anything(), None, "JSON schema of its arguments.")
    strict: bool | None = value(Boolean(), None)


class Tool(Body):
    """A tool that the assistant may call."""

    type: str = value(Word("function"))
    function: Function = value(Record(Function))


class ToolName(Body):
    """The function of a `NamedTool`."""

    name: str = value(Text(256, 1))


class NamedTool(Body):
    """The tool that the assistant has to call."""

    type: str = value(Word("function"))
    function: ToolName = value(Record(ToolName))


class TemplateRequest(Body):
    """What the chat template gets besides the messages."""

    tools: tuple[dict[str, Any], ...] | None = value(Items(Original(Record(Tool)), MAX_TOOLS), None)
    documents: tuple[dict[str, Any], ...] | None = value(Items(Anything(), MAX_PROMPTS), None)
    add_generation_prompt: bool | None = value(
        Boolean(), None, "End the prompt with what begins an answer (default, unless continue_final_message)."
    )
    continue_final_message: bool = value(Boolean(), False, "The answer continues the last message.")
    chat_template_kwargs: dict[str, Any] | None = value(Anything(), None, "Further names that the template knows.")
    chat_template: None = value(Unsupported("the template is the server's"), None)


class ChatRequest(GenerationRequest, TemplateRequest):
    """POST /v1/chat/completions."""

    messages: tuple[Message, ...] = value(_MESSAGES)
    max_completion_tokens: int | None = value(Integer(1, _INT32), None, "Goes before max_tokens.")
    logprobs: bool = value(Boolean(), False)
    top_logprobs: int | None = value(Integer(0, MAX_TOP_LOGPROBS), None, "Needs logprobs.")
    tool_choice: str | NamedTool | None = value(
        OneOf("none, auto, required, or a named function", Word("none", "auto", "required"), Record(NamedTool)),
        None,
    )
    parallel_tool_calls: bool = value(Boolean(), True, "False: one call at most.")
    functions: None = value(Unsupported("use tools", []), None)
    function_call: None = value(Unsupported("use tool_choice", "none", "auto"), None)


class TokenizeRequest(TemplateRequest):
    """POST /tokenize; a text or a conversation."""

    model: str | None = value(Text(), None)
    prompt: str | None = value(Text(), None)
    messages: tuple[Message, ...] | None = value(_MESSAGES, None)
    add_special_tokens: bool | None = value(
        Boolean(), None, "Begin with what the model expects there (default for a prompt; templates write it)."
    )
    return_token_strs: bool = value(Boolean(), False, "The tokens as text, too.")


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = value(Text(), None)
    tokens: list[int] = value(TokenIds(0))
