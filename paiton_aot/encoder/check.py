"""Compares an encoder file with the tokenizers library, token by token, on texts that look for a difference."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from paiton_aot.encoder.pattern import NotCoveredError
from paiton_artifacts.encoder_file import NO_CLASS, EncoderFile
from paiton_runtime.encoder import Encoder

_CONTEXTS = ("{}", "{}{}", " {}", "{} ", "a{}b", "1{}2", "'{}", "  {}", "\n{}\n", "!{}?", "A{}s")
_PIECES = (
    *(" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u2028", "\u200b", "\ufeff"),
    *("'s", "'S", "'t", "'RE", "'ll", "'\u017f", "\u2019s", "'", '"', "''", "don't", "we'VE", "I'm", "'d"),
    *("0", "7", "42", "123", "1234567", "3.14", "1,000", "\u00bd", "\u0663\u0664", "\u2167", "x2", "v1.0"),
    *("a", "I", "the", "Hello", "HELLO", "camelCase", "snake_case", "\u00e9", "e\u0301", "na\u00efve", "\u00df"),
    *("\u01c5", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f"),
    *("\uc548\ub155", "\u1112\u1161", "\u0639\u0631\u0628\u064a", "\u05e9\u05dc\u05d5\u05dd"),
    *("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e44\u0e17\u0e22", "\U0001d400", "\U0001f642"),
    *("\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea", "\u2603", "\u20ac", "\u2013", "\u2026"),
    *(".", ",", "!?", "...", "-", "--", "/", "//", "\\", "(", ")", "[]", "{}", "<", ">", "<|", "|>", "#", "@", "=="),
    *("def f(x):\n    return x\n", "https://example.org/?q=1&r=2", "\x00", "\x7f", "\u0085", "\ufffd"),
)
_MIXTURES = 1500
_SEED = 8


def check_encoder(file: EncoderFile, data: bytes, tokenizer: Tokenizer) -> int:
    """Encodes and decodes with both.

    Args:
        file: contents of the encoder file.
        data: its bytes.
        tokenizer: of the library.

    Returns:
        How many texts were compared.

    Raises:
        NotCoveredError: they differ somewhere.
    """
    encoder = Encoder(data, "the encoder file")
    texts = [*_tokens(file), *_boundaries(file), *_mixtures(file)]
    wanted = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for text, encoding in zip(texts, wanted, strict=True):
        found = encoder.encode(text.encode())
        if found is not None and found != encoding.ids:
            raise NotCoveredError(f"the library's tokens of {text!r}: {encoding.ids} instead of {found}")
    ids = range(len(file.texts))
    decoded = tokenizer.decode_batch([[id_] for id_ in ids], skip_special_tokens=False)
    for id_, text in zip(ids, decoded, strict=True):
        if encoder.texts.text(id_).decode(errors="replace") != text:
            raise NotCoveredError(f"the library's text of token {id_}: {text!r}")
    return len(texts)


def _tokens(file: EncoderFile) -> Iterator[str]:
    """Yields the text of every token, and beginnings and repetitions of the added ones."""
    for text in file.texts:
        yield text.decode(errors="replace")
    for token in file.added:
        added = file.texts[token].decode()
        yield f"x{added}{added} {added[:-1]}{added}\n{added[1:]}"


def _boundaries(file: EncoderFile) -> Iterator[str]:
    """Yields, in several contexts, the first and the last of all adjacent characters of one class."""
    classes = np.frombuffer(file.classes, np.uint8)
    starts = np.flatnonzero(classes[1:] != classes[:-1])
    numbers = sorted({*starts.tolist(), *(starts + 1).tolist()})
    edges = [chr(number) for number in numbers if classes[number] != NO_CLASS]
    for context in _CONTEXTS:
        for first in range(0, len(edges), 256):
            yield "".join(context.replace("{}", edge) for edge in edges[first : first + 256])
    draw = random.Random(_SEED)  # noqa: S311  (the same texts each time)
    for _ in range(64):
        yield "".join(draw.choices(edges, k=64))


def _mixtures(file: EncoderFile) -> Iterator[str]:
    """Yields pieces of many kinds in random order."""
    draw = random.Random(_SEED)  # noqa: S311  (the same texts each time)
    added = [file.texts[token].decode() for token in file.added]
    pieces: Sequence[str] = [*_PIECES, *added[:16]]
    for _ in range(_MIXTURES):
        yield "".join(draw.choices(pieces, k=draw.randrange(1, 16)))
    yield "".join(draw.choices(pieces, k=4000))
    yield from (piece * 300 for piece in _PIECES)
