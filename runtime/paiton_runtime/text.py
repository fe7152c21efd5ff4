"""Text to token ids and back: the bundle's tokenizer, its chat template, and incremental detokenisation."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from paiton_artifacts.errors import TokenizerError, UsageError
from paiton_artifacts.reader import Bundle

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

TEMPLATE_FUEL = 10_000_000
"""Instructions that rendering a chat may take. The template comes with the bundle: it must not run for ever."""

_REBUILD = "build the bundle again from a checkpoint with a complete tokenizer"


class TextCodec:
    """A bundle's tokenizer and chat template.

    Raises:
        VerificationError: a tokenizer file is damaged.
        TokenizerError: the tokenizers library does not accept it.
    """

    def __init__(self, bundle: Bundle) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415  (27 ms: only what turns text into tokens pays for it)

        facts, files = bundle.manifest.model, bundle.manifest.tokenizer
        source = bundle.read_file(files.file)
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_str(source.decode())
        except Exception as error:  # the library raises nothing more specific
            raise TokenizerError(f"{bundle.path / files.file.path}: {error}", hint=_REBUILD) from error
        self._template = None if files.chat_template is None else bundle.read_file(files.chat_template).decode()
        self._prefix = [facts.bos_token_id] if files.add_bos and facts.bos_token_id is not None else []
        self._names = {"bos_token": facts.bos_token_id, "eos_token": next(iter(facts.eos_token_ids), None)}

    def encode(self, text: str) -> list[int]:
        """Returns the ids of raw text, the begin-of-sequence token in front where the model wants one."""
        return [*self._prefix, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Returns the ids of a conversation, ready for the assistant's next message; the template writes all of it."""
        return list(self.tokenizer.encode(self.render(messages), add_special_tokens=False).ids)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Renders the chat template as transformers does, with the generation prompt.

        Args:
            messages: maps of "role" and "content".

        Raises:
            UsageError: the model has no template, or the template refuses the messages.
        """
        if self._template is None:
            raise UsageError("the model has no chat template", hint="leave --chat away and give it raw text")
        import minijinja  # noqa: PLC0415  (23 ms, for chats only)

        environment = minijinja.Environment(
            templates={"chat": self._template},
            globals={"raise_exception": _refuse, "strftime_now": _now},
            trim_blocks=True,
            lstrip_blocks=True,
            fuel=TEMPLATE_FUEL,
        )
        environment.add_filter("tojson", _to_json)
        names = {name: self.tokenizer.id_to_token(id_) for name, id_ in self._names.items() if id_ is not None}
        try:
            return environment.render_template("chat", messages=list(messages), add_generation_prompt=True, **names)
        except minijinja.TemplateError as error:
            raise UsageError(f"the chat template fails: {error.message or error.kind}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of generated ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> TextStream:
        """Returns a decoder for one generation."""
        return TextStream(self)


class TextStream:
    """Detokenises one generation token by token: a piece of text comes out once no later token can change it."""

    def __init__(self, codec: TextCodec) -> None:
        from tokenizers.decoders import DecodeStream  # noqa: PLC0415  (loaded with the tokenizer already)

        self._codec = codec
        self._stream: DecodeStream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._text = ""

    def push(self, token: int) -> str:
        """Takes the next token and returns the text that became certain, maybe none."""
        self._ids.append(token)
        piece = self._stream.step(self._codec.tokenizer, token) or ""
        self._text += piece
        return piece

    def finish(self) -> str:
        """Returns the rest: an incomplete character at the end, as replacement characters."""
        whole = self._codec.decode(self._ids)
        rest = whole[len(self._text) :] if whole.startswith(self._text) else ""
        self._text += rest
        return rest

    @property
    def text(self) -> str:
        """All text so far."""
        return self._text


def _refuse(message: str) -> NoReturn:
    """`raise_exception` of Hugging Face's templates."""
    raise UsageError(f"the chat template refuses the messages: {message}")


def _now(pattern: str) -> str:
    """`strftime_now` of Hugging Face's templates."""
    return dt.datetime.now().astimezone().strftime(pattern)


def _to_json(value: object, **options: int) -> str:
    """`tojson` of Hugging Face's templates: plain JSON, nothing escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=options.get("indent"))
