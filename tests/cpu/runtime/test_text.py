"""Text in and out: streaming equals decoding at once, templates render as transformers renders them."""

from __future__ import annotations

import json
import random

import jinja2
import pytest

from paiton_artifacts.errors import TokenizerError, UsageError
from tests.text_codec import byte_tokenizer, make_codec, sentencepiece_tokenizer

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


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界! 👩‍👩‍👧", "", "tail 👩"])
def test_a_stream_gives_the_text_piece_by_piece(text: str) -> None:
    made = make_codec()
    ids = made.encode(text)
    assert len(ids) == len(text.encode())
    stream = made.stream()
    pieces = [stream.push(id_) for id_ in ids]
    assert "".join(pieces) + stream.finish() == stream.text == text == made.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_character_that_never_ends_comes_out_last() -> None:
    made = make_codec()
    stream = made.stream()
    ids = made.encode("a👩")[:-1]
    assert "".join(stream.push(id_) for id_ in ids) == "a"
    assert set(stream.finish()) == {"\ufffd"}
    assert stream.text == made.decode(ids)


def test_special_tokens_are_not_shown() -> None:
    made = make_codec()
    stream = made.stream()
    assert [stream.push(id_) for id_ in (256, *made.encode("x"), 257)] == ["", "x", ""]


def test_the_begin_token_is_added_where_the_model_wants_it() -> None:
    assert make_codec(add_bos=True).encode("a") == [256, *make_codec().encode("a")]


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
    made = make_codec(template)
    text = made.render(messages)
    assert text == reference(template, messages)
    assert made.encode_chat(messages) == made.tokenizer.encode(text, add_special_tokens=False).ids


def test_a_template_may_refuse() -> None:
    with pytest.raises(UsageError, match='no system "x"'):
        make_codec(LLAMA_LIKE).render([{"role": "system", "content": "x"}])


def test_a_broken_or_absent_template_is_named() -> None:
    with pytest.raises(UsageError, match="no chat template; hint: leave --chat away"):
        make_codec().encode_chat([])
    with pytest.raises(UsageError, match="the chat template fails"):
        make_codec("{% for %}").render([])


def test_a_broken_tokenizer_is_named() -> None:
    with pytest.raises(TokenizerError, match=r"test\.bundle/tokenizer\.json"):
        make_codec(source=b'{"version": "1.0"}')


def test_a_template_cannot_run_for_ever() -> None:
    loops = "{% for i in range(90000) %}" * 3 + "x" + "{% endfor %}" * 3
    with pytest.raises(UsageError, match="the chat template fails"):
        make_codec(loops).render([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize("skip", [True, False])
def test_a_stream_of_any_tokens_gives_what_the_library_decodes(skip: bool) -> None:
    made = make_codec()
    draw = random.Random(7)
    for _ in range(300):
        ids = [draw.randrange(made.tokenizer.get_vocab_size() + 3) for _ in range(draw.randrange(12))]
        stream = made.stream(skip_special_tokens=skip)
        text = "".join(stream.push(id_) for id_ in ids) + stream.finish()
        assert text == stream.text == made.tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("text", ["ab a b", "世界 a", "naïve b🙂", ""])
def test_a_stream_of_words_and_bytes_gives_the_text(text: str) -> None:
    made = make_codec(source=sentencepiece_tokenizer())
    stream = made.stream()
    pieces = [stream.push(id_) for id_ in made.encode(text)]
    assert "".join(pieces) + stream.finish() == stream.text == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_text_of_a_generation_continues_its_prompt() -> None:
    made = make_codec(source=sentencepiece_tokenizer())
    prompt = made.encode("ab")
    rest = made.encode("ab a🙂 a")[len(prompt) :]
    stream = made.stream(after=prompt)
    assert "".join(stream.push(id_) for id_ in rest) + stream.finish() == stream.text == " a🙂 a"
    assert make_codec().stream(after=[1, 2, 3]).push(make_codec().encode(" a")[0]) == " "


def test_the_bytes_of_tokens_make_up_the_text() -> None:
    text = "Grüße, 世界! <|im_end|>"
    for made in (make_codec(), make_codec(source=sentencepiece_tokenizer())):
        ids = made.encode(text)
        assert b"".join(map(made.token_bytes, ids)).decode().removeprefix(" ") == text
        assert made.token_bytes(100_000) == b""


def test_settings_for_training_do_not_cut_prompts() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    assert make_codec(source=tokenizer.to_str().encode()).encode("a long text") == make_codec().encode("a long text")


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UsageError, match="lone surrogate"):
        make_codec().encode("a\ud800")


def test_a_template_may_be_replaced() -> None:
    made = make_codec(CHATML, chat_template="{{ messages[0].content }}!")
    assert made.render([{"role": "user", "content": "x"}]) == "x!"
