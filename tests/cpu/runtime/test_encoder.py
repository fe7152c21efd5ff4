"""The encoder file beside the tokenizers library: the same tokens and texts, or a refusal that says why."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import struct
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from paiton_aot.checkpoint.gguf_tokenizer import BYTE_LEVEL, PRE_TOKENIZERS
from paiton_aot.encoder import cached_encoder, make_encoder
from paiton_aot.encoder.check import check_encoder
from paiton_aot.encoder.content import encoder_content
from paiton_aot.encoder.pattern import NotCoveredError, parse
from paiton_aot.identity.build_key import BuildKey
from paiton_artifacts.errors import UsageError, VerificationError
from paiton_runtime.encoder import Encoder
from tests.independent_encoder import IndependentEncoder
from tests.text_codec import make_codec, sentencepiece_tokenizer

KINDS = ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken")
WORDS = "na\u00efve caf\u00e9 \u4e16\u754c \u041f\u0440\u0438\u0432\u0435\u0442 12345 don't WON'T "
CORPUS = [Path(__file__).read_text(), *(WORDS * 9,) * 3]
USUAL: tuple[str, ...] = (" ", "  ", "\n", "a", "Z", "'s", "'LL", "7", "42", ".", "\u00e9", "\u4e16")
USUAL += ("<|im_start|>", "im_start", "<|i", "    ")
BEYOND = (r"\p{L}*", r"a++", r"a+?", r"[a&&b]", r"[a[b]]", r"^a", r"(?i:st)", r"(?:ab)", r"a|", r"\bw", r"[b-a]", "[")
CHATML = ("<|im_start|>", "<|im_end|>", "<|im", "<pad>")


@functools.cache
def tokenizer_json(kind: str) -> bytes:
    """Returns a small tokenizer that cuts text as models do: trained, with added tokens of every kind."""
    splitting = PRE_TOKENIZERS[kind]
    tokenizer = Tokenizer(models.BPE())
    document = json.loads(tokenizer.to_str())
    document |= {"pre_tokenizer": splitting.pre_tokenizer, "normalizer": splitting.normalizer, "decoder": BYTE_LEVEL}
    tokenizer = Tokenizer.from_str(json.dumps(document))
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([*CHATML])
    tokenizer.add_tokens(["im_start", "    "])  # normalised ones: found in what the special ones leave
    document = json.loads(tokenizer.to_str())
    document["model"]["ignore_merges"] = splitting.ignore_merges
    return json.dumps(document).encode()


def changed(source: bytes, **parts: Any) -> bytes:
    """Returns a tokenizer with parts of its model, or of itself, replaced."""
    document = json.loads(source)
    document["model"] |= {name: value for name, value in parts.items() if name in document["model"]}
    document |= {name: value for name, value in parts.items() if name not in document["model"]}
    return json.dumps(document).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_gives_the_tokens_of_the_library(kind: str) -> None:
    source = tokenizer_json(kind)
    data, refusal = make_encoder(source)
    assert data is not None, refusal
    encoder, tokenizer = Encoder(data, "encoder.bin"), Tokenizer.from_str(source.decode())
    draw = random.Random(kind)
    covered = 0
    for text in (_text(draw) for _ in range(1500)):
        found = encoder.encode(text.encode())
        if found is None:
            # Characters for private use, and where there is a normaliser those that it might change.
            odd = [c for c in text if unicodedata.category(c) in ("Co", "Cn") or (kind == "qwen2" and not c.isascii())]
            assert odd, text
        else:
            covered += 1
            assert found == tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids, text
    independent = IndependentEncoder(data)
    for text in (_text(draw) for _ in range(60)):
        assert independent.encode(text) == encoder.encode(text.encode())
    assert covered > (400 if kind == "qwen2" else 1300)


def _text(draw: random.Random) -> str:
    """Returns characters of all of Unicode, with the usual ones in between."""
    parts = []
    for _ in range(draw.randrange(1, 24)):
        if draw.random() < 0.7:
            parts.append(draw.choice(USUAL))
            continue
        number = draw.choice((draw.randrange(0x300), draw.randrange(0x3000), draw.randrange(0x32000)))
        parts.append(chr(number) if not 0xD800 <= number < 0xE000 else "\u2603")
    return "".join(parts)


def test_a_codec_is_the_same_with_and_without() -> None:
    source = tokenizer_json("smollm")
    data, _ = make_encoder(source)
    plain, quick = make_codec(source=source, add_bos=True), make_codec(source=source, add_bos=True, encoder=data)
    assert quick.special_ids == plain.special_ids
    assert quick.byte_level
    draw = random.Random(1)
    for text in ["", *(_text(draw) for _ in range(200))]:
        ids = plain.encode(text)
        assert quick.encode(text) == ids
        for skip in (True, False):
            assert quick.decode(ids, skip_special_tokens=skip) == plain.decode(ids, skip_special_tokens=skip)
    ids = [*range(720)]
    assert list(map(quick.token_bytes, ids)) == list(map(plain.token_bytes, ids))
    streams = quick.stream(), plain.stream()
    assert [streams[0].push(id_) for id_ in ids] == [streams[1].push(id_) for id_ in ids]
    with pytest.raises(UsageError, match="lone surrogate"):
        quick.encode("a\ud800")


def test_a_text_that_the_file_does_not_cover_is_the_librarys() -> None:
    source = tokenizer_json("qwen2")
    data, _ = make_encoder(source)
    assert data is not None
    text = "e\u0301 \u1100\u1161 \ue000"
    assert Encoder(data, "encoder.bin").encode(text.encode()) is None
    codec = make_codec(source=source, encoder=data)
    assert codec.encode("plain") == Tokenizer.from_str(source.decode()).encode("plain").ids
    assert codec._tokenizer is None
    assert codec.encode(text) == Tokenizer.from_str(source.decode()).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"byte_fallback": True}, "a model with byte_fallback"),
        ({"dropout": 0.5}, "a model with dropout"),
        ({"normalizer": {"type": "Lowercase"}}, "the normalizer Lowercase"),
        ({"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}}, "add_prefix_space"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "does not end with ByteLevel"),
        ({"decoder": None}, "a decoder that is not ByteLevel"),
    ],
)
def test_what_is_not_covered_is_named(parts: Mapping[str, Any], reason: str) -> None:
    data, refusal = make_encoder(changed(tokenizer_json("gpt-2"), **parts))
    assert data is None
    assert reason in refusal


def test_other_kinds_of_tokenizers_are_not_covered() -> None:
    assert make_encoder(sentencepiece_tokenizer()) == (None, "a model with byte_fallback")
    tokenizer = Tokenizer.from_str(tokenizer_json("gpt-2").decode())
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    assert "which takes spaces" in make_encoder(tokenizer.to_str().encode())[1]


@pytest.mark.parametrize("pattern", BEYOND)
def test_patterns_beyond_the_subset_are_refused(pattern: str) -> None:
    with pytest.raises(NotCoveredError, match="the pattern"):
        parse(pattern)


def test_a_difference_is_found() -> None:
    source = tokenizer_json("gpt-2")
    tokenizer = Tokenizer.from_str(source.decode())
    content = encoder_content(json.loads(source), tokenizer)
    assert check_encoder(content, content.pack(), tokenizer) > 1000
    merges = [dataclasses.replace(merge, rank=len(content.merges) - merge.rank) for merge in content.merges]
    content = dataclasses.replace(content, merges=merges)
    with pytest.raises(NotCoveredError, match="the library's tokens of"):
        check_encoder(content, content.pack(), tokenizer)


def test_a_long_text_takes_linear_time() -> None:
    data, _ = make_encoder(tokenizer_json("llama-bpe"))
    assert data is not None
    encoder = Encoder(data, "encoder.bin")
    for piece in (" ", "\n ", "a", "A", "<", "<|im", "1", "\u00e9"):
        assert encoder.encode((piece * 100_000).encode())


def test_a_malformed_file_is_refused_or_harmless() -> None:
    data, _ = make_encoder(tokenizer_json("llama-bpe"))
    assert data is not None
    texts = [b"The <|im_start|> don't\n\n  x 123", "na\u00efve \U0001f642".encode()]
    for size in (0, 7, 63, 64, 100, len(data) - 8, len(data) - 1):
        with pytest.raises(VerificationError, match=r"encoder\.bin: not an encoder file"):
            Encoder(data[:size], "encoder.bin")
    draw = random.Random(3)
    refused = 0
    head = 64 + 24 * 64 + 8 * 32  # the header and the patterns, where a bit matters most
    for turn in range(3000):
        damaged = bytearray(data)
        at = draw.randrange(head if turn % 2 else len(data))
        if turn % 3:
            damaged[at] ^= 1 << draw.randrange(8)
        else:
            struct.pack_into("<I", damaged, min(at & ~3, len(data) - 4), draw.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF)))
        try:
            encoder = Encoder(bytes(damaged), "encoder.bin")
        except VerificationError:
            refused += 1
            continue
        for text in texts:
            ids = encoder.encode(text)
            assert ids is None or len(ids) <= len(text)
    assert 200 < refused < 2900


def test_a_pattern_that_backtracks_without_end_is_given_up() -> None:
    pattern = r"a{0,999}a{0,999}a{0,999}b"
    splitting = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {**BYTE_LEVEL, "use_regex": False}
    source = changed(tokenizer_json("gpt-2"), pre_tokenizer={"type": "Sequence", "pretokenizers": [splitting, level]})
    tokenizer = Tokenizer.from_str(source.decode())
    content = encoder_content(json.loads(source), tokenizer)
    assert Encoder(content.pack(), "encoder.bin").encode(b"a" * 2000) is None
    assert Encoder(content.pack(), "encoder.bin").encode(b"aab") is not None


def test_a_file_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tokenizer_json("gpt-2")
    components = {"sources/build": "a", "sources/format": "b", "tool/numpy": "1", "tool/tokenizers": "2"}
    first = cached_encoder(source, BuildKey(components), tmp_path)
    assert first == make_encoder(source)
    monkeypatch.setattr("paiton_aot.encoder.make_encoder", lambda _: (None, "made again"))
    assert cached_encoder(source, BuildKey(components), tmp_path) == first
    changed_tool = BuildKey({**components, "tool/tokenizers": "3"})
    assert cached_encoder(source, changed_tool, tmp_path) == (None, "made again")
