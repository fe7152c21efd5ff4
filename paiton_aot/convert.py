"""Streams checkpoint tensors into the ranks' blobs, in row blocks: read once, convert once, write to every rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paiton_aot import quantize
from paiton_aot.checkpoint.base import Checkpoint, SourceTensor
from paiton_aot.checkpoint.quantization.description import BLOCK
from paiton_aot.checkpoint.quantization.scales import weight_scales
from paiton_aot.weights import WeightSpec
from paiton_artifacts.layout import DTYPE_BYTES
from paiton_artifacts.schema import Part, Tensor

BLOCK_BYTES = 8 << 20
"""Rows are converted in blocks of about this many bytes of f32, so that memory does not grow with the model."""

Bytes = NDArray[np.uint8]


def write_tensors(
    checkpoint: Checkpoint,
    specs: Sequence[WeightSpec],
    tensors: Mapping[str, Tensor],
    blobs: Sequence[IO[bytes]],
    advance: Callable[[int], object],
) -> None:
    """Writes every tensor of `specs` into the blobs, one open file per rank.

    Args:
        checkpoint: where sources are read from.
        specs: what to write; scale companions are written with the weight they belong to.
        tensors: the tensor table by name.
        blobs: one file per rank, written at the table's offsets.
        advance: called with the number of checkpoint bytes read since the last call.

    Raises:
        TensorValueError: a source holds NaN, infinity, or an FP8 NaN code.
        OSError: writing failed; the bundle's writer knows what to make of it.
    """
    companions = {spec.scale for spec in specs if spec.scale}
    for spec in specs:
        if spec.name in companions:
            continue
        tensor = tensors[spec.name]
        if spec.compute is not None:
            _write_computed(spec.compute(checkpoint), tensor, blobs)
            continue
        for index, source in enumerate(spec.sources):
            stored = checkpoint.tensor(source.name)
            if stored.dtype == "fp8_e4m3fn":
                companion = tensors[spec.scale]
                carried = as_rows(_stored_scales(checkpoint, stored, spec))
                _write_block(carried, 0, companion, companion.parts[index], blobs)
            for start, block in _blocks(stored):
                data, scales = _convert(stored, start, block, spec.storage)
                _write_block(data, start, tensor, tensor.parts[index], blobs)
                if scales is not None:
                    companion = tensors[spec.scale]
                    _write_block(as_rows(scales), start, companion, companion.parts[index], blobs)
                advance(block.nbytes)


def as_rows(array: NDArray[np.generic]) -> Bytes:
    """Returns the bytes of a one- or two-dimensional array as [rows, bytes per row]."""
    rows = array.reshape(array.shape[0], -1)
    return np.ascontiguousarray(rows).view(np.uint8).reshape(array.shape[0], -1)


def _blocks(stored: SourceTensor) -> Iterator[tuple[int, NDArray[np.generic]]]:
    step = max(1, BLOCK_BYTES // (stored.row_elements * 4))
    for start in range(0, stored.rows, step):
        yield start, stored.read_rows(start, min(start + step, stored.rows))


def _stored_scales(checkpoint: Checkpoint, stored: SourceTensor, spec: WeightSpec) -> NDArray[np.float32]:
    """Returns the scales of an FP8 source: [rows], or a grid, its rows repeated for the bundle's smaller blocks."""
    scales = weight_scales(checkpoint, stored.name.removesuffix(".weight"))
    if not spec.scale_block:
        return scales
    starts = np.arange(0, stored.rows, spec.scale_block[0])
    return scales[starts // BLOCK]


def _convert(
    stored: SourceTensor, start: int, block: NDArray[np.generic], storage: str
) -> tuple[Bytes, NDArray[np.float32] | None]:
    """Returns the block as stored bytes [rows, bytes per row], and the f32 scales [rows] that it was quantised with."""
    if stored.dtype == "fp8_e4m3fn":
        return as_rows(quantize.normalize_fp8(block.view(np.uint8), stored.name, start)), None
    quantize.check_finite(block, stored.name, start)
    if storage == "fp8_e4m3fn":
        data, scales = quantize.quantize_rows_fp8(block)
        return as_rows(data), scales
    if storage == "int8":
        codes, scales = quantize.quantize_rows_int8(block)
        return as_rows(codes), scales
    return as_rows(block.astype(ml_dtypes.bfloat16 if storage == "bf16" else np.float32)), None


def _write_computed(values: Sequence[float], tensor: Tensor, blobs: Sequence[IO[bytes]]) -> None:
    data = np.asarray(values, np.float32).tobytes()
    for blob in blobs:
        pwrite_all(blob, data, tensor.offset)


def _write_block(data: Bytes, start: int, tensor: Tensor, part: Part, blobs: Sequence[IO[bytes]]) -> None:
    """Writes to each rank the overlap of source rows [start, start + len(data)) with the rows that it holds."""
    width = DTYPE_BYTES[tensor.dtype]
    for blob, first_row, first_col in zip(blobs, part.source_row, part.source_col, strict=True):
        begin, end = max(start, first_row), min(start + len(data), first_row + part.rows)
        if begin >= end:
            continue
        rows = data[begin - start : end - start, first_col * width : (first_col + part.cols) * width]
        pad = tensor.row_stride - rows.shape[1]
        if pad:
            rows = np.pad(rows, ((0, 0), (0, pad)))
        offset = tensor.offset + (part.row + begin - first_row) * tensor.row_stride
        pwrite_all(blob, np.ascontiguousarray(rows).data, offset)


def pwrite_all(file: IO[bytes], data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`, whatever the number of system calls that takes."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view = view[written:]
        offset += written
