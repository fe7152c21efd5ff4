"""Folds the launches of equal layers into one template that repeats with a stride per relocation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
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
    """Returns the segments of a whole chain: layers folded, launches outside of them as they are.

    Layers may be missing where those around them stand for them: see `representative`.
    """
    segments: list[Segment] = []
    for in_layers, group in groupby(drafts, key=lambda draft: draft.layer is not None):
        if in_layers:
            numbered = [(n, tuple(map(launch, layer))) for n, layer in groupby(group, key=lambda draft: draft.layer)]
            segments += fold([layer for _, layer in numbered], [number or 0 for number, _ in numbered])
        else:
            segments.append(Segment(1, tuple(map(launch, group))))
    return tuple(segments)


def fold(layers: Sequence[Layer], numbers: Sequence[int] = ()) -> list[Segment]:
    """Returns segments whose unrolled launches are those of `layers`, in order.

    Args:
        layers: launches of each.
        numbers: which layers these are, ascending; the missing ones belong to the run around them. Default: all.

    Raises:
        ValueError: layers are missing where there is no such run.
    """
    places = list(numbers) or list(range(len(layers)))
    segments = []
    start = 0
    while start < len(layers):
        template, used = _longest_run(layers[start:], places[start:])
        end = start + used
        if end < len(layers) and places[end] != places[end - 1] + 1:
            raise ValueError(f"layers after {places[end - 1]} were left out, and {places[end]} does not continue them")
        segments.append(Segment(places[end - 1] - places[start] + 1, template))
        start = end
    return segments


def unroll(segment: Segment) -> list[Launch]:
    """Returns the launches of a segment, repeats and strides applied: the inverse of `fold`."""
    return [_at(launch, index) for index in range(segment.repeat) for launch in segment.launches]


def _longest_run(layers: Sequence[Layer], places: Sequence[int]) -> tuple[Layer, int]:
    """Returns the template of the longest run at the start, and how many of the layers given belong to it."""
    first = layers[0]
    if len(layers) == 1 or places[1] != places[0] + 1 or (template := _with_strides(first, layers[1])) is None:
        return first, 1
    used = 2
    while used < len(layers) and _is_at(template, places[used] - places[0], layers[used]):
        used += 1
    return template, used


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
    return tuple(template) if _is_at(tuple(template), 1, second) else None


def _is_at(template: Layer, index: int, layer: Layer) -> bool:
    """Returns whether the layer is what the template stands for at its `index`-th repeat."""
    return len(template) == len(layer) and all(
        _at(launch, index) == other for launch, other in zip(template, layer, strict=True)
    )


def _at(launch: Launch, index: int) -> Launch:
    return replace(launch, relocations=tuple(_shifted(r, index) for r in launch.relocations))


def _shifted(relocation: Relocation, index: int) -> Relocation:
    if relocation.kind is RelocationKind.RANK:
        return relocation
    return replace(relocation, offset=relocation.offset + index * relocation.stride, stride=0)


def repeats(drafts: Sequence[Draft]) -> list[tuple[Draft, int]]:
    """Returns the drafts of a chain, each with the number of launches that it stands for; see `representative`."""
    shown = sorted({draft.layer for draft in drafts if draft.layer is not None})
    missing = {layer: after - layer for layer, after in pairwise(shown)}
    return [(draft, 1 if draft.layer is None else missing.get(draft.layer, 1)) for draft in drafts]
