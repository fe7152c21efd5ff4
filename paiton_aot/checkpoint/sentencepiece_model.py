"""SentencePiece models (tokenizer.model): the few fields of the protocol buffer that encoding depends on.

Read by hand: the wire format has four kinds of fields, and the sentencepiece library is no small one to depend on.
Fields: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto; wire format:
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from paiton_aot.checkpoint.pieces import ALGORITHMS, Piece, PieceKind, PieceModel
from paiton_artifacts.errors import TokenizerError

_AGAIN = "the file is damaged or incomplete: fetch it again"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Numbers of fields: of the model, of a piece, of the trainer's and of the normalizer's specification.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _KIND = 1, 2, 3
_ALGORITHM, _WHITESPACE_AS_SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_WHITESPACES, _ESCAPE_WHITESPACES = 2, 3, 4, 5

_UNIGRAM = 1


def parse_sentencepiece(data: bytes, what: str) -> PieceModel:
    """Returns the model that the content of a tokenizer.model describes.

    Raises:
        TokenizerError: it is damaged, or of a kind that the tokenizers library cannot do.
    """
    try:
        return _parse(data, what)
    # A length that leads out of the data, a text that is not UTF-8, a number in a field of another kind.
    except (IndexError, ValueError, struct.error, TypeError, AttributeError) as error:
        raise TokenizerError(f"{what} is no SentencePiece model: {error}", hint=_AGAIN) from error


def _parse(data: bytes, what: str) -> PieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == _PIECES:
            pieces.append(_piece(dict(_fields(value))))
        elif number == _TRAINER:
            trainer = dict(_fields(value))
        elif number == _NORMALIZER:
            normalizer = dict(_fields(value))
    algorithm = trainer.get(_ALGORITHM, _UNIGRAM)
    if not isinstance(algorithm, int) or algorithm not in ALGORITHMS:
        raise TokenizerError(
            f"{what} has SentencePiece's model type {algorithm!r}",
            hint=f"supported: {', '.join(f'{number} ({name})' for number, name in ALGORITHMS.items())}",
        )
    if trainer.get(_WHITESPACE_AS_SUFFIX, 0) or not normalizer.get(_ESCAPE_WHITESPACES, 1):
        raise TokenizerError(
            f"{what} writes spaces as suffixes, or leaves them as they are",
            hint="supported: SentencePiece models that put ▁ in front of words",
        )
    charsmap = normalizer.get(_CHARSMAP, b"")
    return PieceModel(
        pieces=pieces,
        algorithm=ALGORITHMS[algorithm],
        byte_fallback=bool(trainer.get(_BYTE_FALLBACK, 0)),
        add_space_prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)),
        remove_extra_spaces=bool(normalizer.get(_EXTRA_WHITESPACES, 1)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
    )


def _piece(fields: dict[int, int | bytes]) -> Piece:
    text, score, kind = fields[_PIECE], fields.get(_SCORE, bytes(4)), fields.get(_KIND, PieceKind.NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise TypeError("a piece without text")
    (value,) = struct.unpack("<f", score)
    return Piece(text.decode(), value, PieceKind(kind))


def _fields(data: int | bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of each field: an integer, or the bytes of everything else."""
    if not isinstance(data, bytes):
        raise TypeError("a number where a message belongs")
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"field {number} has wire type {kind}")
        if size > len(data) - at:
            raise IndexError(f"field {number} of {size} bytes exceeds its message")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns an unsigned integer of 7 bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at + shift // 7]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + shift // 7 + 1
    raise ValueError("an integer of more than 64 bits")
