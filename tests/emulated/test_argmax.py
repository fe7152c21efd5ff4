"""``argmax`` by several ranks, interleaved at random, against what ``sample`` makes of greedy rows; and its limits."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paiton_artifacts.errors import UnsupportedShapeError
from paiton_kernels.gpu.argmax import ARGMAX, PIECE_COLUMNS, UNITS
from paiton_kernels.gpu.argmax_cases import RESULTS, greedy_scene, sampled
from paiton_kernels.gpu.comm import MAX_BLOCKS, CommLayout
from paiton_kernels.gpu.devices import PROFILES, Target, target_named
from paiton_kernels.gpu.sample_scenes import Scene
from paiton_kernels.gpu.spec import Config, Step
from tests.emulated.group import Group

VOCAB, PADDED = 1000, 1024
BLOCKS = 2
WHOLE = Config.of(1, 1, SPLIT=1, BLOCK=512)
SPLIT = Config.of(2, 1, SPLIT=4, BLOCK=64)
GFX942, GFX950 = target_named("hip:gfx942"), target_named("hip:gfx950")


def with_rows(scene: Scene, count: int) -> Scene:
    """Returns a scene whose step has only its first rows."""
    counts = np.array([2 * count, count, count, 0], np.int32)
    return replace(scene, rows=scene.rows[:count], batch={**scene.batch, "counts": counts})


def shared_out(scene: Scene, tp: int) -> list[dict[str, NDArray[Any]]]:
    """Returns the arrays of every rank: its share of the logits, the last one's padded, and state of its own."""
    share = PADDED // tp
    rows = len(scene.batch["slot_of"])
    logits = np.full((rows, PADDED), 1e9, np.float32)  # beyond the vocabulary: must never be chosen
    logits[: len(scene.batch["logits"]), :VOCAB] = scene.batch["logits"][:, :VOCAB]
    return [
        {
            **{name: array.copy() for name, array in scene.batch.items()},
            "part": np.ascontiguousarray(logits[:, rank * share : (rank + 1) * share]),
            "workspace": np.zeros(rows * 4, np.int64),
            "semaphores": np.zeros(rows, np.int32),
        }
        for rank in range(tp)
    ]


@pytest.mark.parametrize(("tp", "target"), [(2, GFX942), (4, GFX950)], ids=["2-gfx942", "4-gfx950"])
def test_all_ranks_choose_what_sample_chooses(tp: int, target: Target) -> None:
    """Launches of changing sizes behind each other, each of several exchanges; a full step's rows have many ties."""
    whole = greedy_scene(VOCAB, PADDED // tp)
    group = Group(target, CommLayout(tp, BLOCKS, 2 * tp * 8))
    constants = {"VOCAB": VOCAB, "SHARE": PADDED // tp}
    calls = []
    for config, rows in ((WHOLE, 9), (SPLIT, 3), (WHOLE, 0), (SPLIT, 9)):
        scene = with_rows(whole, rows)
        arrays = shared_out(scene, tp)
        calls.append((scene, arrays))
        group.submit(ARGMAX, config, constants, arrays, {"part_stride": PADDED // tp})
    group.run(Random(tp))
    for scene, arrays in calls:
        expected = sampled(scene)
        for own in arrays:
            for name in RESULTS:
                assert np.array_equal(own[name], expected[name]), name
            assert not own["semaphores"].any()
    assert not any(errors.any() for errors in group.errors)


def test_a_rank_that_stalls_leaves_rows_without_a_token() -> None:
    scene = greedy_scene(VOCAB, PADDED // 2)
    group = Group(GFX942, CommLayout(2, BLOCKS, 32), max_polls=30)
    arrays = shared_out(scene, 2)
    constants = {"VOCAB": VOCAB, "SHARE": PADDED // 2}
    group.submit(ARGMAX, SPLIT, constants, arrays, {"part_stride": PADDED // 2}, stalled=[1])
    group.run(Random(1))
    assert group.errors[0].tolist()[:3] == [1, 1, 1]
    for name in RESULTS:
        assert np.array_equal(arrays[0][name], scene.batch[name]), name


@pytest.mark.parametrize(("share", "rows"), [(192, 4), (16064, 1), (16064, 16), (16064, 32), (64128, 32), (128, 256)])
def test_a_full_step_is_few_pieces_a_block_and_covers_the_share(share: int, rows: int) -> None:
    constants = {"TP": 8, "BLOCKS": MAX_BLOCKS, "VOCAB": 8 * share, "SHARE": share}
    for profile in (PROFILES["mi300x"], PROFILES["h200"]):
        (config,) = ARGMAX.space(constants, Step(rows, rows), profile)
        split, block = (dict(config.values)[name] for name in ("SPLIT", "BLOCK"))
        assert split == 1 or split * rows <= UNITS * MAX_BLOCKS
        assert split == 1 or share >= split * PIECE_COLUMNS
        more = 2 * split
        assert more * rows > UNITS * MAX_BLOCKS or share < more * PIECE_COLUMNS, "blocks are left without work"
        assert block <= 2 * PIECE_COLUMNS


def test_what_a_group_cannot_be_is_refused() -> None:
    with pytest.raises(UnsupportedShapeError, match="TP is 3"):
        ARGMAX.variant(WHOLE, TP=3, BLOCKS=2, VOCAB=VOCAB, SHARE=336).require(GFX942)
