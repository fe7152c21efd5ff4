"""The rows of q and k in the order in which kernels rotate them: element i of a head with element i + head_dim / 2.

Checkpoints have them otherwise in two cases. llama.cpp's converter puts the two elements of a pair beside each other.
And where RoPE rotates only the first R elements of a head, element i goes with element i + R / 2: those pairs come
first here, with their frequencies, and pairs of the others follow, with frequencies of 0. Any order will do that q and
k share, as scores are sums over a head's elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paiton_aot.checkpoint.base import ModelConfig, SourceTensor
from paiton_aot.checkpoint.quantization.description import Quantization, QuantizedModule, ScaleKind
from paiton_aot.checkpoint.rope import attention_factor
from paiton_artifacts.errors import UnsupportedQuantizationError

Order = NDArray[np.intp]
"""For each element of a head, which one of the checkpoint's it is."""


def neighbours(head_dim: int) -> Order:
    """Returns the order for heads whose pairs are neighbours."""
    elements = np.arange(head_dim)
    half = head_dim // 2
    return elements % half * 2 + elements // half


def partly_rotated(head_dim: int, rotary_dim: int) -> Order:
    """Returns the order for heads of which the first `rotary_dim` elements are rotated."""
    first, second, rest = np.split(np.arange(head_dim), [rotary_dim // 2, rotary_dim])
    middle = len(rest) // 2
    return np.concatenate([first, rest[:middle], second, rest[middle:]])


class ReorderedHeads(SourceTensor):
    """A tensor whose rows are elements of heads, put in order.

    Args:
        whole: the tensor; it is made of whole heads.
        order: of the rows of each head.
        divisors: f32 for each row of a head, by its new place, that values are divided by.
    """

    def __init__(self, whole: SourceTensor, order: Order, divisors: NDArray[np.float32] | None = None) -> None:
        super().__init__(whole.name, whole.shape, whole.dtype if divisors is None else "f32")
        self._whole = whole
        self._order = order
        self._divisors = divisors

    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        head = len(self._order)
        first = start // head * head
        last = min(-(-stop // head) * head, self.rows)
        wanted = np.arange(start, stop)
        within = wanted % head
        rows: NDArray[np.generic] = self._whole.read_rows(first, last)[wanted - within + self._order[within] - first]
        if self._divisors is None:
            return rows
        divided: NDArray[np.float32] = (rows.astype(np.float32).T / self._divisors[within]).T
        return divided


class _Spread(SourceTensor):
    """One number as a vector."""

    def __init__(self, number: SourceTensor, rows: int) -> None:
        super().__init__(number.name, (rows,), number.dtype)
        self._number = number

    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        return np.repeat(self._number.read_rows(0, 1).reshape(1), stop - start)


def in_order(
    tensors: Mapping[str, SourceTensor], quantization: Quantization | None, config: ModelConfig
) -> tuple[dict[str, SourceTensor], Quantization | None]:
    """Returns a checkpoint's tensors with the rows of q and k in order, and how they are quantised then.

    RoPE's attention factor belongs to the elements that are rotated. Kernels multiply the scores by its square, so the
    rows of all others are divided by it: the scales of a quantised weight, which becomes one with scales of rows.

    Args:
        tensors: by their names, q and k apart.
        quantization: how they are quantised.
        config: of the model.

    Raises:
        UnsupportedQuantizationError: q or k has scales of blocks.
    """
    found = dict(tensors)
    if not config.rotary_dim:
        return found, quantization
    order = partly_rotated(config.head_dim, config.rotary_dim)
    factor = attention_factor(config.rope_scaling)
    divisors = None if factor == 1.0 else np.where(order < config.rotary_dim, 1.0, factor).astype(np.float32)
    modules = {} if quantization is None else dict(quantization.modules)
    for module in (f"model.layers.{i}.self_attn.{which}_proj" for i in range(config.layers) for which in "qk"):
        weight, bias, quantized = f"{module}.weight", f"{module}.bias", modules.get(module)
        if bias in found:
            found[bias] = ReorderedHeads(found[bias], order, divisors)
        if weight in found and quantized is not None:
            modules[module] = _reorder_scales(found, module, quantized, order, divisors)
            found[weight] = ReorderedHeads(found[weight], order)
        elif weight in found:
            found[weight] = ReorderedHeads(found[weight], order, divisors)
    return found, None if quantization is None else replace(quantization, modules=modules)


def _reorder_scales(
    found: dict[str, SourceTensor],
    module: str,
    quantized: QuantizedModule,
    order: Order,
    divisors: NDArray[np.float32] | None,
) -> QuantizedModule:
    """Puts the scales of a quantised module in order; returns its description."""
    if quantized.kind is ScaleKind.BLOCK:
        raise UnsupportedQuantizationError(
            f"{module} has scales of blocks, and only a part of each head is rotated",
            hint="use a checkpoint whose scales are per tensor or per row",
        )
    scale = found[quantized.scale]
    if quantized.kind is ScaleKind.TENSOR:
        if divisors is None:
            return quantized
        scale = _Spread(scale, found[f"{module}.weight"].rows)
    found[quantized.scale] = ReorderedHeads(scale, order, divisors)
    return replace(quantized, kind=ScaleKind.ROW)
