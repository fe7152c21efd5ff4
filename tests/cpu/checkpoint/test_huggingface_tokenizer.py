"""Tokenizer files of Hugging Face directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.base import TokenizerFiles
from paiton_artifacts.errors import TokenizerError
from tests.make_checkpoints import CHAT_TEMPLATE, edit_json


def tokenizer_of(path: Path) -> TokenizerFiles:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.tokenizer()


def test_files_are_carried_over(tiny: Path) -> None:
    files = tokenizer_of(tiny)
    assert files.tokenizer_json == (tiny / "tokenizer.json").read_bytes()
    assert files.chat_template == CHAT_TEMPLATE
    assert files.add_bos is False


def test_a_template_of_its_own_file_wins(tiny: Path) -> None:
    (tiny / "chat_template.jinja").write_text("{{ 'é' }}")
    assert tokenizer_of(tiny).chat_template == "{{ 'é' }}"


def test_named_templates(tiny: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    edit_json(tiny / "tokenizer_config.json", chat_template=named)
    assert tokenizer_of(tiny).chat_template == "plain"
    edit_json(tiny / "tokenizer_config.json", chat_template=named[:1])
    assert tokenizer_of(tiny).chat_template is None


def test_neither_template_nor_configuration(tiny: Path) -> None:
    (tiny / "tokenizer_config.json").unlink()
    assert tokenizer_of(tiny).chat_template is None


@pytest.mark.parametrize("single", ["<|im_start|> $A", "$A"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("flag", [None, True, False])
def test_the_post_processor_decides_on_the_first_token(
    tiny: Path, single: str, *, nested: bool, flag: bool | None
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    template = processors.TemplateProcessing(single=single, special_tokens=[("<|im_start|>", 1)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template]) if nested else template
    tokenizer.save(str(tiny / "tokenizer.json"))
    edit_json(tiny / "tokenizer_config.json", add_bos_token=flag)
    assert tokenizer_of(tiny).add_bos is (tokenizer.encode("a").ids[0] == 1)


def test_without_one_the_flag_decides(tiny: Path) -> None:
    edit_json(tiny / "tokenizer_config.json", add_bos_token=True)
    assert tokenizer_of(tiny).add_bos is True


def absent(path: Path) -> None:
    (path / "tokenizer.json").unlink()


def truncated(path: Path) -> None:
    (path / "tokenizer.json").write_bytes((path / "tokenizer.json").read_bytes()[:1000])


def without_model(path: Path) -> None:
    edit_json(path / "tokenizer.json", model=None)


def of_unknown_model(path: Path) -> None:
    edit_json(path / "tokenizer.json", model={"type": "NoSuchModel"})


def with_damaged_configuration(path: Path) -> None:
    (path / "tokenizer_config.json").write_text(json.dumps([1]))


def with_template_of_wrong_type(path: Path) -> None:
    edit_json(path / "tokenizer_config.json", chat_template=7)


def with_template_of_other_encoding(path: Path) -> None:
    (path / "chat_template.jinja").write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (absent, "holds no tokenizer.json"),
        (truncated, "tokenizer.json is not valid JSON"),
        (without_model, "damaged"),
        (of_unknown_model, "damaged"),
        (with_damaged_configuration, "tokenizer_config.json holds a JSON list"),
        (with_template_of_wrong_type, "chat_template of type int"),
        (with_template_of_other_encoding, "is not UTF-8"),
    ],
)
def test_damaged_files(tiny: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(tiny)
    with open_checkpoint(tiny) as checkpoint, pytest.raises(TokenizerError, match=message) as caught:
        checkpoint.tokenizer()
    assert caught.value.exit_code == 6
    assert caught.value.hint
    assert "\n" not in str(caught.value)
