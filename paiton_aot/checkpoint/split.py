"""Modules that a checkpoint stores as one, offered as those that they are made of: slices of rows, copied nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from paiton_aot.checkpoint.base import SourceTensor
from paiton_aot.checkpoint.quantization.description import BLOCK
from paiton_artifacts.errors import TensorShapeError, UnsupportedQuantizationError


class RowSlice(SourceTensor):
    """Rows [first, first + rows) of a tensor, as a tensor of its own."""

    def __init__(self, name: str, whole: SourceTensor, first: int, rows: int) -> None:
        super().__init__(name, (rows, *whole.shape[1:]), whole.dtype)
        self._whole = whole
        self._first = first

    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        return self._whole.read_rows(self._first + start, self._first + stop)


class Renamed(SourceTensor):
    """A tensor under another name."""

    def __init__(self, name: str, whole: SourceTensor) -> None:
        super().__init__(name, whole.shape, whole.dtype)
        self._whole = whole

    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        return self._whole.read_rows(start, stop)


def split_fused(
    tensors: Mapping[str, SourceTensor], fused: Mapping[str, Sequence[tuple[str, int]]], layers: int
) -> dict[str, SourceTensor]:
    """Returns the tensors with the parts of fused modules in their place: weights, biases and scales.

    Args:
        tensors: all tensors of the checkpoint.
        fused: by module within a layer, the names and rows of its parts.
        layers: number of transformer layers.

    Raises:
        TensorShapeError: a tensor has neither the rows of its parts nor one number for all of them.
        UnsupportedQuantizationError: the parts do not end where the rows of a grid of scales do.
    """
    modules = {
        f"model.layers.{layer}.{module}": [(f"model.layers.{layer}.{part}", rows) for part, rows in parts]
        for layer in range(layers)
        for module, parts in fused.items()
    }
    split: dict[str, SourceTensor] = {}
    for name, tensor in tensors.items():
        module, _, suffix = name.rpartition(".")
        if module in modules:
            split |= {part.name: part for part in _parts(tensor, modules[module], suffix)}
        else:
            split[name] = tensor
    return split


def _parts(tensor: SourceTensor, parts: Sequence[tuple[str, int]], suffix: str) -> list[SourceTensor]:
    total = sum(rows for _, rows in parts)
    if tensor.rows * tensor.row_elements == 1:
        return [Renamed(f"{module}.{suffix}", tensor) for module, _ in parts]
    unit = 1 if tensor.rows == total else BLOCK
    if tensor.rows != -(-total // unit) or (unit > 1 and not suffix.startswith("weight_scale")):
        raise TensorShapeError(
            f"tensor {tensor.name} has shape {list(tensor.shape)}, the configuration implies {total} rows",
            hint="weights and configuration belong to different models",
        )
    if any(rows % unit for _, rows in parts[:-1]):
        raise UnsupportedQuantizationError(
            f"tensor {tensor.name} has scales of {BLOCK} rows that belong to several of its parts",
            hint="use a checkpoint whose scales are per tensor or per row",
        )
    slices: list[SourceTensor] = []
    first = 0
    for module, rows in parts:
        slices.append(RowSlice(f"{module}.{suffix}", tensor, first // unit, -(-rows // unit)))
        first += rows
    return slices
