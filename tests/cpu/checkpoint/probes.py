"""Texts to encode, and SentencePiece models trained on the spot."""

from __future__ import annotations

import io
from typing import Any

import sentencepiece

from tests.conftest import ROOT

PROBES = (
    "",
    " ",
    "The quick brown fox jumps over the lazy dog.",
    "It's we'll they'd I'VE don't",
    "12345",
    "In 1984, pi was 3.14159 and 007 is 7",
    "naïve façade — “quotes” …",
    "你好世界。日本語のテキスト 한국어",
    "🙂👩‍👩‍👧‍👦🇩🇪",
    "مرحبا بالعالم",
    "def f(x):\n\treturn x  # two spaces\n\n\n",
    "   leading and trailing   ",
    "a  b   c\t\td\r\ne\n\n f",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "x<|endoftext|>y <|im_end|> z",
    "\u0000\u00a0\u3000\ufeff",
)

TEXT = (ROOT / "tests" / "data" / "alice.txt").read_text()[:12_000]
TEXTS = (*PROBES, "ﬁ ½ ①", "user <sep> defined<sep><sep>  x", *(TEXT[i : i + 200] for i in range(0, 2000, 200)))
PLAIN: dict[str, Any] = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
GEMMA: dict[str, Any] = {**PLAIN, "add_dummy_prefix": False, "user_defined_symbols": ["<sep>", "▁▁"]}


def train(kind: str, **options: Any) -> bytes:
    """Returns a SentencePiece model of 500 pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        model_type=kind,
        minloglevel=3,
        num_threads=1,
        **{"vocab_size": 500, **options},
    )
    return model.getvalue()
