"""SentencePiece models converted to tokenizer.json: the ids of the sentencepiece library itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import LlamaTokenizer

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.base import TokenizerFiles
from paiton_aot.checkpoint.pieces import tokenizer_document
from paiton_aot.checkpoint.sentencepiece_model import parse_sentencepiece
from paiton_aot.checkpoint.tokenizer_json import as_bytes
from paiton_artifacts.errors import TokenizerError
from tests.cpu.checkpoint.probes import GEMMA, PLAIN, TEXTS, train
from tests.make_checkpoints import edit_json


@functools.cache
def trained(kind: str, *, byte_fallback: bool = True, **_: object) -> bytes:
    return train(kind, byte_fallback=byte_fallback, **PLAIN)


def converted(data: bytes, **options: bool) -> Tokenizer:
    return Tokenizer.from_buffer(as_bytes(tokenizer_document(parse_sentencepiece(data, "it"), "it", "hint", **options)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bpe", {**PLAIN, "byte_fallback": True}),  # as Llama 2 and Mistral
        ("bpe", {**GEMMA, "byte_fallback": True}),
        ("bpe", {"normalization_rule_name": "nmt_nfkc"}),
        ("unigram", {**PLAIN, "byte_fallback": True}),
        ("unigram", {"normalization_rule_name": "nmt_nfkc"}),
        ("unigram", {**PLAIN, "add_dummy_prefix": False, "user_defined_symbols": ["<sep>"]}),
    ],
)
def test_ids_equal_those_of_sentencepiece(kind: str, options: dict[str, object]) -> None:
    data = train(kind, **options)
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = converted(data)
    assert [ours.id_to_token(i) for i in range(500)] == [reference.id_to_piece(i) for i in range(500)]
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == reference.encode(text), text
        assert ours.decode(ids, skip_special_tokens=False) == reference.decode(ids).replace(" ⁇ ", "<unk>"), text


def test_only_the_beginning_gets_a_space_where_the_repository_says_so(tmp_path: Path) -> None:
    """As transformers' class for the tokenizers of Llama does it."""
    data = trained("bpe")
    ours = converted(data, prefix_first_only=True)
    (tmp_path / "tokenizer.model").write_bytes(data)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    reference = LlamaTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, "<s>Hello</s> there<s> you"):
        assert ours.encode(text, add_special_tokens=False).ids == reference(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("word", PLAIN, "model type 3"),
        ("char", PLAIN, "model type 4"),
        ("bpe", {**PLAIN, "treat_whitespace_as_suffix": True}, "suffixes"),
        ("bpe", {**PLAIN, "user_defined_symbols": ["a▁b"]}, "user-defined token 'a▁b'"),
        ("unigram", {**GEMMA}, "user-defined token '▁▁'"),
        ("bpe", {"user_defined_symbols": ["<sep>"]}, "user-defined token '<sep>'"),
    ],
)
def test_what_the_tokenizers_library_would_do_otherwise_is_refused(
    kind: str, options: dict[str, object], message: str
) -> None:
    data = train(kind, **options, **({"hard_vocab_limit": False} if kind in {"word", "char"} else {}))
    with pytest.raises(TokenizerError, match=message):
        converted(data)


def repository(path: Path, data: bytes) -> Path:
    """Leaves the tokenizer as a SentencePiece model only."""
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.model").write_bytes(data)
    (path / "tokenizer_config.json").write_text("{}")
    return path


def tokenizer_of(path: Path) -> TokenizerFiles:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.tokenizer()


def test_a_repository_with_a_model_only(tiny: Path) -> None:
    data = trained("bpe")
    files = tokenizer_of(repository(tiny, data))
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = Tokenizer.from_buffer(files.tokenizer_json)
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False).ids == reference.encode(text)
    assert files.add_bos is True
    edit_json(tiny / "tokenizer_config.json", add_bos_token=False)
    assert tokenizer_of(tiny).add_bos is False
    edit_json(tiny / "tokenizer_config.json", add_bos_token=True, legacy=False)
    assert '"Metaspace"' in tokenizer_of(tiny).tokenizer_json.decode()


def cut(data: bytes) -> bytes:
    return data[:-3]


def endless(_: bytes) -> bytes:
    return b"\xff" * 40


def long_piece(data: bytes) -> bytes:
    return b"\x0a\xff\xff\xff\x7f" + data


def number_as_piece(data: bytes) -> bytes:
    return b"\x08\x01" + data


def no_text(data: bytes) -> bytes:
    return b"\x0a\x04\x0a\x02\xff\xfe" + data


def unknown_kind(data: bytes) -> bytes:
    return b"\x0a\x05\x0a\x01a\x18\x63" + data


def twice(data: bytes) -> bytes:
    return data + b"\x0a\x05\x0a\x03<s>"


def nothing_unknown(_: bytes) -> bytes:
    return b"\x0a\x03\x0a\x01a"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "no SentencePiece model"),
        (endless, "no SentencePiece model"),
        (long_piece, "exceeds its message"),
        (number_as_piece, "no SentencePiece model"),
        (no_text, "no SentencePiece model"),
        (unknown_kind, "no SentencePiece model"),
        (twice, "1 tokens twice"),
        (nothing_unknown, "no token for unknown"),
    ],
)
def test_damaged_models(tiny: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    repository(tiny, damage(trained("unigram")))
    with open_checkpoint(tiny) as checkpoint, pytest.raises(TokenizerError, match=message) as caught:
        checkpoint.tokenizer()
    assert caught.value.exit_code == 6
    assert caught.value.hint
    assert "\n" not in str(caught.value)
