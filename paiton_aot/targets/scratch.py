"""Scratch allocation by liveness: values whose lives overlap get disjoint bytes, others share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from paiton_aot.targets.draft import Reference, Scratch
from paiton_artifacts.layout import TENSOR_ALIGNMENT, align_up


class LaunchDraft(Protocol):
    """What liveness needs to know of a launch."""

    @property
    def references(self) -> Mapping[str, Reference]:
        """By argument name."""

    @property
    def layer(self) -> int | None:
        """Of the decoder; None outside of them."""


@dataclass(slots=True)
class _Life:
    size: int
    first: int
    last: int


def allocate(drafts: Sequence[LaunchDraft]) -> tuple[dict[str, int], int]:
    """Places every scratch value of a chain of launches.

    Layers are alike and their values carry the same names, so lives are taken in the first layer only; a value that
    enters the layers from outside lives through all of them.

    Returns:
        The byte offset of each value, and the bytes needed in all.
    """
    placed: list[tuple[int, int, _Life]] = []
    offsets: dict[str, int] = {}
    for name, life in sorted(_lives(drafts).items(), key=lambda item: (-item[1].size, item[0])):
        offset = 0
        for start, end, other in sorted(placed, key=lambda p: p[0]):
            overlaps_in_time = life.first <= other.last and other.first <= life.last
            if overlaps_in_time and offset < end and start < offset + life.size:
                offset = end
        offsets[name] = offset
        placed.append((offset, align_up(offset + life.size, TENSOR_ALIGNMENT), life))
    return offsets, max((end for _, end, _ in placed), default=0)


def _lives(drafts: Sequence[LaunchDraft]) -> dict[str, _Life]:
    layered = [index for index, draft in enumerate(drafts) if draft.layer is not None]
    lives: dict[str, _Life] = {}
    for index, draft in enumerate(drafts):
        if draft.layer:  # layers after the first repeat it
            continue
        for reference in draft.references.values():
            if not isinstance(reference, Scratch):
                continue
            life = lives.setdefault(reference.value, _Life(reference.size, index, index))
            life.size, life.last = max(life.size, reference.size), index
            if draft.layer is not None and life.first < layered[0]:
                life.last = layered[-1]
    return lives
