"""Whole plans of a small Llama on an emulated MI300X and MI355X: the same logits as the cpu target's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from paiton_aot.goldens import TOLERANCE
from paiton_runtime.boot import BootOptions, boot
from tests.emulated.emulated_model import EmulatedModel, Piece
from tests.teacher_forced import logits_of

IDS = [(13 * index + 2) % 380 for index in range(40)]
OTHER = [(29 * index + 11) % 380 for index in range(24)]
FLAGS = ("--target", "hip:gfx942", "--target", "hip:gfx950", "--candidates", "1", "--max-num-batched-tokens", "32")
MODES = {
    "bf16": (),
    "fp8-dynamic": ("--act", "fp8", "--kv", "fp8", "--lm-head", "fp8"),
    "bf16-weights": ("--weights", "bf16", "--lm-head", "int8"),
    "fp8-static": ("--act", "fp8", "--kv", "fp8"),
}


def check(actual: NDArray[np.float32], expected: NDArray[np.float32], mode: str) -> None:
    """Fails where a logit differs by more than the mode's tolerance, or another token wins beyond the margin."""
    tolerance = TOLERANCE[mode] * expected.std()
    assert np.abs(actual - expected).max() <= tolerance
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > tolerance
    assert np.array_equal(actual.argmax(1)[clear], expected.argmax(1)[clear])


def run(bundle: Path, target: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the logits of IDS and OTHER after their last tokens: prefill in chunks, then both decode together."""
    model = EmulatedModel(bundle, target, Path(os.environ["PAITON_CACHE"]), kv_blocks=6)
    blocks, other = [4, 1, 3], [5, 0]
    ours = [model.step([Piece(IDS[:25], 0, blocks, every=True)])[0]]
    mixed, sampled = model.step([Piece(IDS[25:26], 25, blocks), Piece(OTHER[:20], 0, other)])
    assert np.array_equal(sampled, mixed.argmax(1))
    ours.append(mixed[:1])
    others = [mixed[1:]]
    for n in range(3):
        logits, sampled = model.step(
            [Piece(OTHER[20 + n : 21 + n], 20 + n, other), Piece(IDS[26 + n : 27 + n], 26 + n, blocks)]
        )
        assert np.array_equal(sampled, logits.argmax(1))
        others.append(logits[:1])
        ours.append(logits[1:])
    return np.concatenate(ours), np.concatenate(others)


@pytest.mark.parametrize("target", ["hip:gfx942", "hip:gfx950"])
@pytest.mark.parametrize("mode", MODES)
def test_a_model_computes_what_the_cpu_does(
    mode: str, target: str, build_bundle: Callable[..., Path], gpu_checkpoint: Path, gpu_static_checkpoint: Path
) -> None:
    checkpoint = gpu_static_checkpoint if mode == "fp8-static" else gpu_checkpoint
    bundle = build_bundle(f"tiny-gpu-{mode}", checkpoint, *FLAGS, *MODES[mode])
    ours, others = run(bundle, target)
    with boot(bundle, BootOptions(golden_check=False, target="cpu")) as model:
        expected = logits_of(model, IDS[:29])
        expected_others = logits_of(model, OTHER[:23])
    kind = "fp8" if "fp8" in mode else "bf16"
    check(ours, expected, kind)
    check(others, expected_others[19:], kind)
