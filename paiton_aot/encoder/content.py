"""What an encoder file holds, from a tokenizer.json: byte-level BPE whose patterns `pattern.py` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from paiton_aot.encoder.characters import Set, inert, known, numeric
from paiton_aot.encoder.pattern import Alternative, NotCoveredError, Step, classes_of, parse
from paiton_artifacts.encoder_file import (
    CHARACTERS,
    NO_CLASS,
    NO_LIMIT,
    NO_TOKEN,
    SECOND_PASS,
    SPECIAL,
    EncoderFile,
    Item,
    Merge,
)
from paiton_runtime.text import byte_letters

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What the pre-tokenizer ByteLevel cuts at: GPT-2's encoder.py, https://github.com/openai/gpt-2."""

_MAX_TOKENS = 1 << 22

Document = Mapping[str, Any]


def encoder_content(document: Document, tokenizer: Tokenizer) -> EncoderFile:
    """Returns the encoder file's contents.

    Args:
        document: the tokenizer.json.
        tokenizer: what the tokenizers library makes of it.

    Raises:
        NotCoveredError: it has something that encoder files do not.
    """
    model = document["model"]
    _check_model(model)
    if document["decoder"] is None or document["decoder"]["type"] != "ByteLevel":
        raise NotCoveredError("a decoder that is not ByteLevel")
    added = _added(document, tokenizer)
    stages = _stages(document["pre_tokenizer"])
    covered = _covered(document["normalizer"])
    sets = classes_of(stages)
    vocabulary: Mapping[str, int] = model["vocab"]
    spelled = {token: _spell(text) for text, token in vocabulary.items()}
    texts = _texts(spelled, added, tokenizer)
    flags = {token: SPECIAL * entry.special + SECOND_PASS * entry.normalized for token, entry in added.items()}
    if _is_changed(covered, [texts[token] for token, entry in added.items() if entry.normalized]):
        raise NotCoveredError("added tokens that normalisation changes")
    whole = model.get("ignore_merges") is True
    return EncoderFile(
        stages=[[[_item(step, sets) for step in alternative] for alternative in stage] for stage in stages],
        classes=_classes(sets, covered),
        byte_tokens=[
            vocabulary.get(letter, NO_TOKEN) for _, letter in sorted((b, c) for c, b in byte_letters().items())
        ],
        texts=texts,
        merges=_merges(model["merges"], vocabulary),
        words=[token for token, text in spelled.items() if text] if whole else [],
        added=flags,
    )


def _check_model(model: Document) -> None:
    if model.get("type") != "BPE":
        raise NotCoveredError(f"a model of type {model.get('type')}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise NotCoveredError(f"a model with {name}")


def _stages(pre_tokenizer: Document | None) -> list[list[Alternative]]:
    """Returns the patterns that a text is cut at, one after the other."""
    members = _members(pre_tokenizer, "pretokenizers")
    if not members or members[-1]["type"] != "ByteLevel":
        raise NotCoveredError("a pre-tokenizer that does not end with ByteLevel")
    return [stage for member in members for stage in _stage(member, last=member is members[-1])]


def _stage(member: Document, *, last: bool) -> list[list[Alternative]]:
    kind = member["type"]
    if kind == "ByteLevel" and last and not member["add_prefix_space"]:
        return [parse(GPT2_PATTERN)] if member.get("use_regex", True) else []
    if kind == "Digits":
        return [[(Step(numeric(), most=1 if member["individual_digits"] else NO_LIMIT),)]]
    if kind == "Split" and member["behavior"] == "Isolated" and not member["invert"] and "Regex" in member["pattern"]:
        return [parse(member["pattern"]["Regex"])]
    raise NotCoveredError(f"the pre-tokenizer {json.dumps(member)}")


def _members(component: Document | None, name: str) -> Sequence[Document]:
    """Returns the members of a sequence, or the component itself."""
    if component is None:
        return ()
    if component["type"] != "Sequence":
        return (component,)
    return [inner for member in component[name] for inner in _members(member, name)]


def _covered(normalizer: Document | None) -> Set:
    """Returns the characters that no normaliser changes."""
    kinds = {member["type"] for member in _members(normalizer, "normalizers")}
    if kinds - {"NFC"}:
        raise NotCoveredError(f"the normalizer {', '.join(sorted(kinds))}")
    return known() & inert() if kinds else known()


def _added(document: Document, tokenizer: Tokenizer) -> dict[int, Any]:
    """Returns the added tokens as the library has them."""
    added = tokenizer.get_added_tokens_decoder()
    for entry in added.values():
        if entry.single_word or entry.lstrip or entry.rstrip:
            raise NotCoveredError(f"the added token {entry.content!r}, which takes spaces or whole words only")
    declared = {entry["content"] for entry in document["added_tokens"]}
    if {entry.content for entry in added.values()} != declared or len(declared) != len(added):
        raise NotCoveredError("added tokens of the same text or number")
    return added


def _spell(text: str) -> bytes:
    """Returns the bytes of a token that is written in letters for bytes; nothing for one that is not."""
    letters = byte_letters()
    return bytes(letters[letter] for letter in text) if all(letter in letters for letter in text) else b""


def _texts(spelled: Mapping[int, bytes], added: Mapping[int, Any], tokenizer: Tokenizer) -> list[bytes]:
    """Returns what every token stands for."""
    count = 1 + max([*spelled, *added])
    if count > _MAX_TOKENS:
        raise NotCoveredError(f"token {count - 1}")
    texts = [b""] * count
    for token, text in spelled.items():
        texts[token] = text or (tokenizer.id_to_token(token) or "").encode()
    for token, entry in added.items():
        texts[token] = entry.content.encode()
    return texts


def _merges(merges: Sequence[Any], vocabulary: Mapping[str, int]) -> list[Merge]:
    made: dict[tuple[int, int], Merge] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pair = vocabulary[left], vocabulary[right]
        if pair in made:
            raise NotCoveredError(f"the merge of {left!r} and {right!r}, which is there twice")
        made[pair] = Merge(*pair, rank, vocabulary[left + right])
    return list(made.values())


def _item(step: Step, sets: Sequence[Set]) -> Item:
    held = [n for n, members in enumerate(sets) if step.members[members.argmax()]]
    return Item(sum(1 << n for n in held), step.least, step.most, step.lookahead)


def _classes(sets: Sequence[Set], covered: Set) -> bytes:
    classes = np.full(CHARACTERS, NO_CLASS, np.uint8)
    for n, members in enumerate(sets):
        classes[members] = n
    classes[~covered] = NO_CLASS
    return classes.tobytes()


def _is_changed(covered: Set, texts: Sequence[bytes]) -> bool:
    return any(not covered[ord(character)] for text in texts for character in text.decode())
