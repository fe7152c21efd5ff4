"""Scratch allocation by liveness: values whose lives overlap get disjoint bytes, others share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from paiton_aot.targets.draft import Reference, Scratch
from paiton_artifacts.layout import TENSOR_ALIGNMENT, align_up
from paiton_artifacts.plan import Access


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
    """A value's size, and the ranges of launches, in order, over which its bytes matter."""

    size: int
    spans: list[tuple[int, int]]


def allocate(drafts: Sequence[LaunchDraft]) -> tuple[dict[str, int], int]:
    """Places every scratch value of a chain of launches.

    Values of different layers carry the same names: one that a layer writes before it reads it lives anew in every
    layer; any other lives from its first use to its last.

    Returns:
        The byte offset of each value, and the bytes needed in all.
    """
    placed: list[tuple[int, int, _Life]] = []
    offsets: dict[str, int] = {}
    for name, life in sorted(_lives(drafts).items(), key=lambda item: (-item[1].size, item[0])):
        offset = 0
        for start, end, other in sorted(placed, key=lambda p: p[0]):
            if offset < end and start < offset + life.size and _overlap(life.spans, other.spans):
                offset = end
        offsets[name] = offset
        placed.append((offset, align_up(offset + life.size, TENSOR_ALIGNMENT), life))
    return offsets, max((end for _, end, _ in placed), default=0)


def _overlap(first: Sequence[tuple[int, int]], second: Sequence[tuple[int, int]]) -> bool:
    """Whether two lists of ascending, disjoint ranges have a launch in common."""
    i = j = 0
    while i < len(first) and j < len(second):
        if first[i][1] < second[j][0]:
            i += 1
        elif second[j][1] < first[i][0]:
            j += 1
        else:
            return True
    return False


def _lives(drafts: Sequence[LaunchDraft]) -> dict[str, _Life]:
    lives: dict[str, _Life] = {}
    layer_of: dict[str, int | None] = {}  # of each value's last use so far
    carried: set[str] = set()  # values that a layer reads as another left them
    for index, draft in enumerate(drafts):
        for reference in draft.references.values():
            if not isinstance(reference, Scratch):
                continue
            name = reference.value
            life = lives.setdefault(name, _Life(reference.size, []))
            life.size = max(life.size, reference.size)
            if life.spans and layer_of[name] == draft.layer:
                life.spans[-1] = (life.spans[-1][0], index)
            else:
                if life.spans and reference.access is not Access.WRITE:
                    carried.add(name)
                life.spans.append((index, index))
            layer_of[name] = draft.layer
    for name in carried:
        spans = lives[name].spans
        lives[name].spans = [(spans[0][0], spans[-1][1])]
    return lives
