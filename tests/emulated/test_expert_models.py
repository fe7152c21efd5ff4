"""Tiny models with experts and FP8 activations on an emulated MI300X: the same logits as the cpu target's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paiton_runtime.boot import BootOptions, boot
from tests import architectures, fp8_checkpoints
from tests.conftest import CHECKPOINT_MAKER, Cache
from tests.coverage_cases import EMULATED_EXPERT_CASES, FP8_FORMATS, OPTIONS, Case
from tests.emulated.emulated_model import EmulatedModel, Piece
from tests.emulated.test_plans import check
from tests.teacher_forced import logits_of

IDS = [(31 * index + 5) % 300 for index in range(70)]
PROMPT = 66
"""More tokens than a tile of `route` has: the list of entries is made by a launch of its own, and so are FP8 codes."""

MAKERS = tuple(Path(module.__file__ or "") for module in (architectures, fp8_checkpoints))


def source_of(case: Case, cache: Cache) -> Path:
    """Returns the tiny model of a case, in the case's FP8 format if it has one."""

    def plain(folder: Path) -> None:
        architectures.make(case.model, folder)

    made = cache.folder(f"architecture-{case.model}", plain, (MAKERS[0], CHECKPOINT_MAKER))  # as the cpu tests ask
    names = {label: name for name, label in FP8_FORMATS.items()}
    if case.format not in names:
        return made

    def quantize(folder: Path) -> None:
        shutil.copytree(made, folder, dirs_exist_ok=True)
        fp8_checkpoints.quantize(folder, names[case.format])

    name = f"architecture-{case.model}-{names[case.format]}"
    return cache.folder(name, quantize, (MAKERS[0], CHECKPOINT_MAKER, MAKERS[1]))


@pytest.mark.parametrize("case", EMULATED_EXPERT_CASES, ids=lambda case: case.name)
def test_a_model_computes_what_the_cpu_does(case: Case, build_bundle: Callable[..., Path], cache: Cache) -> None:
    """A prompt in one step, two tokens in one, then one at a time."""
    options = OPTIONS.get(case.format, {"act": "fp8", "kv": "fp8"})
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    buckets = ("--candidates", "1", "--max-num-batched-tokens", "128", "--max-num-seqs", "16")
    bundle = build_bundle(
        case.name.replace(":", "-"), source_of(case, cache), "--target", case.target, *buckets, *flags
    )
    model = EmulatedModel(bundle, case.target, Path(os.environ["PAITON_CACHE"]), kv_blocks=6)
    ours = []
    for start, end in ((0, PROMPT), (PROMPT, PROMPT + 2), *((at, at + 1) for at in range(PROMPT + 2, len(IDS)))):
        rows, sampled = model.step([Piece(IDS[start:end], start, [4, 1, 3, 0, 5], every=end - start <= 2)])
        assert np.array_equal(sampled, rows.argmax(1))
        ours.append(rows)
    with boot(bundle, BootOptions(golden_check=False, target="cpu")) as reference:
        expected = logits_of(reference, IDS)
    check(np.concatenate(ours), expected[PROMPT - 1 :], "fp8")
