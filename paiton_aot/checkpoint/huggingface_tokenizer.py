"""Tokenizer files of a Hugging Face directory: tokenizer.json or tokenizer.model, chat template, special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer

from paiton_aot.checkpoint.base import TokenizerFiles
from paiton_aot.checkpoint.fields import shown
from paiton_aot.checkpoint.files import parse_object, read_object, read_small_file
from paiton_aot.checkpoint.pieces import tokenizer_document
from paiton_aot.checkpoint.sentencepiece_model import parse_sentencepiece
from paiton_aot.checkpoint.special_tokens import named_tokens, with_declared_tokens
from paiton_aot.checkpoint.tokenizer_json import as_bytes
from paiton_artifacts.errors import CheckpointFormatError, TokenizerError

SENTENCEPIECE = "tokenizer.model"
MAKE_IT = "make it with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"


def read_tokenizer(path: Path, ids: Mapping[str, int | None]) -> TokenizerFiles:
    """Returns the tokenizer of a checkpoint directory: tokenizer.json, or a SentencePiece model made into one.

    Args:
        path: the directory.
        ids: of named tokens, for those that none of the tokenizer's own files mentions.

    Raises:
        TokenizerError: there is neither, one is damaged or cannot be converted, or the chat template is no text.
    """
    try:
        config_path = path / "tokenizer_config.json"
        config = read_object(config_path) if config_path.is_file() else {}
        named = named_tokens(path, config)
        data, what = _tokenizer_json(path, config)
        tokenizer = parse_object(data, what)
        completed = with_declared_tokens(tokenizer, path, config, named)
        if completed is not None:
            data, tokenizer = as_bytes(completed), completed
        template_path = path / "chat_template.jinja"
        template = read_small_file(template_path).decode() if template_path.is_file() else _template(config)
    except CheckpointFormatError as error:
        raise TokenizerError(error.message, hint=error.hint) from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}/chat_template.jinja is not UTF-8", hint="save it again") from error
    loaded = check_loads(data, what, MAKE_IT)
    for name, id_ in ids.items():
        if name not in config and name not in named and id_ is not None and (text := loaded.id_to_token(id_)):
            named[name] = text
    return TokenizerFiles(
        data, template, _adds_bos(tokenizer, config, sentencepiece=what.endswith(SENTENCEPIECE)), named
    )


def _tokenizer_json(path: Path, config: Mapping[str, object]) -> tuple[bytes, str]:
    """Returns the content of tokenizer.json, and what to call the file that it comes from."""
    tokenizer_path, model_path = path / "tokenizer.json", path / SENTENCEPIECE
    if tokenizer_path.is_file():
        return read_small_file(tokenizer_path), str(tokenizer_path)
    if not model_path.is_file():
        raise TokenizerError(f"{path} holds no tokenizer.json and no {SENTENCEPIECE}", hint=MAKE_IT)
    what = str(model_path)
    model = parse_sentencepiece(read_small_file(model_path), what)
    # Without the word, the ids are those of SentencePiece itself: published conversions do the same.
    document = tokenizer_document(model, what, MAKE_IT, prefix_first_only=config.get("legacy") is False)
    return as_bytes(document), what


def check_loads(data: bytes, what: str, hint: str) -> Tokenizer:
    """Returns what the tokenizers library makes of a tokenizer.json, which the runtime leaves to it.

    Raises:
        TokenizerError: it does not.
    """
    try:
        loaded: Tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing more special
        reason = shown(str(error))
        raise TokenizerError(f"{what} holds a damaged tokenizer: {reason}", hint=hint) from error
    return loaded


def _template(config: Mapping[str, object]) -> str | None:
    """Returns the template of tokenizer_config.json: a text, or a list of named ones of which "default" counts."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [item for item in template if isinstance(item, dict) and item.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise TokenizerError(
            f"tokenizer_config.json has a chat_template of type {type(template).__name__}, expected text",
            hint="move the template to chat_template.jinja",
        )
    return template


def _adds_bos(tokenizer: Mapping[str, object], config: Mapping[str, object], *, sentencepiece: bool) -> bool:
    """Returns whether encoding a text puts a special token first.

    What tokenizer.json's post-processor does is what transformers does; the flag of tokenizer_config.json decides
    only where there is no template in the post-processor. A SentencePiece model has none, and its families (Llama,
    Mistral, Gemma) begin with one unless the flag says otherwise.
    """
    if sentencepiece:
        return config.get("add_bos_token", True) is True
    for processor in _processors(tokenizer.get("post_processor")):
        if processor.get("type") == "TemplateProcessing":
            single = processor.get("single")
            first = single[0] if isinstance(single, list) and single else None
            return isinstance(first, dict) and "SpecialToken" in first
    return config.get("add_bos_token") is True


def _processors(processor: object) -> list[Mapping[str, object]]:
    """Returns a post-processor, or the members of a sequence of them."""
    if not isinstance(processor, dict):
        return []
    members = processor.get("processors") if processor.get("type") == "Sequence" else [processor]
    return [member for member in members if isinstance(member, dict)] if isinstance(members, list) else []
