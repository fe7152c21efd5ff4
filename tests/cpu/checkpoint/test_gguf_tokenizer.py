"""Tokenizers rebuilt from GGUF metadata, against transformers and against SmolLM2's published pre-tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as gguf_library
import pytest
import sentencepiece
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, Qwen2Tokenizer

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.base import TokenizerFiles
from paiton_aot.checkpoint.sentencepiece_model import parse_sentencepiece
from paiton_artifacts.errors import TokenizerError
from tests.cpu.checkpoint.gguf_maker import write_gguf
from tests.cpu.checkpoint.probes import GEMMA, PLAIN, PROBES, TEXTS, train


def tokenizer_of(path: Path) -> TokenizerFiles:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.tokenizer()


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def test_smollm2_ids_equal_those_of_transformers(smollm2_gguf: Path, smollm2_hf: Path) -> None:
    ours = Tokenizer.from_buffer(tokenizer_of(smollm2_gguf).tokenizer_json)
    reference = AutoTokenizer.from_pretrained(smollm2_hf)
    assert ours.get_vocab(with_added_tokens=True) == reference.get_vocab()
    for text in PROBES:
        ids = encode(ours, text)
        assert ids == reference(text, add_special_tokens=False).input_ids, text
        assert ours.decode(ids, skip_special_tokens=False) == text
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_smollm2_splits_digits_as_its_own_tokenizer_does(smollm2_gguf: Path, smollm2_hf: Path) -> None:
    """For it, transformers takes plain ByteLevel, which gives other ids where spaces precede a digit."""
    original = Tokenizer.from_file(str(smollm2_hf / "tokenizer.json"))
    original.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    ours = Tokenizer.from_buffer(tokenizer_of(smollm2_gguf).tokenizer_json)
    for text in (*PROBES, "  12", "1 ½ m²", "a\n\n  7 8   9", "x = [\n    1,\n    22,\n]"):
        assert encode(ours, text) == encode(original, text)
    assert ours.encode("  12").tokens == ["ĠĠ", "1", "2"]


def test_smollm2_template_is_carried_over(smollm2_gguf: Path, smollm2_hf: Path) -> None:
    files = tokenizer_of(smollm2_gguf)
    assert files.chat_template == AutoTokenizer.from_pretrained(smollm2_hf).chat_template
    assert files.add_bos is False


def test_same_file_gives_the_same_bytes(gguf: Path) -> None:
    assert tokenizer_of(gguf).tokenizer_json == tokenizer_of(gguf).tokenizer_json


@pytest.mark.parametrize("pre", ["gpt-2", "default", "llama-bpe", None])
def test_ids_of_other_pre_tokenizers_equal_those_of_transformers(
    originals: Path, tmp_path: Path, pre: str | None
) -> None:
    path = write_gguf(originals / "tiny", tmp_path / "x.gguf", pre=pre)
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    ours = Tokenizer.from_buffer(tokenizer_of(path).tokenizer_json)
    for text in PROBES:
        assert encode(ours, text) == reference(text, add_special_tokens=False).input_ids, text


def test_qwen2_splits_and_composes_as_its_own_class_in_transformers(originals: Path, tmp_path: Path) -> None:
    path = write_gguf(originals / "tiny", tmp_path / "x.gguf", pre="qwen2")
    ours = Tokenizer.from_buffer(tokenizer_of(path).tokenizer_json)
    document = json.loads((originals / "tiny" / "tokenizer.json").read_text())
    vocab: dict[str, int] = document["model"]["vocab"]
    merges: Any = [tuple(merge) for merge in document["model"]["merges"]]
    reference = Qwen2Tokenizer(vocab=vocab, merges=merges)
    for text in (*PROBES[:-3], "e\u0301te\u0301 12345 x"):
        assert encode(ours, text) == reference(text, add_special_tokens=False).input_ids, text


def test_tekken_splits_words_where_capitals_begin(originals: Path, tmp_path: Path) -> None:
    path = write_gguf(originals / "tiny", tmp_path / "x.gguf", pre="tekken")
    ours = Tokenizer.from_buffer(tokenizer_of(path).tokenizer_json)
    pieces = [text for text, _ in ours.pre_tokenizer.pre_tokenize_str("aCamelCase HTTPServer 123 x/\n\n y")]
    assert pieces == ["a", "Camel", "Case", "ĠHTTPServer", "Ġ", "1", "2", "3", "Ġx", "/ĊĊ", "Ġy"]


def test_gpt_4o_splits_words_with_their_contractions(originals: Path, tmp_path: Path) -> None:
    """By the pattern of tiktoken's o200k_base, which Phi-4-mini has."""
    path = write_gguf(originals / "tiny", tmp_path / "x.gguf", pre="gpt-4o")
    ours = Tokenizer.from_buffer(tokenizer_of(path).tokenizer_json)
    pieces = [text for text, _ in ours.pre_tokenizer.pre_tokenize_str("aCamelCase I'VE don't 12345 x/\n\n y")]
    assert pieces == ["a", "Camel", "Case", "ĠI'VE", "Ġdon't", "Ġ", "123", "45", "Ġx", "/ĊĊ", "Ġy"]


