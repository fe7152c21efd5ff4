"""SentencePiece vocabularies as tokenizer.json: pieces with scores become the tokenizers library's BPE or Unigram."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from paiton_aot.checkpoint.tokenizer_json import added_token, assemble
from paiton_artifacts.errors import TokenizerError

SPACE = "▁"

ALGORITHMS: Mapping[int, str] = {1: "Unigram", 2: "BPE"}
"""SentencePiece's numbers of the algorithms that the tokenizers library has under these names."""


class PieceKind(IntEnum):
    """What a piece is for; SentencePiece's numbers, and GGUF's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """A token: its text, with ▁ for spaces, its score (higher merges earlier), and its kind."""

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True, slots=True)
class PieceModel:
    """A SentencePiece model.

    Attributes:
        pieces: by token id.
        algorithm: "BPE" or "Unigram".
        byte_fallback: what no piece covers becomes pieces such as <0x0A>, one for each byte.
        add_space_prefix: a text begins with a space of its own.
        remove_extra_spaces: spaces at both ends and repeated ones are dropped.
        charsmap: compiled normalisation rules; empty for none.
    """

    pieces: Sequence[Piece]
    algorithm: str
    byte_fallback: bool
    add_space_prefix: bool
    remove_extra_spaces: bool
    charsmap: bytes = b""


def tokenizer_document(
    model: PieceModel, what: str, hint: str, *, prefix_first_only: bool = False
) -> dict[str, object]:
    """Returns the content of a tokenizer.json with the same ids for every text.

    Control tokens become special tokens, which SentencePiece itself would never find in a text.

    Args:
        model: the vocabulary.
        what: names its file in errors.
        hint: what to do when it is no good.
        prefix_first_only: only a text's beginning gets a space of its own, and only where it has none: the opposite of
            transformers' "legacy". Otherwise the text behind each special token gets one, too.

    Raises:
        TokenizerError: a token occurs twice, none stands for what is unknown, or the tokenizers library would find
            user-defined tokens where SentencePiece does not.
    """
    texts = [piece.text for piece in model.pieces]
    if len(set(texts)) != len(texts):
        raise TokenizerError(f"{what} has {len(texts) - len(set(texts))} tokens twice", hint=hint)
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.kind is PieceKind.UNKNOWN), None)
    if unknown is None:
        raise TokenizerError(f"{what} has no token for unknown characters", hint=hint)
    defined = [piece.text for piece in model.pieces if piece.kind is PieceKind.USER_DEFINED]
    # A Prepend would also go in front of each user-defined token, as the library normalises those as well.
    first_only = prefix_first_only or bool(defined)
    normalizer, pre_tokenizer = _spaces(model, first_only=first_only)
    if defined and (odd := _odd_token(model, defined, texts, spaced=pre_tokenizer is None)):
        raise TokenizerError(f"{what} has the user-defined token {odd!r}, which cannot be converted", hint=hint)
    pieces = _unigram(model, unknown) if model.algorithm == "Unigram" else _bpe(model, texts[unknown])
    return assemble(_added_tokens(model), normalizer, pre_tokenizer, _decoder(model), pieces)


def _odd_token(model: PieceModel, defined: Sequence[str], texts: Sequence[str], *, spaced: bool) -> str | None:
    """Returns a user-defined token that the tokenizers library would not find where SentencePiece does.

    That is any of them where a normaliser puts a space in front of everything; one with a space where ▁ comes after
    they are looked for; and in a Unigram model, which weighs its tokens against each other, a part of another token.
    """
    if model.add_space_prefix and spaced:
        return defined[0]
    late = model.add_space_prefix or model.algorithm == "Unigram"
    if late and (marked := next((text for text in defined if SPACE in text), None)):
        return marked
    if model.algorithm == "BPE":
        return None
    return next((text for text in defined if any(text in other and text != other for other in texts)), None)


def _added_tokens(model: PieceModel) -> list[dict[str, object]]:
    """Returns what is matched whole: control tokens as they stand, user-defined ones in the normalised text."""
    defined, kinds = PieceKind.USER_DEFINED, (PieceKind.CONTROL, PieceKind.UNKNOWN, PieceKind.USER_DEFINED)
    return [
        {"id": i, **added_token(piece.text, special=piece.kind is not defined, normalized=piece.kind is defined)}
        for i, piece in enumerate(model.pieces)
        if piece.kind in kinds
    ]


def _spaces(model: PieceModel, *, first_only: bool) -> tuple[dict[str, object] | None, dict[str, object] | None]:
    """Returns normalizer and pre-tokenizer, which turn spaces into ▁."""
    steps: list[dict[str, object]] = []
    if model.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()})
    if model.remove_extra_spaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    # Where a normaliser has dropped spaces, Metaspace no longer knows what was first.
    if model.add_space_prefix and first_only and not steps:
        return None, {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
    steps += [{"type": "Prepend", "prepend": SPACE}] if model.add_space_prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}, None


def _decoder(model: PieceModel) -> dict[str, object]:
    steps: list[dict[str, object]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}] if model.byte_fallback else []
    steps.append({"type": "Fuse"})
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.add_space_prefix else []
    return {"type": "Sequence", "decoders": steps}


def _unigram(model: PieceModel, unknown: int) -> dict[str, object]:
    return {
        "type": "Unigram",
        "unk_id": unknown,
        "vocab": [[piece.text, piece.score] for piece in model.pieces],
        "byte_fallback": model.byte_fallback,
    }


def _bpe(model: PieceModel, unknown: str) -> dict[str, object]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece.text: index for index, piece in enumerate(model.pieces)},
        "merges": _merges(model.pieces),
    }


def _merges(pieces: Sequence[Piece]) -> list[list[str]]:
    """Returns the pairs that make each piece, best first.

    SentencePiece merges whichever neighbours give the piece with the highest score; a list of merges says the same
    when every way to cut a piece in two is in it, in the order of scores.
    """
    merging = (PieceKind.NORMAL, PieceKind.UNUSED, PieceKind.USER_DEFINED)
    ids = {piece.text: index for index, piece in enumerate(pieces) if piece.kind in merging}
    found = []
    for piece in pieces:
        if piece.kind not in merging or len(piece.text) == 1:
            continue
        pairs = [(piece.text[:at], piece.text[at:]) for at in range(1, len(piece.text))]
        known = sorted((ids[left], ids[right]) for left, right in pairs if left in ids and right in ids)
        found += [(-piece.score, left, right) for left, right in known]
    found.sort(key=lambda merge: merge[0])  # stable: pieces of the same score stay in the order of their ids
    return [[pieces[left].text, pieces[right].text] for _, left, right in found]
