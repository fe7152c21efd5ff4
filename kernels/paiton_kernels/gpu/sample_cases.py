"""Cases of the launches of ``sample``: scenes in which every row has other parameters, carried through the chain.

Logits and biases are multiples of 1/64 and penalties powers of two, so that processed logits are exact and ties are
frequent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.gpu.devices import Target
from paiton_kernels.gpu.sample_scenes import Scene, add_biases, constrain, end_request, new_scene
from paiton_kernels.gpu.sample_stages import (
    Batch,
    after_candidates,
    after_draw,
    after_histogram,
    after_process,
    after_report,
)
from paiton_kernels.gpu.spec import Case
from paiton_kernels.sample_reference import Row
from paiton_kernels.spec import MAX_BIASES

STAGES = (after_process, after_histogram, after_candidates, after_draw, after_report)

TOLERANCES = {"chunk_sum": "f32", "chunk_mass": "f32", "sampled_logprob": "f32", "top_values": "f32"}
"""Of outputs; all others are exact."""

_SEED = (1 << 63) + 5
_DRAW = (1 << 32) - 8


def _random_logits(rows: int, vocab: int, spread: float = 3.0) -> NDArray[np.float32]:
    random = np.random.default_rng(vocab)
    return (np.round(random.normal(0, spread, (rows, vocab)) * 64) / 64).astype(np.float32)


def _random_biases(count: int) -> list[float]:
    random = np.random.default_rng(count)
    return [*(np.round(random.uniform(-100, 100, count - 20) * 4) / 4).tolist(), *[-np.inf] * 20]


def mixed_scene(vocab: int = 1000) -> Scene:
    """Every feature alone and some together, and edge cases."""
    parameters = (
        Row(),
        Row(top_logprobs=20, repetition=2.0, presence=0.5, frequency=0.25),
        Row(temperature=1.0, top_logprobs=1),
        Row(temperature=0.7, top_k=50),
        Row(temperature=1.3, top_p=0.9, top_logprobs=5),
        Row(temperature=0.8, top_k=40, top_p=0.95, top_logprobs=0),
        Row(temperature=1.0, min_p=0.1),
        Row(temperature=2.0, min_p=0.05, top_k=20, top_p=0.9, repetition=2.0, presence=0.5, frequency=0.25),
        Row(temperature=2.0, top_k=1),
        Row(temperature=1.0, top_p=1e-9),
        Row(temperature=1.0, top_p=0.0),
        Row(temperature=1.0, top_k=1 << 30),
        Row(temperature=1.0, top_k=vocab - 1, top_p=0.999),
        Row(temperature=5.0, top_p=0.5),
        Row(temperature=1e-9, top_k=3),
        Row(temperature=1e-42, top_p=0.5),
        Row(temperature=1.0, repetition=0.5),
        Row(temperature=1.0, frequency=-0.25, top_k=5),
        Row(temperature=1.0, top_p=0.9),  # from here on: special logits or masks
        Row(temperature=1.0, top_k=7, min_p=1.0),
        Row(temperature=1.0, top_p=0.4505, top_logprobs=20),
        Row(temperature=1.0, top_k=77),
        Row(temperature=1.0, top_p=0.9, top_k=30),
        Row(temperature=1.0, top_k=4),
        Row(),
        Row(top_logprobs=3),
        Row(top_logprobs=2),  # from here on: biases
        Row(temperature=1.0, top_k=5, repetition=2.0, presence=0.5),
        Row(temperature=1.0, top_p=0.9),
    )
    rows = [replace(row, seed=_SEED, draw=_DRAW + number) for number, row in enumerate(parameters)]
    logits = _random_logits(len(rows), vocab)
    logits[20:22] = -1.0  # all equal
    logits[22, 3:] = -np.inf
    logits[23, ::2] = np.nan
    logits[24, [9, 700, 41]] = 50.0
    logits[25] = -2.0
    logits[25, [10, 9, 30]] = [0.0, -0.0, np.nan]
    logits[27, 8] = np.nan
    scene = new_scene(f"mixed{vocab}", logits, rows)
    every = np.arange(vocab)
    constrain(scene, 7, every[::3])
    constrain(scene, 1, every[every % 7 != 0])
    constrain(scene, 18, every[vocab - 2 : vocab - 1])
    constrain(scene, 19, every[:0])
    add_biases(scene, 26, [int(logits[26].argmax()), 77], [-np.inf, 8.0])
    add_biases(scene, 27, [5, 8, 0, vocab - 1, 6, 9], [19.5, 100.0, 19.0, 19.25, 19.5, -100.0])
    constrain(scene, 27, every[every != 6])
    add_biases(scene, 28, every[-MAX_BIASES:], _random_biases(MAX_BIASES))
    end_request(scene, 0, stop_token=int(logits[0].argmax()))
    end_request(scene, 24, stop_token=9)
    end_request(scene, 2, at_last_position=True)
    end_request(scene, 3, stop_token=0)
    return scene


def chunked_scene(vocab: int = 5003) -> Scene:
    """Rows of several chunks: limits, ties and draws that cross them."""
    parameters = (
        Row(top_logprobs=20),
        Row(temperature=1.0, top_logprobs=3),
        Row(temperature=0.8, top_k=40, top_p=0.95),
        Row(temperature=4.0, top_p=0.8, min_p=0.01),
        Row(temperature=1.0, top_k=vocab // 2, top_logprobs=20),
        Row(temperature=1.5, top_k=600, top_p=0.99, repetition=2.0, frequency=0.5),
        Row(temperature=1.0, top_k=300),
        Row(temperature=1.0, top_p=0.6),
    )
    rows = [replace(row, seed=number, draw=_DRAW + number) for number, row in enumerate(parameters)]
    logits = _random_logits(len(rows), vocab)
    logits[4] = 1.0
    logits[6:] = 1.0
    logits[6:, -400::2] = 2.0  # behind the ties, which are used up in the first chunk
    scene = new_scene(f"chunks{vocab}", logits, rows)
    constrain(scene, 5, np.arange(100, vocab, 3))
    add_biases(scene, 3, np.random.default_rng(2).permutation(vocab)[:MAX_BIASES], _random_biases(MAX_BIASES))
    return scene


def carried(scene: Scene, launches: int) -> Batch:
    """Returns a scene's batch as the first `launches` launches of the chain leave it."""
    batch = scene.batch
    for stage in STAGES[:launches]:
        batch = stage(batch, scene.rows, scene.vocab)
    return batch


def expected_of(before: Batch, after: Batch) -> Batch:
    """Returns what a launch writes: NaN where an array of f32 keeps its bytes."""
    changed = {name: array for name, array in after.items() if array is not before[name]}
    return {
        name: np.where(array == before[name], np.nan, array.astype(np.float64)) if array.dtype.kind == "f" else array
        for name, array in changed.items()
    }


def _cases(launch: int) -> Callable[[Target], Iterator[Case]]:
    def cases(_target: Target) -> Iterator[Case]:
        for scene in (mixed_scene(), chunked_scene()):
            before = carried(scene, launch)
            expected = expected_of(before, STAGES[launch](before, scene.rows, scene.vocab))
            tolerance = {name: TOLERANCES.get(name, "exact") for name in expected}
            scalars = {"logits_stride": before["logits"].shape[1]}
            yield Case(scene.name, {"VOCAB": scene.vocab}, scene.step, before, scalars, expected, tolerance)

    return cases


process_cases, histogram_cases, candidates_cases, draw_cases, report_cases = (_cases(n) for n in range(len(STAGES)))