def sentencepiece_keys(data: bytes, **flags: bool) -> Callable[[gguf_library.GGUFWriter], None]:
    """Writes a SentencePiece model as llama.cpp's converter does."""
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    pieces = parse_sentencepiece(data, "it").pieces

    def extra(writer: gguf_library.GGUFWriter) -> None:
        for key in ("tokens", "token_type", "merges"):
            del writer.kv_data[0][f"tokenizer.ggml.{key}"]
        del writer.kv_data[0]["llama.vocab_size"]
        padding = 384 - len(pieces)  # rows of the embedding
        writer.add_vocab_size(384)
        texts = [model.id_to_piece(i) for i in range(len(pieces))]
        writer.add_token_list([*texts, *(f"[PAD{i}]" for i in range(padding))])
        writer.add_token_scores([*map(model.get_score, range(len(pieces))), *[-1000.0] * padding])
        unused = [int(gguf_library.TokenType.UNUSED)] * padding
        writer.add_token_types([*(int(piece.kind) for piece in pieces), *unused])
        for name, flag in flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", flag)

    return extra


@pytest.mark.parametrize("options", [PLAIN | {"add_dummy_prefix": True}, PLAIN | {"add_dummy_prefix": False}, GEMMA])
def test_sentencepiece_ids_equal_those_of_its_library(originals: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    data = train("bpe", vocab_size=380, byte_fallback=True, **options)
    extra = sentencepiece_keys(data, add_space_prefix=options["add_dummy_prefix"])
    path = write_gguf(originals / "tiny", tmp_path / "x.gguf", model="llama", pre=None, extra=extra)
    files = tokenizer_of(path)
    ours, reference = (
        Tokenizer.from_buffer(files.tokenizer_json),
        sentencepiece.SentencePieceProcessor(model_proto=data),
    )
    for text in TEXTS:
        assert encode(ours, text) == reference.encode(text), text
    assert files.add_bos is True
    assert files.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_user_defined_tokens_are_matched_whole_but_not_special(originals: Path, tmp_path: Path) -> None:
    path = write_gguf(originals / "tiny", tmp_path / "x.gguf", user_defined=("Ġdog",))
    ours = Tokenizer.from_buffer(tokenizer_of(path).tokenizer_json)
    added = {token.content: token.special for token in ours.get_added_tokens_decoder().values()}
    assert added == {"<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True, "Ġdog": False}


@pytest.mark.parametrize(
    ("pre", "flag", "expected"),
    [
        ("gpt-2", None, False),
        ("gpt-2", True, True),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("qwen2", None, False),
        ("tekken", None, True),
    ],
)
def test_beginning_of_sequence(originals: Path, tmp_path: Path, pre: str, *, flag: bool | None, expected: bool) -> None:
    path = write_gguf(originals / "tiny", tmp_path / "x.gguf", pre=pre, add_bos=flag)
    assert tokenizer_of(path).add_bos is expected


def test_no_template(originals: Path, tmp_path: Path) -> None:
    assert tokenizer_of(write_gguf(originals / "tiny", tmp_path / "x.gguf", chat_template=None)).chat_template is None


def replace(key: str, value: list[str] | list[int]) -> Callable[[gguf_library.GGUFWriter], None]:
    def extra(writer: gguf_library.GGUFWriter) -> None:
        del writer.kv_data[0][key]
        writer.add_array(key, value)

    return extra


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, "holds no tokenizer"),
        ({"model": "bert"}, "tokenizer model 'bert'"),
        ({"model": "llama"}, "no score for each of its 384 tokens"),
        ({"pre": "falcon"}, "pre-tokenizer 'falcon'"),
        ({"extra": replace("tokenizer.ggml.merges", ["a b c"])}, "merge 'a b c'"),
        ({"extra": replace("tokenizer.ggml.merges", ["no such"])}, "damaged tokenizer"),
        ({"extra": replace("tokenizer.ggml.tokens", ["a", "a"])}, "no token type for each"),
        ({"extra": replace("tokenizer.ggml.tokens", ["a"] * 384)}, "383 tokens twice"),
        ({"extra": replace("tokenizer.ggml.tokens", [1, 2])}, "no tokenizer.ggml.tokens"),
    ],
)
def test_tokenizers_that_are_refused(
    originals: Path, tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    path = write_gguf(originals / "tiny", tmp_path / "x.gguf", **arguments)  # type: ignore[arg-type]
    with open_checkpoint(path) as checkpoint, pytest.raises(TokenizerError, match=message) as caught:
        checkpoint.tokenizer()
    assert "\n" not in str(caught.value)
    assert caught.value.hint
