"""A model in every FP8 format, booted on one and two ranks, against transformers in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from paiton_aot.cli import main
from tests.coverage_cases import FORMAT_CASES, FP8_FORMATS, Case
from tests.fp8_checkpoints import FORMATS, dequantized, save_fp8
from tests.independent_reader import read_bundle
from tests.make_checkpoints import edit_json, load_tensors, rewrite
from tests.reference import load_reference, reference_logits, relative_error
from tests.teacher_forced import boot_logits

IDS = [(13 * index + 2) % 300 for index in range(64)]
ROUNDED = 0.02
"""Relative error against a reference that rounds where we round: what is left is values that fall on the other side."""
UNROUNDED = 0.05
"""Relative error of bf16 activations against float32 ones, in these random models, which amplify."""

NAMES = {label: name for name, label in FP8_FORMATS.items()}
STEPS = ("--max-num-batched-tokens", "16", "--max-num-seqs", "16")


def _source(case: Case, path: Path) -> Path:
    """Writes the checkpoint; two ranks divide small ones within blocks of 128, which only scales of blocks forbid."""
    name = NAMES[case.format]
    return save_fp8(path, name, small="block" not in name)


def _build(checkpoint: Path, output: Path, *flags: str) -> Path:
    assert main([str(checkpoint), "-o", str(output), "-q", *STEPS, *flags]) == 0
    return output


@pytest.mark.parametrize("case", [case for case in FORMAT_CASES if case.tp == 1], ids=lambda case: case.name)
def test_all_that_a_format_says_is_used(case: Case, tmp_path: Path) -> None:
    """FP8 activations, static where the format has them, and an FP8 cache."""
    bundle = _build(_source(case, tmp_path / "hf"), tmp_path / "bundle", "--act", "fp8", "--kv", "fp8")
    facts = read_bundle(bundle).manifest["model"]
    mode = "fp8-static" if FORMATS[NAMES[case.format]].input_scale else "fp8-dynamic"
    assert (facts["activations"], facts["kv_cache"]) == (mode, "fp8")
    assert relative_error(boot_logits(bundle, IDS), reference_logits(load_reference(bundle), IDS)) < ROUNDED


@pytest.mark.parametrize("case", [case for case in FORMAT_CASES if case.tp == 2], ids=lambda case: case.name)
def test_two_ranks_compute_what_the_checkpoint_means(case: Case, tmp_path: Path) -> None:
    """bf16 activations; the reference has the checkpoint's weights in float32, by the format's own definition."""
    source = _source(case, tmp_path / "hf")
    bundle = _build(source, tmp_path / "bundle", "--tp", str(case.tp))
    plain = dequantized(load_tensors(source), FORMATS[NAMES[case.format]])
    rewrite(source, lambda _: plain)
    edit_json(source / "config.json", quantization_config=None, compression_config=None)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    assert relative_error(boot_logits(bundle, IDS), reference_logits(model.eval(), IDS)) < UNROUNDED


def test_every_format_has_a_case() -> None:
    assert FP8_FORMATS.keys() == FORMATS.keys()
