"""What is tested with whole models: which architecture, of which format, on which target, divided among how many ranks.

Tests take their parameters from here, and docs/coverage.md is generated from it: a case without a test does not show.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

DOCUMENT = Path(__file__).parents[1] / "docs" / "coverage.md"


@dataclass(frozen=True, slots=True)
class Case:
    """One whole-model comparison with the reference.

    Attributes:
        model: what is built, as the document's first column names it.
        format: of the checkpoint's linear layers and of the bundle's, as the document's second column names it.
        target: "cpu" or a GPU's.
        tp: ranks.
    """

    model: str
    format: str
    target: str
    tp: int

    @property
    def name(self) -> str:
        """The test's id."""
        return f"{self.model}-{self.format}-{self.target}-tp{self.tp}".replace(" ", "_")


OPTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "bf16": {"weights": "bf16"},
        "bf16 to fp8": {},
        "bf16 to fp8, fp8 activations and KV": {"act": "fp8", "kv": "fp8"},
    }
)
"""Formats that the build makes of bf16 checkpoints, and the fields of `BuildOptions` that ask for them."""

MODELS: Mapping[str, str] = MappingProxyType(
    {
        "llama2": "Llama 2",
        "llama3.1": "Llama 3.1 (llama3 RoPE)",
        "llama-linear": "Llama, linear RoPE",
        "llama-yarn": "Llama, YaRN",
        "mistral": "Mistral (window)",
        "mixtral": "Mixtral (experts, window)",
        "qwen2": "Qwen2, Qwen2.5 (biases, windows)",
        "qwen3": "Qwen3 (norms of heads)",
        "qwen3-moe": "Qwen3-MoE (experts in some layers)",
        "phi3": "Phi-3 (fused on disk, heads of 96)",
        "phi4": "Phi-4-mini (LongRoPE, a part of each head)",
        "gemma": "Gemma",
        "gemma2": "Gemma 2",
        "gemma3": "Gemma 3, text",
    }
)
"""What the document calls the tiny models of tests/architectures.py."""

_PLAIN = (("bf16", 1), ("bf16", 2), ("bf16 to fp8", 1), ("bf16 to fp8", 2), ("bf16 to fp8", 4))
_QUANTIZED = ("bf16 to fp8, fp8 activations and KV", 1)
_ROPE_ONLY = ("llama3.1", "llama-linear", "llama-yarn", "phi4")  # Llama 2 but for RoPE
_QUANTIZED_TOO = ("llama2", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3")  # those that have kernels of their own

ARCHITECTURE_CASES = tuple(
    Case(model, format_, "cpu", tp)
    for model in MODELS
    for format_, tp in (
        (_PLAIN[0], _PLAIN[3]) if model in _ROPE_ONLY else (*_PLAIN, _QUANTIZED) if model in _QUANTIZED_TOO else _PLAIN
    )
)
"""Of tests/cpu/models/test_architectures.py."""


FP8_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "autofp8": "fp8, per tensor, static",
        "fp8-tensor": "fp8, per tensor, dynamic",
        "fp8-block": "fp8, blocks",
        "fp8-block-ue8m0": "fp8, blocks, ue8m0",
        "quark-tensor": "quark, per tensor, static",
        "quark-channel": "quark, per channel, dynamic",
        "compressed-tensor": "compressed-tensors, tensor, static",
        "compressed-channel": "compressed-tensors, channel, token",
        "compressed-old": "compressed-tensors, channel, compression_config",
        "compressed-block": "compressed-tensors, block",
        "fbgemm": "fbgemm_fp8",
        "modelopt": "modelopt, hf_quant_config.json",
        "modelopt-flat": "modelopt, config.json",
    }
)
"""What the document calls the formats of tests/fp8_checkpoints.py."""

FORMAT_CASES = tuple(Case("llama2", label, "cpu", tp) for label in FP8_FORMATS.values() for tp in (1, 2))
"""Of tests/cpu/end_to_end/test_fp8_formats.py."""


EXPERT_CASES = (
    Case("mixtral", FP8_FORMATS["fp8-block"], "cpu", 1),
    Case("mixtral", FP8_FORMATS["fp8-block"], "cpu", 2),
    Case("qwen3-moe", FP8_FORMATS["compressed-channel"], "cpu", 1),
    Case("qwen3-moe", FP8_FORMATS["compressed-channel"], "cpu", 4),
)
"""Of tests/cpu/models/test_experts.py."""


EMULATED_CASES = (
    *(Case(model, "bf16 to fp8", "hip:gfx942", 1) for model in MODELS),
    Case("gemma3", _QUANTIZED[0], "hip:gfx942", 1),
)
"""Of tests/emulated/test_models.py: every architecture, and in FP8 the one with most of what Llama has not."""

EMULATED_RANK_CASES = tuple(
    Case(model, "bf16 to fp8", "hip:gfx942", tp) for model in MODELS if model not in _ROPE_ONLY for tp in (2, 4)
)
"""Of tests/emulated/test_rank_models.py."""

EMULATED_EXPERT_CASES = (
    Case("mixtral", FP8_FORMATS["autofp8"], "hip:gfx942", 1),
    Case("qwen3-moe", _QUANTIZED[0], "hip:gfx942", 1),
)
"""Of tests/emulated/test_expert_models.py: with static and with dynamic scales."""

EMULATED_FORMAT_CASES = (Case("llama2", FP8_FORMATS["fp8-block"], "hip:gfx942", 1),)
"""Likewise: the format that needs a kernel of its own; others have row scales, as in tests/emulated/test_plans.py."""


def all_cases() -> tuple[Case, ...]:
    """Returns the cases of every test module."""
    return (
        ARCHITECTURE_CASES
        + FORMAT_CASES
        + EXPERT_CASES
        + EMULATED_CASES
        + EMULATED_RANK_CASES
        + EMULATED_EXPERT_CASES
        + EMULATED_FORMAT_CASES
    )


def coverage(cases: Iterable[Case]) -> str:
    """Returns the document."""
    ranks: dict[tuple[str, str], dict[str, list[int]]] = {}
    targets: list[str] = []
    for case in cases:
        row = ranks.setdefault((MODELS.get(case.model, case.model), case.format), {})
        row.setdefault(case.target, []).append(case.tp)
        if case.target not in targets:
            targets.append(case.target)
    lines = [
        "# What is tested with whole models",
        "",
        "Written by `python -m tests.coverage_cases`. A cell lists the numbers of tensor-parallel ranks with which a",
        "tiny random model of the architecture, in that format and on that target, gives the logits that transformers",
        "computes from the same weights, teacher-forced over 64 tokens, within the tolerance of the activation mode.",
        "",
        f"| model | format | {' | '.join(targets)} |",
        f"|---|---|{'---|' * len(targets)}",
    ]
    for (model, format_), row in ranks.items():
        cells = (", ".join(f"{tp}" for tp in sorted(row.get(target, []))) for target in targets)
        lines.append(f"| {model} | {format_} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(coverage(all_cases()), encoding="utf-8")
