"""tokenizer.json rebuilt from a GGUF file's metadata: byte-level BPE with the pre-tokenizers of Llama-like models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from gguf.constants import TokenType

from paiton_aot.checkpoint.base import ModelConfig, TokenizerFiles
from paiton_aot.checkpoint.fields import shown
from paiton_aot.checkpoint.huggingface_tokenizer import check_loads
from paiton_artifacts.errors import TokenizerError

FROM_ORIGINAL = "build from the original Hugging Face directory"

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False},
        {**BYTE_LEVEL, "use_regex": False},
    ],
}
DIGITS_SPLIT = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}

LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
PRE_TOKENIZERS: Mapping[str, Mapping[str, object]] = {
    "default": BYTE_LEVEL,
    "gpt-2": BYTE_LEVEL,
    # As SmolLM2's own tokenizer.json and llama.cpp have it; transformers takes plain ByteLevel, which splits spaces
    # before a digit (and signs such as ½) differently.
    "smollm": DIGITS_SPLIT,
    **dict.fromkeys(LLAMA3_NAMES, LLAMA3_SPLIT),
}
"""How text is split before merging, by `tokenizer.ggml.pre`."""


def rebuild_tokenizer(metadata: Mapping[str, object], config: ModelConfig, what: str) -> TokenizerFiles:
    """Returns the tokenizer that the metadata describes; the same metadata gives the same bytes.

    Args:
        metadata: of the GGUF file.
        config: of the model.
        what: names the file in errors.

    Raises:
        TokenizerError: it is absent or damaged, or of a kind that we do not rebuild.
    """
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if model is None:
        raise TokenizerError(f"{what} holds no tokenizer", hint=FROM_ORIGINAL)
    if model != "gpt2":
        raise TokenizerError(
            f"{what} has tokenizer model {shown(model)}", hint=f"supported: gpt2 (byte-level BPE); {FROM_ORIGINAL}"
        )
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"{what} has pre-tokenizer {shown(pre)}", hint=f"supported: {', '.join(PRE_TOKENIZERS)}; {FROM_ORIGINAL}"
        )
    tokens = _strings(metadata, "tokens", what)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, metadata.get("tokenizer.ggml.token_type"), what),
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": {**BYTE_LEVEL, "add_prefix_space": True},
        "model": _model(tokens, _strings(metadata, "merges", what), ignore_merges=pre in LLAMA3_NAMES, what=what),
    }
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    check_loads(data, what, FROM_ORIGINAL)
    template = metadata.get("tokenizer.chat_template")
    # llama.cpp's default: of the models with this kind of vocabulary, only Llama 3 starts with a special token.
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", pre in LLAMA3_NAMES) is True
    return TokenizerFiles(
        data, template if isinstance(template, str) else None, add_bos and config.bos_token_id is not None
    )


def _model(tokens: Sequence[str], merges: Sequence[str], *, ignore_merges: bool, what: str) -> dict[str, object]:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise TokenizerError(f"{what} has {len(tokens) - len(vocabulary)} tokens twice", hint=FROM_ORIGINAL)
    pairs = [merge.split(" ") for merge in merges]
    if bad := next((merge for merge, pair in zip(merges, pairs, strict=True) if len(pair) != 2), None):
        raise TokenizerError(f"{what} has merge {shown(bad)}, expected two tokens", hint=FROM_ORIGINAL)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary,
        "merges": pairs,
    }


def _added_tokens(tokens: Sequence[str], types: object, what: str) -> list[dict[str, object]]:
    """Returns the tokens that are matched in the text before it is split: control tokens and user-defined ones."""
    if not isinstance(types, list) or len(types) != len(tokens):
        raise TokenizerError(f"{what} has no token type for each of its {len(tokens)} tokens", hint=FROM_ORIGINAL)
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == TokenType.CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]


def _strings(metadata: Mapping[str, object], name: str, what: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TokenizerError(f"{what} has no tokenizer.ggml.{name}", hint=FROM_ORIGINAL)
    return value
