"""Tokens that a repository declares beside tokenizer.json: names for templates, and tokens that the file lacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from paiton_aot.checkpoint.fields import shown
from paiton_aot.checkpoint.files import read_object
from paiton_aot.checkpoint.tokenizer_json import added_token
from paiton_artifacts.errors import TokenizerError

NAMES = ("bos_token", "cls_token", "eos_token", "mask_token", "pad_token", "sep_token", "unk_token")
"""What transformers hands to chat templates, as far as a tokenizer has it."""

_HINT = "save the tokenizer again with transformers"


def named_tokens(path: Path, config: Mapping[str, object]) -> dict[str, str]:
    """Returns the texts of the tokens that have a name; what tokenizer_config.json says counts more.

    Args:
        path: the repository's directory.
        config: the content of its tokenizer_config.json.
    """
    map_path = path / "special_tokens_map.json"
    older = read_object(map_path) if map_path.is_file() else {}
    found: dict[str, str] = {}
    for name in NAMES:
        token = config.get(name, older.get(name))
        if token is None:
            continue
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str) or not text:
            raise TokenizerError(f"{path} has the {name} {shown(token)}, expected text", hint=_HINT)
        found[name] = text
    return found


def with_declared_tokens(
    tokenizer: dict[str, object], path: Path, config: Mapping[str, object], named: Mapping[str, str]
) -> dict[str, object] | None:
    """Adds what the repository declares and a tokenizer.json lacks, as transformers does when it loads it.

    Args:
        tokenizer: the content of tokenizer.json.
        path: the repository's directory.
        config: the content of its tokenizer_config.json.
        named: see `named_tokens`; they are special whoever else knows them.

    Returns:
        The completed content, None where nothing is missing.

    Raises:
        TokenizerError: a declared token has another id than tokenizer.json gives it, or one that is taken.
    """
    held = tokenizer.get("added_tokens")
    added = [token for token in held if isinstance(token, dict)] if isinstance(held, list) else []
    known = {token.get("content") for token in added}
    vocabulary = _vocabulary(tokenizer)
    texts = {index: text for text, index in vocabulary.items()} | {t.get("id"): t.get("content") for t in added}
    ids = {text: index for index, text in texts.items()}
    missing = []
    for index, token in _declared(path, config, named, vocabulary).items():
        text = token["content"]
        if ids.get(text, index) != index or texts.get(index, text) != text:
            raise TokenizerError(f"{path} declares the token {shown(text)} with id {index}, which differs", hint=_HINT)
        if text not in known:
            missing.append({"id": index, **token})
    if not missing:
        return None
    return {**tokenizer, "added_tokens": sorted([*added, *missing], key=lambda token: token["id"])}


def _declared(
    path: Path, config: Mapping[str, object], named: Mapping[str, str], vocabulary: Mapping[str, int]
) -> dict[int, dict[str, object]]:
    """Returns the declared tokens by id, as tokenizer.json writes them."""
    special = set(named.values())
    declared = {
        vocabulary[text]: added_token(text, special=True, normalized=False) for text in special if text in vocabulary
    }
    listed_path = path / "added_tokens.json"
    for text, index in (read_object(listed_path) if listed_path.is_file() else {}).items():
        if type(index) is not int:
            raise TokenizerError(f"{listed_path} has the id {shown(index)} for {shown(text)}", hint=_HINT)
        declared[index] = added_token(text, special=text in special, normalized=text not in special)
    decoder = config.get("added_tokens_decoder")
    for key, token in (decoder if isinstance(decoder, dict) else {}).items():
        if not key.isdecimal() or not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise TokenizerError(f"{path} has the added token {shown(token)} with id {shown(key)}", hint=_HINT)
        plain = added_token(token["content"], special=False, normalized=True)
        declared[int(key)] = {name: token.get(name, default) for name, default in plain.items()}
    return declared


def _vocabulary(tokenizer: Mapping[str, object]) -> dict[str, int]:
    """Returns the ids of the model's own tokens."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return {text: index for text, index in vocabulary.items() if type(index) is int}
    if isinstance(vocabulary, list):  # Unigram: pairs of text and score
        return {pair[0]: i for i, pair in enumerate(vocabulary) if isinstance(pair, list) and isinstance(pair[0], str)}
    return {}
