"""Tokenizer files of a Hugging Face directory: tokenizer.json as it is, chat template, beginning-of-sequence rule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer

from paiton_aot.checkpoint.base import TokenizerFiles
from paiton_aot.checkpoint.fields import shown
from paiton_aot.checkpoint.files import parse_object, read_object, read_small_file
from paiton_artifacts.errors import CheckpointFormatError, TokenizerError

MAKE_IT = "make it with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"


def read_tokenizer(path: Path) -> TokenizerFiles:
    """Returns the tokenizer of a checkpoint directory.

    Raises:
        TokenizerError: tokenizer.json is absent or damaged, or the chat template is no text.
    """
    tokenizer_path = path / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise TokenizerError(f"{path} holds no tokenizer.json", hint=MAKE_IT)
    try:
        data = read_small_file(tokenizer_path)
        tokenizer = parse_object(data, str(tokenizer_path))
        config_path = path / "tokenizer_config.json"
        config = read_object(config_path) if config_path.is_file() else {}
        template_path = path / "chat_template.jinja"
        template = read_small_file(template_path).decode() if template_path.is_file() else _template(config)
    except CheckpointFormatError as error:
        raise TokenizerError(error.message, hint=error.hint) from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}/chat_template.jinja is not UTF-8", hint="save it again") from error
    check_loads(data, str(tokenizer_path), MAKE_IT)
    return TokenizerFiles(data, template, _adds_bos(tokenizer, config))


def check_loads(data: bytes, what: str, hint: str) -> None:
    """Checks that the tokenizers library takes a tokenizer.json, which the runtime leaves to it.

    Raises:
        TokenizerError: it does not.
    """
    try:
        Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing more special
        reason = shown(str(error))
        raise TokenizerError(f"{what} holds a damaged tokenizer: {reason}", hint=hint) from error


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


def _adds_bos(tokenizer: Mapping[str, object], config: Mapping[str, object]) -> bool:
    """Returns whether encoding a text puts a special token first.

    What tokenizer.json's post-processor does is what transformers does; the flag of tokenizer_config.json decides
    only where there is no template in the post-processor.
    """
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
