"""Folds the launches of equal layers into one template that repeats with a stride per relocation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Protocol, TypeVar

from paiton_artifacts.plan import Launch, Relocation, RelocationKind, Segment

Layer = tuple[Launch, ...]


class InLayer(Protocol):
    """What folding needs to know of a launch."""

    @property
    def layer(self) -> int | None:
        """Of the decoder; None outside of them."""


Draft = TypeVar("Draft", bound=InLayer)


def chain(drafts: Sequence[Draft], launch: Callable[[Draft], Launch]) -> tuple[Segment, ...]:
    """Returns the segments of a whole chain: layers folded, launches outside of them as they are."""
    segments: list[Segment] = []
    for in_layers, group in groupby(drafts, key=lambda draft: draft.layer is not None):
        if in_layers:
            layers = [tuple(map(launch, layer)) for _, layer in groupby(group, key=lambda draft: draft.layer)]
        else:
            layers = [tuple(map(launch, group))]
        segments += fold(layers)
    return tuple(segments)


def fold(layers: Sequence[Layer]) -> list[Segment]:
    """Returns segments whose unrolled launches are those of `layers`, in order."""
    segments = []
    start = 0
    while start < len(layers):
        template, repeat = _longest_run(layers[start:])
        segments.append(Segment(repeat, template))
        start += repeat
    return segments


def unroll(segment: Segment) -> list[Launch]:
    """Returns the launches of a segment, repeats and strides applied: the inverse of `fold`."""
    return [_at(launch, index) for index in range(segment.repeat) for launch in segment.launches]


def _longest_run(layers: Sequence[Layer]) -> tuple[Layer, int]:
    first = layers[0]
    if len(layers) == 1 or (template := _with_strides(first, layers[1])) is None:
        return first, 1
    repeat = 2
    while repeat < len(layers) and tuple(_at(launch, repeat) for launch in template) == layers[repeat]:
        repeat += 1
    return template, repeat


def _with_strides(first: Layer, second: Layer) -> Layer | None:
    """Returns `first` with the strides that lead to `second`, or None where the two differ in more than offsets."""
    if len(first) != len(second):
        return None
    template = []
    for a, b in zip(first, second, strict=True):
        if len(a.relocations) != len(b.relocations):
            return None
        strides = [q.offset - p.offset for p, q in zip(a.relocations, b.relocations, strict=True)]
        if any(stride < 0 for stride in strides):
            return None
        relocations = tuple(replace(p, stride=stride) for p, stride in zip(a.relocations, strides, strict=True))
        template.append(replace(a, relocations=relocations))
    return tuple(template) if tuple(_at(launch, 1) for launch in template) == second else None


def _at(launch: Launch, index: int) -> Launch:
    return replace(launch, relocations=tuple(_shifted(r, index) for r in launch.relocations))


def _shifted(relocation: Relocation, index: int) -> Relocation:
    if relocation.kind is RelocationKind.RANK:
        return relocation
    return replace(relocation, offset=relocation.offset + index * relocation.stride, stride=0)
