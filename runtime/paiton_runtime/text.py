"""Text to token ids and back: the bundle's tokenizer, its chat template, and incremental detokenisation."""

from __future__ import annotations

import codecs
import functools
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from paiton_artifacts.encoder_file import SPECIAL
from paiton_artifacts.errors import TokenizerError, UsageError
from paiton_artifacts.reader import Bundle
from paiton_runtime.chat_template import ChatOptions, ChatTemplate
from paiton_runtime.encoder import Encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

_REBUILD = "build the bundle again from a checkpoint with a complete tokenizer"

_CHAT = ChatOptions()

_CONTEXT = 8
"""Tokens before a generation that tell how its text begins."""


class TextCodec:
    """A bundle's tokenizer and chat template. Encoding may happen in any thread.

    Args:
        bundle: whose files are read.
        chat_template: in place of the bundle's.

    Attributes:
        special_ids: tokens that are no text, such as the end of a message.
        byte_level: a token is some bytes, whatever stands beside it.
        prefix: tokens that come before those of a text, where special tokens are added.

    Raises:
        VerificationError: a tokenizer file is damaged.
        TokenizerError: the tokenizers library does not accept it.
    """

    def __init__(self, bundle: Bundle, chat_template: str | None = None) -> None:
        facts, files = bundle.manifest.model, bundle.manifest.tokenizer
        self._bundle = bundle
        self._lock = Lock()  # of the library's tokenizer, which several threads may want at once
        self._tokenizer: Tokenizer | None = None
        self._encoder: Encoder | None = None
        self._added: dict[int, bytes] = {}  # of the library's tokenizer
        if files.encoder is not None:
            self._encoder = Encoder(bundle.read_file(files.encoder), str(bundle.path / files.encoder.path))
            texts = self._encoder.texts
            self.byte_level = True
            self.special_ids = frozenset(id_ for id_, flags in texts.added.items() if flags & SPECIAL)
        else:
            from tokenizers import decoders  # noqa: PLC0415  (27 ms, where the library is needed anyway)

            added = self.tokenizer.get_added_tokens_decoder()
            self._added = {id_: token.content.encode() for id_, token in added.items()}
            self.byte_level = isinstance(self.tokenizer.decoder, decoders.ByteLevel)
            self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self.prefix = [facts.bos_token_id] if files.add_bos and facts.bos_token_id is not None else []
        self._bytes: dict[int, bytes] = {}
        if chat_template is None and files.chat_template is not None:
            chat_template = bundle.read_file(files.chat_template).decode()
        self.template: ChatTemplate | None = None
        if chat_template is not None:
            self.template = ChatTemplate(chat_template, {token.name: token.text for token in files.special_tokens})

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizers library's own, loaded when it is first asked for."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _load(self._bundle)
            return self._tokenizer

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the ids of text; the interpreter's lock is free meanwhile.

        Args:
            text: anything; the names of special tokens become those.
            add_special_tokens: put the begin-of-sequence token in front where the model wants one.

        Raises:
            UsageError: the text holds half of a surrogate pair, which is no character.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("the text holds a lone surrogate, which is no character") from error
        ids = None if self._encoder is None else self._encoder.encode(data)
        if ids is None:
            # Twice as fast as `encode`, and the only one that lets other threads run.
            (encoding,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)
            ids = list(encoding.ids)
        return [*self.prefix, *ids] if add_special_tokens else ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], options: ChatOptions = _CHAT) -> list[int]:
        """Returns the ids of a conversation; the template writes all of it, special tokens included."""
        return self.encode(self.render(messages, options), add_special_tokens=False)

    def render(self, messages: Sequence[Mapping[str, Any]], options: ChatOptions = _CHAT) -> str:
        """Renders the chat template as transformers does, with the generation prompt unless told otherwise.

        Args:
            messages: maps of "role" and "content", and what else the template knows.
            options: tools, and how to end.

        Raises:
            UsageError: the model has no template, or the template refuses the messages.
        """
        if self.template is None:
            raise UsageError("the model has no chat template", hint="leave --chat away and give it raw text")
        return self.template.render(messages, options)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids."""
        if self._encoder is not None:
            shown = [id_ for id_ in ids if not (skip_special_tokens and id_ in self.special_ids)]
            return b"".join(map(self._encoder.texts.text, shown)).decode(errors="replace")
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        """Returns what a token stands for in a text, which may be a part of a character; nothing for unused ids."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._spell(token)
        return known

    def _spell(self, token: int) -> bytes:
        if self._encoder is not None:
            return self._encoder.texts.text(token)
        added = self._added.get(token)
        if added is not None:
            return added
        text = self.tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self.byte_level:
            try:
                return bytes(map(byte_letters().__getitem__, text))
            except KeyError:  # a letter that stands for no byte stands for itself
                return text.encode()
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes.fromhex(text[3:5])  # SentencePiece's byte fallback
        return text.replace("\u2581", " ").encode()

    def stream(self, *, skip_special_tokens: bool = True, after: Sequence[int] = ()) -> TextStream:
        """Returns a decoder for one generation, whose text continues that of the tokens `after` which it comes."""
        return TextStream(self, skip_special_tokens=skip_special_tokens, after=after)


