"""Which layers of a program stand for all: lowering a hundred equal layers gives a hundred times the same launches.

Of a run of layers with the same ops over tensors of the same layout, one stride apart, the first three and the last are
kept. `segments.chain` takes the strides from the first two, and holds the third and the last against them: whatever
differs between layers that look alike here is an error there, never a wrong plan.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import groupby

from paiton_aot.program import Op, Program
from paiton_artifacts.schema import Tensor

KEPT = 3
"""Layers kept at the start of a run: two give strides, one shows that nothing alternates."""


def representative(program: Program, tensors: Sequence[Tensor]) -> Program:
    """Returns the program without the layers that others stand for.

    Args:
        program: of a model.
        tensors: the tensor table; the tensors of layer N are called "layers.N.<name>".
    """
    layouts = _layouts(tensors)
    kept: list[Op] = []
    for in_layers, group in groupby(program.ops, key=lambda op: op.layer is not None):
        if not in_layers:
            kept += group
            continue
        layers = [tuple(ops) for _, ops in groupby(group, key=lambda op: op.layer)]
        for run in _runs(layers, layouts):
            shown = run if len(run) <= KEPT + 1 else [*run[:KEPT], run[-1]]
            kept += [op for ops in shown for op in ops]
    return replace(program, ops=tuple(kept))


def _runs(
    layers: Sequence[tuple[Op, ...]], layouts: Mapping[int | None, tuple[int, Hashable]]
) -> Iterator[list[tuple[Op, ...]]]:
    """Yields the longest runs of layers that are alike and evenly spaced."""
    run: list[tuple[Op, ...]] = []
    kind: Hashable = None
    offsets: list[int] = []
    for ops in layers:
        offset, layout = layouts.get(ops[0].layer, (0, ()))
        signature = (_signature(ops), layout)
        even = len(offsets) < 2 or offset - offsets[-1] == offsets[1] - offsets[0]
        if run and (signature != kind or not even):
            yield run
            run, offsets = [], []
        kind = signature
        run.append(ops)
        offsets.append(offset)
    if run:
        yield run


def _signature(ops: Sequence[Op]) -> Hashable:
    """Returns what a layer's ops are, its number left out of names."""
    prefix = f"layers.{ops[0].layer}."
    return tuple(
        (type(op), *(_unnumbered(getattr(op, field.name), prefix) for field in fields(op) if field.name != "layer"))
        for op in ops
    )


def _unnumbered(value: Hashable, prefix: str) -> Hashable:
    return "." + value.removeprefix(prefix) if isinstance(value, str) and value.startswith(prefix) else value


def _layouts(tensors: Sequence[Tensor]) -> dict[int | None, tuple[int, Hashable]]:
    """Returns, by layer, the offset of its first tensor and what its tensors are, relative to that."""
    first: dict[int, int] = {}
    found: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        word, _, rest = tensor.name.partition(".")
        number, _, name = rest.partition(".")
        if word != "layers" or not number.isdigit():
            continue
        layer, prefix = int(number), f"layers.{number}."
        offset = tensor.offset - first.setdefault(layer, tensor.offset)
        scale = tensor.scale.removeprefix(prefix)
        found.setdefault(layer, []).append(replace(tensor, name=name, scale=scale, offset=offset, parts=()))
    return {layer: (first[layer], tuple(members)) for layer, members in found.items()}
