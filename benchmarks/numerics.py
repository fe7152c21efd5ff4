"""Numerics: teacher-forced logits on a public-domain text, beside transformers in float32.

The reference uses the bundle's own dequantised weights and rounds activations and KV alike; the second comparison is
with the bf16 source (the GGUF dequantised by transformers), which shows what quantisation costs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from benchmarks.common import ROOT, parser, save, smollm2_bundle, smollm2_hf
from tests.reference import load_reference, perplexity, reference_logits, top1_agreement
from tests.teacher_forced import boot_logits

TEXT = ROOT / "tests" / "data" / "alice.txt"
TOLERANCE = 0.25
"""In logits: how far two sums of bf16-rounded activations in different orders may drift apart (SmolLM2's logits have a
standard deviation of about 3)."""


def compare(bundle: Path, ids: list[int]) -> dict[str, Any]:
    """Returns perplexities and agreement of a bundle with the reference on its own weights."""
    reference = reference_logits(load_reference(bundle), ids)
    ours = boot_logits(bundle, ids)
    agree, violations = top1_agreement(ours, reference, TOLERANCE)
    ppl, expected = perplexity(ours, ids), perplexity(reference, ids)
    return {
        "perplexity": ppl,
        "perplexity_reference": expected,
        "perplexity_difference_percent": 100 * (ppl / expected - 1),
        "top1_agreement_percent": 100 * agree,
        "top1_disagreements_beyond_margin": violations,
        "largest_logit_difference": float(np.abs(ours - reference).max()),
    }


def source_perplexity(model_dir: Path, ids: list[int]) -> float:
    """Returns the perplexity of the bf16 source, computed by transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    return perplexity(reference_logits(model, ids), ids)


def main() -> None:
    """Measures and reports."""
    args = parser(__doc__ or "")
    args.add_argument("--tokens", type=int, default=2560)
    options = args.parse_args()
    source = None
    result: dict[str, Any] = {"text": "Alice's Adventures in Wonderland, chapter I", "tolerance": TOLERANCE}
    for head in ("bf16", "int8", "fp8"):
        bundle = smollm2_bundle("--lm-head", head)
        tokenizer = Tokenizer.from_file(str(bundle / "tokenizer" / "tokenizer.json"))
        ids = tokenizer.encode(TEXT.read_text(), add_special_tokens=False).ids[: options.tokens]
        source = source or source_perplexity(smollm2_hf(), ids)
        compared = compare(bundle, ids)
        compared["perplexity_over_source_percent"] = 100 * (compared["perplexity"] / source - 1)
        result |= {"tokens": len(ids), "perplexity_source": source, f"lm_head_{head}": compared}
    save("numerics", result)


if __name__ == "__main__":
    main()