def _load(bundle: Bundle) -> Tokenizer:
    """Returns what the tokenizers library makes of a bundle's tokenizer.json."""
    from tokenizers import Tokenizer  # noqa: PLC0415  (27 ms, and the tokenizer four times that)

    entry = bundle.manifest.tokenizer.file
    source = bundle.read_file(entry)
    try:
        tokenizer: Tokenizer = Tokenizer.from_str(source.decode())
    except Exception as error:  # the library raises nothing more specific
        raise TokenizerError(f"{bundle.path / entry.path}: {error}", hint=_REBUILD) from error
    tokenizer.no_truncation()  # which the file may ask for, to train or to embed
    tokenizer.no_padding()
    return tokenizer


class TextStream:
    """Detokenises one generation token by token: a piece of text comes out once no later token can change it."""

    def __init__(self, codec: TextCodec, *, skip_special_tokens: bool = True, after: Sequence[int] = ()) -> None:
        self._codec = codec
        self._skipped = codec.special_ids if skip_special_tokens else frozenset()
        self._pieces: list[str] = []
        self._decoder: _ByteDecoder | _LibraryDecoder
        if codec.byte_level:
            self._decoder = _ByteDecoder(codec)
        else:
            self._decoder = _LibraryDecoder(codec, after)

    def push(self, token: int) -> str:
        """Takes the next token and returns the text that became certain, maybe none."""
        if token in self._skipped:
            return ""
        piece = self._decoder.push(token)
        if piece:
            self._pieces.append(piece)
        return piece

    def finish(self) -> str:
        """Returns the rest: an incomplete character at the end, as replacement characters."""
        rest = self._decoder.finish()
        self._pieces.append(rest)
        return rest

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._pieces)


class _ByteDecoder:
    """For byte-level tokenizers: a token is some bytes, so that its text takes constant time whatever came before."""

    def __init__(self, codec: TextCodec) -> None:
        self._bytes_of = codec.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._bytes_of(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _LibraryDecoder:
    """For all others, whose text of a token may depend on its neighbours: the tokenizers library's own.

    At the beginning of a text, such a tokenizer drops a space. Behind a prompt there is no beginning.
    """

    def __init__(self, codec: TextCodec, after: Sequence[int]) -> None:
        from tokenizers.decoders import DecodeStream  # noqa: PLC0415  (loaded with the tokenizer already)

        self._tokenizer = codec.tokenizer
        self._stream: DecodeStream = DecodeStream(skip_special_tokens=False)
        self._ids: list[int] = []
        self._length = 0
        self._pending = False
        for token in after[-_CONTEXT:]:
            self.push(token)

    def push(self, token: int) -> str:
        self._ids.append(token)
        piece = self._stream.step(self._tokenizer, token)
        self._pending = piece is None
        self._length += len(piece or "")
        return piece or ""

    def finish(self) -> str:
        if not self._pending:
            return ""
        return self._tokenizer.decode(self._ids, skip_special_tokens=False)[self._length :]


@functools.cache
def byte_letters() -> dict[str, int]:
    """Returns the letters that byte-level tokenizers write for bytes: printable ones as they are, others from 256 on.

    Source: `bytes_to_unicode` of GPT-2's encoder.py, https://github.com/openai/gpt-2.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
