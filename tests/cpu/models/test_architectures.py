"""Every architecture on the cpu target, against transformers in float32 on the same dequantised weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from paiton_aot import build as build_module
from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.cli import main as run_main
from paiton_runtime.model import Chunk
from tests.coverage_cases import ARCHITECTURE_CASES, DOCUMENT, Case, all_cases, coverage
from tests.cpu.models.conftest import LEVEL, options_of
from tests.independent_reader import read_bundle
from tests.make_checkpoints import FP8_STATIC, edit_json, load_tensors, quantize_static, rewrite
from tests.model_reference import model_reference
from tests.reference import dequantized, reference_logits, relative_error, top1_agreement

IDS = [(29 * index + 7) % 300 for index in range(64)]
STEPS = (16, 16, *(8,) * 3, *(1,) * 8)
"""Tokens of each step: the prefill forms of kernels, then the decode forms, with several rows and with one."""
TOLERANCE = {"bf16": 0.01, "fp8": 0.02}
"""Relative error by activation mode, against a reference that rounds where we round: what is left is values that fall
on the other side."""
MARGIN = 5
"""Tolerances between the reference's two best logits that make its choice clear: errors are RMS, over all tokens."""

Logits = NDArray[np.float32]


def logits_of(bundle: Path) -> Logits:
    """Returns the logits [64, vocabulary] after every prefix of IDS."""
    rows = []
    with boot(bundle, BootOptions(level=LEVEL, golden_check=False)) as model:
        blocks = list(range(-(-len(IDS) // model.manifest.memory[0].kv_block_tokens)))
        start = 0
        for count in STEPS:
            result = model.step([Chunk(IDS[start : start + count], start, blocks, logits="all")])
            rows += [np.array(np.frombuffer(result.logits(row), np.float32)) for row in range(count)]
            start += count
    return np.stack(rows)


@pytest.fixture(scope="module")
def expected_of(build: Callable[[Case], Path], checkpoint_of: Callable[[str], Path]) -> Callable[[Case], Logits]:
    """A function that returns the reference's logits for a case; ranks do not matter to it."""
    known: dict[str, Logits] = {}

    def expected(case: Case) -> Logits:
        whole = replace(case, tp=1)
        if whole.name not in known:
            known[whole.name] = reference_logits(model_reference(checkpoint_of(case.model), build(whole)), IDS)
        return known[whole.name]

    return expected


@pytest.mark.parametrize("case", ARCHITECTURE_CASES, ids=lambda case: case.name)
def test_logits_are_those_of_the_reference(
    case: Case, build: Callable[[Case], Path], expected_of: Callable[[Case], Logits]
) -> None:
    expected, ours = expected_of(case), logits_of(build(case))
    tolerance = TOLERANCE["fp8" if "fp8 activations" in case.format else "bf16"]
    assert relative_error(ours, expected) < tolerance
    _, violations = top1_agreement(ours, expected, MARGIN * tolerance * float(expected.std()))
    assert violations == 0


@pytest.mark.usefixtures("build")
def test_an_fp8_checkpoint_of_fused_modules(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Phi-3's qkv and gate/up projections have one scale each on disk, which all of their parts get."""
    case = Case("phi3", "bf16 to fp8", "cpu", 1)
    source = shutil.copytree(checkpoint_of(case.model), tmp_path / "hf")
    rewrite(source, quantize_static)
    edit_json(source / "config.json", quantization_config=FP8_STATIC)
    bundle = tmp_path / "bundle"
    build_module.build(source, bundle, options_of(case))
    stored, contents = load_tensors(source), read_bundle(bundle)
    for fused, name in (("self_attn.qkv_proj", "qkv_proj"), ("mlp.gate_up_proj", "gate_up_proj")):
        module = f"model.layers.1.{fused}"
        expected = stored[f"{module}.weight"].float() * stored[f"{module}.weight_scale"].float()
        assert np.array_equal(dequantized(contents, f"layers.1.{name}"), expected.numpy())
    expected_logits = reference_logits(model_reference(checkpoint_of(case.model), bundle), IDS)
    assert relative_error(logits_of(bundle), expected_logits) < TOLERANCE["bf16"]


@pytest.mark.usefixtures("build")
def test_few_tokens_a_step_and_where_the_model_came_from(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Goldens of 16 tokens take several steps; the manifest pins the model of the hub that was built."""
    commit = "0123456789" * 4
    options = options_of(Case("llama2", "bf16 to fp8", "cpu", 1))
    few = replace(options, max_num_batched_tokens=4, hub_model="org/tiny", commit=commit)
    assert build_module.build(checkpoint_of("llama2"), tmp_path / "b", few).verified
    manifest = read_bundle(tmp_path / "b").manifest
    assert max(len(golden["prompt"]) for golden in manifest["goldens"]) == 16 > manifest["memory"][0]["max_tokens"] == 4
    assert manifest["source"] == {"model": "org/tiny", "commit": commit}
    assert run_main(["verify", str(tmp_path / "b")]) == 0
    assert run_main(["inspect", str(tmp_path / "b")]) == 0
    assert f"from org/tiny, commit {commit}" in capsys.readouterr().out


def test_the_document_is_of_these_cases() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == coverage(all_cases()), "regenerate it with `python -m tests.coverage_cases`"
