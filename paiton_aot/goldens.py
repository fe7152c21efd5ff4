"""Goldens: what the `generic` level computes on a few prompts, for every later boot to be checked against.

Logits are recorded, never digests of them: levels and rank counts sum in other orders. The tolerance belongs to the
activation mode, in units of the spread (standard deviation) of the logits of that golden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from paiton_artifacts.reader import open_bundle
from paiton_artifacts.schema import Golden, GoldenLogit, GoldenStep
from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.goldens import check_golden, feed
from paiton_runtime.levels import cpu_flags, runnable_levels
from paiton_runtime.model import Model

REFERENCE_LEVEL = "generic"
TOP = 8
"""How many of the largest logits a golden records."""

TOLERANCE = {"bf16": 0.25, "fp8": 1.0}
"""Largest difference of a logit between two correct targets, in standard deviations of the logits. A sum in another
order moves a value across a rounding boundary now and then: by 2^-8 of itself in bf16, by 2^-4 in FP8. Among the levels
SmolLM2's goldens differ by up to 0.07 and 0.44; wrong weights or kernels differ by several."""


@dataclass(frozen=True, slots=True)
class GoldenPlan:
    """A prompt to record: at most `tokens` of the text, then `steps` greedy tokens."""

    text: str
    tokens: int
    steps: int
    at_boot: bool


PLANS = (
    GoldenPlan("The capital of France is the city of", 8, 2, at_boot=True),
    GoldenPlan("Once upon a time there was a mathematician who counted 1, 2, 3 and then said: ", 16, 4, at_boot=False),
)


def make_goldens(bundle: Path, tokenizer_json: bytes, mode: str) -> tuple[Golden, ...]:
    """Boots an unfinished bundle at the reference level and records its goldens.

    Args:
        bundle: directory whose manifest has no goldens yet.
        tokenizer_json: to turn the prompts into ids.
        mode: "fp8" where activations or KV cache are FP8, else "bf16".
    """
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    goldens = []
    with boot(bundle, BootOptions(target="cpu", level=REFERENCE_LEVEL, golden_check=False)) as model:
        vocabulary = model.manifest.model.vocab_size
        for plan in PLANS:
            ids = [id_ for id_ in tokenizer.encode(plan.text, add_special_tokens=False).ids if id_ < vocabulary]
            goldens.append(_record(model, (ids or [0])[: plan.tokens], plan, TOLERANCE[mode]))
    return tuple(goldens)


def check_levels(bundle: Path, goldens: Sequence[Golden]) -> tuple[str, ...]:
    """Boots a bundle at every other level that this machine executes, and checks its goldens there.

    Returns:
        The levels that were checked, best first.

    Raises:
        GoldenMismatchError: a level computes something else than the reference.
    """
    held = {code.level for code in open_bundle(bundle).manifest.code_objects}
    levels = [level for level in runnable_levels(cpu_flags()) if level in held and level != REFERENCE_LEVEL]
    for level in levels:
        with boot(bundle, BootOptions(target="cpu", level=level, golden_check=False)) as model:
            for index, golden in enumerate(goldens):
                check_golden(model, golden, f"level {level}, golden {index}")
    return tuple(levels)


def _record(model: Model, prompt: Sequence[int], plan: GoldenPlan, tolerance: float) -> Golden:
    blocks = range(-(-(len(prompt) + plan.steps) // model.manifest.memory[0].kv_block_tokens))
    steps = []
    spread = 0.0
    tokens, start = list(prompt), 0
    for _ in range(plan.steps):
        result = feed(model, tokens, start, blocks)
        logits = np.frombuffer(result.logits(0), np.float32)
        spread = max(spread, float(logits.std()))
        best = np.argsort(-logits, kind="stable")[:TOP]
        top = tuple(GoldenLogit(int(token), float(logits[token])) for token in best)
        steps.append(GoldenStep(top[0].token, top))
        start += len(tokens)
        tokens = [top[0].token]
    return Golden(plan.at_boot, tuple(prompt), tuple(steps), tolerance * spread)
