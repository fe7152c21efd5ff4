"""Lays a rank's tensors out in its blob: offsets, strides, and where every row comes from."""

from __future__ import annotations

from collections.abc import Sequence

from paiton_aot.weights import WeightSpec, shard
from paiton_artifacts.layout import DTYPE_BYTES, EXTENT_ALIGNMENT, ROW_ALIGNMENT, TENSOR_ALIGNMENT, align_up
from paiton_artifacts.schema import Part, Tensor


def lay_out(specs: Sequence[WeightSpec], tp: int, kv_heads: int) -> list[Tensor]:
    """Returns the tensor table, in order of offset; it is the same for every rank.

    Args:
        specs: bundle tensors in blob order, scale companions included.
        tp: number of ranks.
        kv_heads: of the whole model.
    """
    tensors: list[Tensor] = []
    offset = 0
    for spec in specs:
        tensor = _tensor(spec, tp, kv_heads, offset)
        tensors.append(tensor)
        offset = align_up(offset + tensor.size, TENSOR_ALIGNMENT)
    return tensors


def blob_size(tensors: Sequence[Tensor]) -> int:
    """Returns the bytes of one rank's blob: the end of its last tensor, padded to the extent alignment."""
    last = tensors[-1]
    return align_up(last.offset + last.size, EXTENT_ALIGNMENT)


def _tensor(spec: WeightSpec, tp: int, kv_heads: int, offset: int) -> Tensor:
    parts = _parts(spec, tp, kv_heads)
    width = DTYPE_BYTES[spec.storage]
    rows, cols = sum(part.rows for part in parts), parts[0].cols
    is_vector = spec.compute is not None or len(spec.sources[0].shape) == 1
    stride = width if is_vector else align_up(cols * width, ROW_ALIGNMENT)
    return Tensor(
        name=spec.name,
        dtype=spec.storage,
        shape=(rows,) if is_vector else (rows, cols),
        row_stride=stride,
        offset=offset,
        size=stride * (rows - 1) + cols * width,
        layout="row-major",
        scale=spec.scale,
        scale_kind="block" if spec.scale_block else "row" if spec.scale else "none",
        scale_block=spec.scale_block,
        parts=parts,
    )


def _parts(spec: WeightSpec, tp: int, kv_heads: int) -> tuple[Part, ...]:
    if spec.compute is not None:
        return (Part("", 0, spec.elements, 1, (0,) * tp, (0,) * tp),)
    parts = []
    row = 0
    for source in spec.sources:
        slices = [shard(source, rank, tp, kv_heads) for rank in range(tp)]
        per_row, per_col = source.block
        rows, cols = -(-slices[0].rows // per_row), -(-slices[0].cols // per_col)
        starts = tuple(s.row // per_row for s in slices), tuple(s.col // per_col for s in slices)
        parts.append(Part(source.name, row, rows, cols, *starts))
        row += rows
    return tuple(parts)
