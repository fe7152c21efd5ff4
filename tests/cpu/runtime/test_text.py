"""Text in and out: streaming equals decoding at once, templates render as transformers renders them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from paiton_artifacts.errors import TokenizerError, UsageError
from paiton_artifacts.schema import FileEntry
from paiton_runtime.text import TextCodec

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are terse.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'].strip() + '<|im_end|>' + '\n'}}{% endfor %}\n"
    "    {% if add_generation_prompt %}\n{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_LIKE = (
    "{{- bos_token }}\n{%- set first = messages[0] %}\n"
    "{%- if first.role == 'system' %}{{ raise_exception('no system ' + first.content | tojson) }}{%- endif %}\n"
    "{%- for m in messages %}\n    {{- '[' ~ m.role | upper ~ '] ' ~ m.content | trim ~ eos_token }}\n{%- endfor %}"
)


@dataclass
class Files:
    """The part of `reader.Bundle` that a codec uses."""

    contents: dict[str, bytes]
    manifest: Any
    path: Path = Path("test.bundle")

    def read_file(self, entry: FileEntry) -> bytes:
        """Returns a file's contents, as `Bundle.read_file` does."""
        return self.contents[entry.path]


def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE without merges: every byte is a token, so characters are cut apart."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


def codec(template: str | None = None, *, add_bos: bool = False, source: bytes | None = None) -> TextCodec:
    def entry(name: str) -> FileEntry:
        return FileEntry(name, len(contents[name]), hashlib.sha256(contents[name]).hexdigest())

    contents = {"tokenizer.json": source or byte_tokenizer().to_str().encode()}
    if template is not None:
        contents["template"] = template.encode()
    tokenizer = SimpleNamespace(
        file=entry("tokenizer.json"),
        chat_template=None if template is None else entry("template"),
        add_bos=add_bos,
    )
    manifest = SimpleNamespace(tokenizer=tokenizer, model=SimpleNamespace(bos_token_id=256, eos_token_ids=(257,)))
    files: Any = Files(contents, manifest)
    return TextCodec(files)


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界! 👩‍👩‍👧", "", "tail 👩"])
def test_a_stream_gives_the_text_piece_by_piece(text: str) -> None:
    made = codec()
    ids = made.encode(text)
    assert len(ids) == len(text.encode())
    stream = made.stream()
    pieces = [stream.push(id_) for id_ in ids]
    assert "".join(pieces) + stream.finish() == stream.text == text == made.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_character_that_never_ends_comes_out_last() -> None:
    made = codec()
    stream = made.stream()
    ids = made.encode("a👩")[:-1]
    assert "".join(stream.push(id_) for id_ in ids) == "a"
    assert set(stream.finish()) == {"\ufffd"}
    assert stream.text == made.decode(ids)


def test_special_tokens_are_not_shown() -> None:
    made = codec()
    stream = made.stream()
    assert [stream.push(id_) for id_ in (256, *made.encode("x"), 257)] == ["", "x", ""]


def test_the_begin_token_is_added_where_the_model_wants_it() -> None:
    assert codec(add_bos=True).encode("a") == [256, *codec().encode("a")]


def reference(template: str, messages: list[dict[str, str]]) -> str:
    """Renders as transformers does: jinja2, sandboxed, blocks trimmed."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701  (as theirs)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **names)


@pytest.mark.parametrize("template", [CHATML, LLAMA_LIKE])
@pytest.mark.parametrize("content", ["hello", '  <b>&"quoted"</b>\nä 世界 ', "{{ 1 + 1 }}"])
def test_templates_render_as_jinja2_does(template: str, content: str) -> None:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "so"}]
    made = codec(template)
    text = made.render(messages)
    assert text == reference(template, messages)
    assert made.encode_chat(messages) == made.tokenizer.encode(text, add_special_tokens=False).ids


def test_a_template_may_refuse() -> None:
    with pytest.raises(UsageError, match='no system "x"'):
        codec(LLAMA_LIKE).render([{"role": "system", "content": "x"}])


def test_a_broken_or_absent_template_is_named() -> None:
    with pytest.raises(UsageError, match="no chat template; hint: leave --chat away"):
        codec().encode_chat([])
    with pytest.raises(UsageError, match="the chat template fails"):
        codec("{% for %}").render([])


def test_a_broken_tokenizer_is_named() -> None:
    with pytest.raises(TokenizerError, match=r"test\.bundle/tokenizer\.json"):
        codec(source=b'{"version": "1.0"}')


def test_a_template_cannot_run_for_ever() -> None:
    loops = "{% for i in range(90000) %}" * 3 + "x" + "{% endfor %}" * 3
    with pytest.raises(UsageError, match="the chat template fails"):
        codec(loops).render([{"role": "user", "content": "hello"}])
