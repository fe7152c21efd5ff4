"""Chat templates: conversations as the text that a model was trained on, rendered as transformers renders them."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from paiton_artifacts.errors import UsageError
from paiton_artifacts.record import dataclass

if TYPE_CHECKING:
    import minijinja

TEMPLATE_FUEL = 10_000_000
"""Instructions that rendering a chat may take. The template comes with the bundle: it must not run for ever."""

_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
"""transformers' own tag, which marks what an assistant said for training and renders what it encloses."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a rendering may be asked for, with transformers' names.

    Attributes:
        tools: JSON schemas of the functions that the assistant may call.
        documents: for templates with retrieval.
        add_generation_prompt: end with what begins an assistant's message.
        continue_final_message: end within the last message, for the assistant to go on with it.
        extra: further names that the template may know, such as "enable_thinking".
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    extra: Mapping[str, Any] | None = None


class ChatTemplate:
    """A template, compiled at its first use.

    Args:
        source: Jinja.
        names: "bos_token", "eos_token" and the like, as far as the model has them.
        now: formats the present time, for templates that show it.
    """

    def __init__(self, source: str, names: Mapping[str, str], now: Callable[[str], str] | None = None) -> None:
        self.source = source
        self._now = _now if now is None else now
        self._names = dict(names)
        self._environment: minijinja.Environment | None = None

    def render(self, messages: Sequence[Mapping[str, Any]], options: ChatOptions) -> str:
        """Renders a conversation.

        Args:
            messages: maps of "role", "content" and whatever else the template knows.
            options: see `ChatOptions`.

        Raises:
            UsageError: the template is broken or refuses the messages.
        """
        import minijinja  # noqa: PLC0415  (23 ms, for chats only)

        if options.continue_final_message and options.add_generation_prompt:
            text = "continue_final_message and add_generation_prompt exclude each other"
            raise UsageError(text, hint="set add_generation_prompt to false")
        context: dict[str, Any] = {
            **(options.extra or {}),
            **self._names,
            "messages": list(messages),
            "tools": None if options.tools is None else list(options.tools),
            "documents": None if options.documents is None else list(options.documents),
            "add_generation_prompt": options.add_generation_prompt,
        }
        try:
            if self._environment is None:
                self._environment = self._compile()
            text = self._environment.render_template("chat", **context)
        except minijinja.TemplateError as error:
            raise UsageError(f"the chat template fails: {error.message or error.kind}") from error
        return _until_end_of_message(text, messages) if options.continue_final_message else text

    def _compile(self) -> minijinja.Environment:
        import minijinja  # noqa: PLC0415  (as above)

        source = _GENERATION.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", self.source)
        environment = minijinja.Environment(
            templates={"chat": source},
            globals={"raise_exception": _refuse, "strftime_now": self._now},
            trim_blocks=True,
            lstrip_blocks=True,
            fuel=TEMPLATE_FUEL,
        )
        environment.add_filter("tojson", _to_json)
        return environment


def _until_end_of_message(text: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """Cuts what the template wrote behind the content of the last message.

    Templates may strip the content. The spaces at its end stay where the template keeps them.
    """
    content = messages[-1].get("content") if messages else None
    stripped = content.strip() if isinstance(content, str) else ""
    at = text.rfind(stripped) if stripped else -1
    if at < 0 or not isinstance(content, str):
        hint = "end with a message that has content, or leave continue_final_message away"
        raise UsageError(
            "the chat template does not show the content of the last message, so it cannot go on", hint=hint
        )
    whole = content.lstrip()
    return text[:at] + (whole if text.startswith(whole, at) else stripped)


def _refuse(message: str) -> NoReturn:
    """`raise_exception` of Hugging Face's templates."""
    raise UsageError(f"the chat template refuses the messages: {message}")


def _now(pattern: str) -> str:
    """`strftime_now` of Hugging Face's templates."""
    return dt.datetime.now().astimezone().strftime(pattern)


def _to_json(value: object, **options: Any) -> str:  # noqa: ANN401  (of json.dumps)
    """`tojson` of Hugging Face's templates: plain JSON, nothing escaped for HTML."""
    known = {name: options[name] for name in ("indent", "separators", "sort_keys") if name in options}
    return json.dumps(value, ensure_ascii=bool(options.get("ensure_ascii", False)), **known)
