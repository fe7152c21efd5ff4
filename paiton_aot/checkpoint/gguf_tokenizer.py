"""tokenizer.json rebuilt from a GGUF file's metadata: byte-level BPE with the usual pre-tokenizers, SentencePiece."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf.constants import TokenType

from paiton_aot.checkpoint.base import ModelConfig, TokenizerFiles
from paiton_aot.checkpoint.fields import shown
from paiton_aot.checkpoint.huggingface_tokenizer import check_loads
from paiton_aot.checkpoint.pieces import Piece, PieceKind, PieceModel, tokenizer_document
from paiton_aot.checkpoint.tokenizer_json import added_token, as_bytes, assemble
from paiton_artifacts.errors import TokenizerError

FROM_ORIGINAL = "build from the original Hugging Face directory"

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_START = r"[^\r\n\p{L}\p{N}]?"
LLAMA3_PATTERN = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
QWEN2_PATTERN = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SIGNS}|{_SPACES}"
TEKKEN_PATTERN = (
    rf"{_START}[{_UPPER}]*[{_LOWER}]+|{_START}[{_UPPER}]+[{_LOWER}]*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)


_SUFFIX = rf"{_CONTRACTIONS}?"
O200K_PATTERN = (
    rf"{_START}[{_UPPER}]*[{_LOWER}]+{_SUFFIX}|{_START}[{_UPPER}]+[{_LOWER}]*{_SUFFIX}|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)


def _split(pattern: str) -> dict[str, object]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {**BYTE_LEVEL, "use_regex": False},
        ],
    }


DIGITS_SPLIT = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}


@dataclass(frozen=True, slots=True)
class Splitting:
    """How text is split before merging.

    Attributes:
        pre_tokenizer: of tokenizer.json.
        normalizer: likewise.
        ignore_merges: what is a token as a whole is not split, whatever the merges say.
        add_bos: llama.cpp's default where the file says nothing about a token before the text.
    """

    pre_tokenizer: Mapping[str, object]
    normalizer: Mapping[str, object] | None = None
    ignore_merges: bool = False
    add_bos: bool = False


_LLAMA3 = Splitting(_split(LLAMA3_PATTERN), ignore_merges=True, add_bos=True)
_QWEN2 = Splitting(_split(QWEN2_PATTERN), normalizer={"type": "NFC"})
_DIGITS = Splitting(DIGITS_SPLIT)

PRE_TOKENIZERS: Mapping[str, Splitting] = {
    "default": Splitting(BYTE_LEVEL),
    "gpt-2": Splitting(BYTE_LEVEL),
    # As SmolLM2's own tokenizer.json and llama.cpp have it; transformers takes plain ByteLevel, which splits spaces
    # before a digit (and signs such as ½) differently.
    "smollm": _DIGITS,
    **dict.fromkeys(("codeshell", "refact", "starcoder"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    "dbrx": Splitting(_split(LLAMA3_PATTERN)),  # Phi-4
    "gpt-4o": Splitting(_split(O200K_PATTERN)),  # Phi-4-mini
    "tekken": Splitting(_split(TEKKEN_PATTERN), ignore_merges=True, add_bos=True),
}
"""By `tokenizer.ggml.pre`. The patterns are those of the models' own tokenizer.json, as llama.cpp cites them."""

PHI3_BARE = ("<unk>", "<s>", "<|endoftext|>")
"""Phi-3's added tokens that leave what is behind them. The others take the whitespace there, which no key of a file
says; llama.cpp goes by the model's name, too."""

SPECIAL_IDS = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}
SPECIAL_IDS |= {"sep_token": "seperator_token_id", "pad_token": "padding_token_id"}  # spelled so in the format
"""Names that templates know, and the metadata's."""


