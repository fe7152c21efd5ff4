"""Tiny models of every architecture on an emulated MI300X, against transformers on the same dequantised weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import architectures, fp8_checkpoints
from tests.conftest import CHECKPOINT_MAKER, Cache
from tests.coverage_cases import EMULATED_CASES, EMULATED_FORMAT_CASES, FP8_FORMATS, OPTIONS, Case
from tests.cpu.models.test_architectures import IDS, MARGIN, TOLERANCE
from tests.emulated.emulated_model import EmulatedModel, Piece
from tests.emulated.test_plans import check as check_logits
from tests.model_reference import model_reference
from tests.reference import load_reference, reference_logits, relative_error, top1_agreement

CHUNK = 32
PROMPT = 60
"""Tokens that come in chunks; the others come one by one."""

MAKER, FORMAT_MAKER = (Path(module.__file__ or "") for module in (architectures, fp8_checkpoints))


def flags_of(target: str) -> tuple[str, ...]:
    """Returns flags of a build with few buckets, and the first configuration of each kernel."""
    return ("--target", target, "--candidates", "1", "--max-num-batched-tokens", f"{CHUNK}")


def logits_of(bundle: Path, target: str, ids: Sequence[int]) -> NDArray[np.float32]:
    """Returns the logits after every token: a prompt in chunks, then a token at a time."""
    model = EmulatedModel(bundle, target, Path(os.environ["PAITON_CACHE"]), kv_blocks=6)
    steps = [range(CHUNK), range(CHUNK, PROMPT), *(range(at, at + 1) for at in range(PROMPT, len(ids)))]
    logits = []
    for step in steps:
        rows, sampled = model.step([Piece([ids[at] for at in step], step.start, [4, 1, 3, 0], every=True)])
        assert np.array_equal(sampled, rows.argmax(1))
        logits.append(rows)
    return np.concatenate(logits)


def check(ours: NDArray[np.float32], expected: NDArray[np.float32], mode: str) -> None:
    """Fails where logits differ beyond the mode's tolerance, or another token wins beyond the margin.

    In bf16 the tolerance is that of the cpu target. A sum in another order, as in attention here, moves values to other
    FP8 codes, which these random models amplify: FP8 has the tolerance of goldens.
    """
    if mode == "fp8":
        check_logits(ours, expected, mode)
        return
    tolerance = TOLERANCE[mode]
    assert relative_error(ours, expected) < tolerance
    _, violations = top1_agreement(ours, expected, MARGIN * tolerance * float(expected.std()))
    assert violations == 0


@pytest.mark.parametrize("case", EMULATED_CASES, ids=lambda case: case.name)
def test_an_architecture(case: Case, build_bundle: Callable[..., Path], cache: Cache) -> None:
    def save(folder: Path) -> None:
        architectures.make(case.model, folder)

    checkpoint = cache.folder(f"architecture-{case.model}", save, (MAKER, CHECKPOINT_MAKER))  # as the cpu tests ask
    options = [word for name, value in OPTIONS[case.format].items() for word in (f"--{name}", value)]
    bundle = build_bundle(case.name.replace(":", "-"), checkpoint, *flags_of(case.target), *options)
    expected = reference_logits(model_reference(checkpoint, bundle), IDS)
    check(logits_of(bundle, case.target, IDS), expected, "fp8" if "fp8 activations" in case.format else "bf16")


@pytest.mark.parametrize("mode", ["bf16", "fp8"])
@pytest.mark.parametrize("case", EMULATED_FORMAT_CASES, ids=lambda case: case.name)
def test_a_format(case: Case, mode: str, build_bundle: Callable[..., Path], cache: Cache) -> None:
    (name,) = [name for name, label in FP8_FORMATS.items() if label == case.format]

    def save(folder: Path) -> None:
        fp8_checkpoints.save_fp8(folder, name)

    checkpoint = cache.folder(f"format-{name}", save, (CHECKPOINT_MAKER, MAKER, FORMAT_MAKER))
    options = ("--act", "fp8", "--kv", "fp8") if mode == "fp8" else ()
    bundle = build_bundle(f"format-{name}-gpu-{mode}", checkpoint, *flags_of(case.target), *options)
    expected = reference_logits(load_reference(bundle), IDS)
    check(logits_of(bundle, case.target, IDS), expected, mode)
