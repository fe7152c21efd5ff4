"""Cases of ``argmax`` for a group of one rank, and the batches that tests share out to the ranks of larger ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from paiton_kernels.gpu.comm import comm_layout
from paiton_kernels.gpu.sample_cases import STAGES, carried, expected_of
from paiton_kernels.gpu.sample_scenes import Scene, end_request, new_scene
from paiton_kernels.gpu.sample_stages import Batch
from paiton_kernels.gpu.spec import Case, Config, Constant
from paiton_kernels.sample_reference import Row

RESULTS = ("sampled", "last_token", "token_counts", "finished")
"""What a launch writes."""


def greedy_scene(vocab: int, share: int) -> Scene:
    """Rows with ties within a share of the vocabulary and across shares, NaN, infinities, and nothing to choose."""
    logits = np.random.default_rng(vocab).normal(0, 3, (9, vocab)).astype(np.float32)
    other = min(vocab - 1, share + 3)
    logits[1, [other, 9, 41]] = 50.0
    logits[2] = -2.0
    logits[2, [9, other]] = [-0.0, 0.0]
    logits[3] = np.nan
    logits[3, other] = -1e30
    logits[4] = np.nan
    logits[5] = -np.inf
    logits[6, [17, other]] = np.inf
    logits[7] = -1.0  # all equal
    logits[8, :-1] = -np.inf
    scene = new_scene(f"greedy{vocab}", logits, [Row()] * len(logits))
    end_request(scene, 1, stop_token=9)
    end_request(scene, 2, stop_token=other)
    end_request(scene, 6, at_last_position=True)
    return scene


def sampled(scene: Scene) -> Batch:
    """Returns a scene's batch as ``sample`` leaves it."""
    with np.errstate(invalid="ignore"):  # rows without a token have no log-probabilities, which nobody asks for
        return carried(scene, len(STAGES))


def argmax_case(name: Callable[[Mapping[str, Constant]], str], configs: Sequence[Config]) -> Case:
    """Returns a case of what ``sample`` makes of greedy rows; a share is longer than the vocabulary."""
    vocab, share, blocks = 1000, 1008, 4
    scene = greedy_scene(vocab, share)
    before, after = scene.batch, sampled(scene)
    layout = comm_layout(1, 8, 1, 1)
    expected = expected_of(before, {name: after[name] for name in RESULTS})
    constants: dict[str, Constant] = {"TP": 1, "BLOCKS": blocks, "VOCAB": vocab, "SHARE": share}
    arrays = {
        **before,
        "part": before["logits"],
        "comm": np.zeros(2 * blocks * (64 + layout.channel_bytes), np.int8),
        "comm_peers": np.zeros(1, np.int64),
        "comm_error": np.zeros(4, np.int32),
        "workspace": np.zeros(8 * scene.step.requests, np.int64),
        "semaphores": np.zeros(scene.step.requests, np.int32),
    }
    expected |= {"comm_error": arrays["comm_error"], "semaphores": arrays["semaphores"]}
    scalars = {"part_stride": before["logits"].shape[1], "rank": 0, "max_polls": 10}
    return Case(
        name(constants),
        constants,
        scene.step,
        arrays,
        {**scalars, "channel_bytes": layout.channel_bytes},
        expected,
        dict.fromkeys(expected, "exact"),
        tuple(configs),
    )