def rebuild_tokenizer(metadata: Mapping[str, object], config: ModelConfig, what: str) -> TokenizerFiles:
    """Returns the tokenizer that the metadata describes; the same metadata gives the same bytes.

    Args:
        metadata: of the GGUF file.
        config: of the model.
        what: names the file in errors.

    Raises:
        TokenizerError: it is absent or damaged, or of a kind that we do not rebuild.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        raise TokenizerError(f"{what} holds no tokenizer", hint=FROM_ORIGINAL)
    if model not in ("gpt2", "llama"):
        raise TokenizerError(
            f"{what} has tokenizer model {shown(model)}",
            hint=f"supported: gpt2 (byte-level BPE), llama (SentencePiece); {FROM_ORIGINAL}",
        )
    tokens = _strings(metadata, "tokens", what)
    if model == "llama":
        document, adds_bos = tokenizer_document(_pieces(metadata, tokens, what), what, FROM_ORIGINAL), True
        if metadata.get("general.architecture") == "phi3":
            _take_spaces(document["added_tokens"])
    else:
        splitting = _splitting(metadata, what)
        document, adds_bos = _byte_level(metadata, tokens, splitting, what), splitting.add_bos
    data = as_bytes(document)
    check_loads(data, what, FROM_ORIGINAL)
    template = metadata.get("tokenizer.chat_template")
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", adds_bos) is True
    named = {name: metadata.get(f"tokenizer.ggml.{key}") for name, key in SPECIAL_IDS.items()}
    return TokenizerFiles(
        data,
        template if isinstance(template, str) else None,
        add_bos and config.bos_token_id is not None,
        {name: tokens[id_] for name, id_ in named.items() if type(id_) is int and 0 <= id_ < len(tokens)},
    )


def _take_spaces(added_tokens: Any) -> None:  # noqa: ANN401  (JSON)
    """Lets Phi-3's added tokens take the whitespace behind them."""
    for token in added_tokens:
        token["rstrip"] = token["content"] not in PHI3_BARE


def _splitting(metadata: Mapping[str, object], what: str) -> Splitting:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"{what} has pre-tokenizer {shown(pre)}", hint=f"supported: {', '.join(PRE_TOKENIZERS)}; {FROM_ORIGINAL}"
        )
    return PRE_TOKENIZERS[pre]


def _byte_level(
    metadata: Mapping[str, object], tokens: Sequence[str], splitting: Splitting, what: str
) -> dict[str, object]:
    """Returns the content of a byte-level BPE's tokenizer.json."""
    merges = _strings(metadata, "merges", what)
    return assemble(
        _added_tokens(tokens, metadata.get("tokenizer.ggml.token_type"), what),
        splitting.normalizer,
        splitting.pre_tokenizer,
        {**BYTE_LEVEL, "add_prefix_space": True},
        _model(tokens, merges, ignore_merges=splitting.ignore_merges, what=what),
    )


def _pieces(metadata: Mapping[str, object], tokens: Sequence[str], what: str) -> PieceModel:
    """Returns the SentencePiece model that a file of the kind "llama" was made of: byte-pair merges by score."""
    scores, kinds = (metadata.get(f"tokenizer.ggml.{name}") for name in ("scores", "token_type"))
    if not isinstance(scores, list) or len(scores) != len(tokens) or not all(map(_is_number, scores)):
        raise TokenizerError(f"{what} has no score for each of its {len(tokens)} tokens", hint=FROM_ORIGINAL)
    known = set(PieceKind)
    if not isinstance(kinds, list) or len(kinds) != len(tokens) or not known.issuperset(kinds):
        raise TokenizerError(f"{what} has no token type for each of its {len(tokens)} tokens", hint=FROM_ORIGINAL)
    if metadata.get("tokenizer.ggml.remove_extra_whitespaces", False) is True:
        raise TokenizerError(f"{what} has tokenizer.ggml.remove_extra_whitespaces true", hint=FROM_ORIGINAL)
    return PieceModel(
        [Piece(text, score, PieceKind(kind)) for text, score, kind in zip(tokens, scores, kinds, strict=True)],
        algorithm="BPE",
        byte_fallback=PieceKind.BYTE in kinds,
        add_space_prefix=metadata.get("tokenizer.ggml.add_space_prefix", True) is True,
        remove_extra_spaces=False,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


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
        {"id": index, **added_token(token, special=kind == TokenType.CONTROL, normalized=False)}
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]


def _strings(metadata: Mapping[str, object], name: str, what: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TokenizerError(f"{what} has no tokenizer.ggml.{name}", hint=FROM_ORIGINAL)
    return value
