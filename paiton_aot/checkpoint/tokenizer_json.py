"""The parts of a tokenizer.json, as the tokenizers library writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


def as_bytes(document: Mapping[str, object]) -> bytes:
    """Returns a tokenizer.json's bytes; the same for the same content."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def assemble(
    added_tokens: Sequence[Mapping[str, object]],
    normalizer: Mapping[str, object] | None,
    pre_tokenizer: Mapping[str, object] | None,
    decoder: Mapping[str, object],
    model: Mapping[str, object],
) -> dict[str, object]:
    """Returns the content of a tokenizer.json that neither truncates, pads nor adds tokens around a text."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def added_token(text: str, *, special: bool, normalized: bool) -> dict[str, object]:
    """Returns a token that is matched in the text before it is split; `assemble` wants its "id" in front.

    Args:
        text: the token.
        special: decoding may leave it out.
        normalized: it is looked for in the normalised text.
    """
    return {
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized,
        "special": special,
    }
