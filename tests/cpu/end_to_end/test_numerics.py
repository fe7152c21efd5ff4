"""Logits of booted bundles against transformers in float32 on the same dequantised weights, teacher-forced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.levels import LEVELS
from tests.probe import runs_here
from tests.reference import load_reference, perplexity, reference_logits, top1_agreement
from tests.teacher_forced import boot_logits, logits_of

TEXT = Path(__file__).parents[2] / "data" / "alice.txt"
TOKENS = 320
TOLERANCE = 0.25  # in logits; their standard deviation is about 3 in SmolLM2
AGREEMENT = 0.97  # of the most likely tokens, over a few hundred; the numerics benchmark measures it over thousands
PROMPTS, PROMPT_TOKENS = 8, 64


@pytest.fixture(scope="module")
def ids(smollm2_bundle: Path) -> list[int]:
    tokenizer = Tokenizer.from_file(str(smollm2_bundle / "tokenizer" / "tokenizer.json"))
    encoded: list[int] = tokenizer.encode(TEXT.read_text(), add_special_tokens=False).ids
    return encoded


@pytest.fixture(scope="module")
def expected(smollm2_bundle: Path, ids: list[int]) -> NDArray[np.float32]:
    return reference_logits(load_reference(smollm2_bundle), ids[:TOKENS])


@pytest.fixture(scope="module")
def prompts(ids: list[int]) -> list[list[int]]:
    return [ids[index * 200 : index * 200 + PROMPT_TOKENS] for index in range(PROMPTS)]


@pytest.fixture(scope="module")
def expected_of_prompts(smollm2_bundle: Path, prompts: list[list[int]]) -> list[NDArray[np.float32]]:
    model = load_reference(smollm2_bundle)
    return [reference_logits(model, prompt) for prompt in prompts]


def test_perplexity_and_top1_match_the_reference(
    smollm2_bundle: Path, ids: list[int], expected: NDArray[np.float32]
) -> None:
    ours = boot_logits(smollm2_bundle, ids[:TOKENS])
    assert perplexity(ours, ids[:TOKENS]) == pytest.approx(perplexity(expected, ids[:TOKENS]), rel=0.005)
    agree, violations = top1_agreement(ours, expected, TOLERANCE)
    assert violations == 0
    assert agree >= AGREEMENT


@pytest.fixture(params=LEVELS)
def level(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Every level that this processor executes, whether /proc/cpuinfo admits it or not."""
    name: str = request.param
    if not runs_here(name, tmp_path_factory.getbasetemp()):
        pytest.skip(f"this processor does not execute {name}")
    monkeypatch.setenv("PAITON_CPU_FLAGS", " ".join(LEVELS[name]))
    return name


def test_every_level_matches_the_reference(
    level: str, smollm2_bundle: Path, prompts: list[list[int]], expected_of_prompts: list[NDArray[np.float32]]
) -> None:
    _check_prompts(smollm2_bundle, prompts, expected_of_prompts, level)


def test_three_ranks_match_the_reference(
    level: str,
    build_bundle: Callable[..., Path],
    smollm2_gguf: Path,
    prompts: list[list[int]],
    expected_of_prompts: list[NDArray[np.float32]],
) -> None:
    bundle = build_bundle("smollm2-tp3", smollm2_gguf, "--tp", "3")
    _check_prompts(bundle, prompts, expected_of_prompts, level)


@pytest.mark.parametrize("tp", [2, 4])
def test_padded_heads_on_two_and_four_ranks_match_the_reference(
    tp: int,
    level: str,
    build_bundle: Callable[..., Path],
    smollm2_padded_hf: Path,
    prompts: list[list[int]],
    expected_of_prompts: list[NDArray[np.float32]],
) -> None:
    """A zero fourth group of heads and zero o_proj columns leave the logits of the 9-head model as they are."""
    bundle = build_bundle(f"smollm2-tp{tp}", smollm2_padded_hf, "--tp", str(tp))
    _check_prompts(bundle, prompts, expected_of_prompts, level)


def _check_prompts(bundle: Path, prompts: list[list[int]], expected: list[NDArray[np.float32]], level: str) -> None:
    with boot(bundle, BootOptions(level=level)) as model:
        ours = [logits_of(model, prompt) for prompt in prompts]
    agree, violations = top1_agreement(np.concatenate(ours), np.concatenate(expected), TOLERANCE)
    assert violations == 0
    assert agree >= AGREEMENT
