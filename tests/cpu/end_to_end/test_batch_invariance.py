"""A row's logits are the same bits whatever else is in the step, and however its prompt is cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.model import Chunk, Model

PROMPT = [(7 * index + 3) % 5000 for index in range(40)]
OTHER = [(11 * index + 5) % 5000 for index in range(300)]


@pytest.fixture(scope="module")
def model(smollm2_bundle: Path) -> Iterator[Model]:
    with boot(smollm2_bundle, BootOptions(golden_check=False)) as booted:
        yield booted


def _alone(model: Model, cuts: list[int], first_block: int = 0) -> bytes:
    """Returns the last token's logits of PROMPT, fed in chunks that end at `cuts`."""
    blocks = list(range(first_block, first_block + 3))
    start = 0
    for end in cuts:
        result = model.step([Chunk(PROMPT[start:end], start, blocks)])
        start = end
    return bytes(result.logits(0).cast("B"))


def test_how_a_prompt_is_cut_does_not_matter(model: Model) -> None:
    whole = _alone(model, [40])
    assert _alone(model, [1, 2, 40]) == whole
    assert _alone(model, [16, 39, 40]) == whole
    assert _alone(model, list(range(1, 41))) == whole


def test_neighbours_and_blocks_do_not_matter(model: Model) -> None:
    whole = _alone(model, [40])
    ours = Chunk(PROMPT, 0, [50, 20, 70])
    neighbours = [Chunk(OTHER, 0, list(range(100, 120))), Chunk(OTHER[:7], 0, [121]), Chunk([9], 0, [122])]
    for batch in ([ours, *neighbours], [*neighbours, ours], [neighbours[1], ours, neighbours[2]]):
        result = model.step(batch)
        assert bytes(result.logits(batch.index(ours)).cast("B")) == whole


def test_decoding_among_others_does_not_matter(model: Model) -> None:
    whole = _alone(model, [39, 40])
    model.step([Chunk(PROMPT[:39], 0, [0, 1, 2]), Chunk(OTHER, 0, list(range(100, 120)))])
    last = Chunk(PROMPT[39:], 39, [0, 1, 2])
    crowd = [Chunk([index], 0, [130 + index]) for index in range(20)]
    result = model.step([*crowd, last, Chunk(OTHER[:50], 0, list(range(200, 204)))])
    assert bytes(result.logits(20).cast("B")) == whole


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_does_not_matter(threads: int, model: Model, smollm2_bundle: Path) -> None:
    with boot(smollm2_bundle, BootOptions(threads=threads, golden_check=False)) as other:
        assert _alone(other, [37, 38, 40]) == _alone(model, [37, 38, 40])
