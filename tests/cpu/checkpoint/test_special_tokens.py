"""What a repository says beside tokenizer.json and config.json: special tokens, and how to draw tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.base import TokenizerFiles
from paiton_artifacts.errors import CheckpointFormatError, TokenizerError
from paiton_artifacts.schema import NO_ADVICE, SamplingDefaults
from tests.make_checkpoints import edit_json


def tokenizer_of(path: Path) -> TokenizerFiles:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.tokenizer()


def test_names_come_from_the_tokenizers_files_then_from_the_ids(tiny: Path) -> None:
    config = json.loads((tiny / "tokenizer_config.json").read_text())
    for name in ("bos_token", "eos_token", "pad_token"):
        config.pop(name, None)
    (tiny / "tokenizer_config.json").write_text(json.dumps(config))
    edit_json(tiny / "config.json", bos_token_id=0, eos_token_id=[2, 1])
    assert tokenizer_of(tiny).special_tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    (tiny / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "pad_token": "<|im_end|>"}))
    declared = {**config, "bos_token": None, "eos_token": {"content": "<|im_start|>", "lstrip": False}}
    (tiny / "tokenizer_config.json").write_text(json.dumps(declared))
    found = dict(tokenizer_of(tiny).special_tokens)
    assert found.pop("pad_token") == "<|im_end|>"
    assert found == {"eos_token": "<|im_start|>"}  # that there is no first token was said on purpose


def test_tokens_that_tokenizer_json_lacks_are_added_as_transformers_does(tiny: Path) -> None:
    size = Tokenizer.from_file(str(tiny / "tokenizer.json")).get_vocab_size()
    flags = {"lstrip": False, "rstrip": True, "normalized": False, "single_word": False, "special": True}
    declared = {str(size): {"content": "<tool>", **flags}, str(size + 1): {"content": "<end of tool>", **flags}}
    config = json.loads((tiny / "tokenizer_config.json").read_text())
    edit_json(
        tiny / "tokenizer_config.json", added_tokens_decoder={**config.get("added_tokens_decoder", {}), **declared}
    )
    ours = Tokenizer.from_buffer(tokenizer_of(tiny).tokenizer_json)
    reference = AutoTokenizer.from_pretrained(tiny)
    for text in ("a <tool>  b<end of tool>", "<tool", "<|im_start|>user\n<tool> x"):
        assert ours.encode(text, add_special_tokens=False).ids == reference(text, add_special_tokens=False).input_ids
    assert ours.token_to_id("<end of tool>") == size + 1


def test_the_older_file_of_added_tokens(tiny: Path) -> None:
    size = Tokenizer.from_file(str(tiny / "tokenizer.json")).get_vocab_size()
    (tiny / "added_tokens.json").write_text(json.dumps({"<extra>": size}))
    ours = Tokenizer.from_buffer(tokenizer_of(tiny).tokenizer_json)
    assert ours.encode("x<extra>").ids[-1] == size


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"0": {"content": "<other>"}}, "declares the token '<other>' with id 0"),
        ({"9": {"content": "<|im_end|>"}}, "with id 9"),
        ({"x": {"content": "a"}}, "with id 'x'"),
        ({"9": {"content": 7}}, "with id '9'"),
        ({"9": "a"}, "the added token 'a'"),
    ],
)
def test_contradictions_are_refused(tiny: Path, declared: dict[str, object], message: str) -> None:
    edit_json(tiny / "tokenizer_config.json", added_tokens_decoder=declared)
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizer_of(tiny)
    assert caught.value.hint


def test_a_name_that_is_no_text_is_refused(tiny: Path) -> None:
    edit_json(tiny / "tokenizer_config.json", eos_token=["</s>"])
    with pytest.raises(TokenizerError, match="eos_token"):
        tokenizer_of(tiny)


def test_sampling_is_what_generation_config_says(tiny: Path) -> None:
    with open_checkpoint(tiny) as checkpoint:
        assert checkpoint.sampling() == NO_ADVICE
    fields = {"temperature": 0.6, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1, "do_sample": True}
    (tiny / "generation_config.json").write_text(json.dumps(fields))
    with open_checkpoint(tiny) as checkpoint:
        assert checkpoint.sampling() == SamplingDefaults(0.6, 0.9, 0, None, 1.0)


@pytest.mark.parametrize(
    "field", [{"temperature": -1}, {"top_p": 0}, {"top_p": "x"}, {"top_k": 1.5}, {"min_p": True}, {"top_k": -2}]
)
def test_numbers_without_a_meaning_are_refused(tiny: Path, field: dict[str, object]) -> None:
    (tiny / "generation_config.json").write_text(json.dumps(field))
    with pytest.raises(CheckpointFormatError, match=next(iter(field))):
        open_checkpoint(tiny)
