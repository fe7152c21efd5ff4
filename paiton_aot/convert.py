"""Streams checkpoint tensors into the ranks' blobs, in row blocks: read once, convert once, write to every rank."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import IO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paiton_aot.checkpoint.base import Checkpoint, SourceTensor
from paiton_aot.checkpoint.quantization.description import BLOCK
from paiton_aot.checkpoint.quantization.scales import weight_scales
from paiton_aot.quantize import Quantizer
from paiton_aot.weights import WeightSpec
from paiton_artifacts.layout import DTYPE_BYTES
from paiton_artifacts.schema import Tensor

BLOCK_BYTES = 8 << 20
"""Rows are converted in blocks of about this many bytes of f32, so that memory does not grow with the model."""

MAX_THREADS = 8
"""Each holds a block and what becomes of it."""

Bytes = NDArray[np.uint8]

_Done = tuple[int, Sequence[int]]
"""Of a task: checkpoint bytes that it read, and the offsets before which, by rank, all is written with the tasks before
it."""


def write_tensors(
    checkpoint: Checkpoint,
    specs: Sequence[WeightSpec],
    tensors: Mapping[str, Tensor],
    blobs: Sequence[IO[bytes]],
    quantizer: Quantizer,
    advance: Callable[[int], object],
    settled: Callable[[int, int], object] = lambda _rank, _end: None,
) -> None:
    """Writes every tensor of `specs` into the blobs, one open file per rank.

    Args:
        checkpoint: where sources are read from.
        specs: what to write, in order of offsets; scale companions follow the weights that they are written with.
        tensors: the tensor table by name.
        blobs: one file per rank, written at the table's offsets.
        quantizer: converts rows.
        advance: called with the number of checkpoint bytes read since the last call.
        settled: called with a rank and an offset before which all bytes of its blob are final.

    Raises:
        TensorValueError: a source holds NaN, infinity, or an FP8 NaN code; the first such source, in order of `specs`.
        OSError: writing failed; the bundle's writer knows what to make of it.
    """
    # Threads beyond the processors keep the disk busy while others compute. All calls that take long free the GIL.
    threads = min(MAX_THREADS, 2 * len(os.sched_getaffinity(0)))
    pending: deque[Future[_Done]] = deque()

    def finish_one() -> None:
        count, ends = pending.popleft().result()
        advance(count)
        for rank, end in enumerate(ends):
            settled(rank, end)

    with ThreadPoolExecutor(threads, "paiton-convert") as pool:
        try:
            for task in _Conversion(checkpoint, tensors, blobs, quantizer).tasks(specs):
                if len(pending) > threads:
                    finish_one()
                pending.append(pool.submit(task))
            while pending:
                finish_one()
        finally:
            for left in pending:
                left.cancel()


@dataclass(frozen=True, slots=True)
class _Conversion:
    """One run of `write_tensors`, whose tasks any thread may do."""

    checkpoint: Checkpoint
    tensors: Mapping[str, Tensor]
    blobs: Sequence[IO[bytes]]
    quantizer: Quantizer

    def tasks(self, specs: Sequence[WeightSpec]) -> Iterator[Callable[[], _Done]]:
        """Yields what is to be done, in blocks of rows, in order of the blobs' offsets."""
        companions = {spec.scale for spec in specs if spec.scale}
        for spec in specs:
            if spec.name in companions:
                continue
            if spec.compute is not None:
                yield partial(self._compute, spec, spec.compute)
                continue
            for index, source in enumerate(spec.sources):
                stored = self.checkpoint.tensor(source.name)
                if stored.dtype == "fp8_e4m3fn":
                    yield partial(self._carry_scales, spec, index, stored)
                step = max(1, BLOCK_BYTES // (stored.row_elements * 4))
                for start in range(0, stored.rows, step):
                    yield partial(self._convert, spec, index, stored, start, min(start + step, stored.rows))

    def _compute(self, spec: WeightSpec, compute: Callable[[Checkpoint], Sequence[float]]) -> _Done:
        data = np.asarray(compute(self.checkpoint), np.float32).tobytes()
        for blob in self.blobs:
            pwrite_all(blob, data, self.tensors[spec.name].offset)
        return 0, ()

    def _carry_scales(self, spec: WeightSpec, index: int, stored: SourceTensor) -> _Done:
        self._write(as_rows(_stored_scales(self.checkpoint, stored, spec)), 0, self.tensors[spec.scale], index)
        return 0, ()

    def _convert(self, spec: WeightSpec, index: int, stored: SourceTensor, start: int, stop: int) -> _Done:
        block = stored.read_rows(start, stop)
        tensor = self.tensors[spec.name]
        if stored.dtype == "fp8_e4m3fn":
            codes = self.quantizer.carry(block.view(np.uint8), stored.name, start)
            self._write(codes, start, tensor, index)
        elif spec.scale:
            codes, scales = self.quantizer.quantize(block, spec.storage, stored.name, start)
            self._write(codes, start, tensor, index)
            self._write(as_rows(scales), start, self.tensors[spec.scale], index)
        else:
            self.quantizer.check_finite(block, stored.name, start)
            dtype = ml_dtypes.bfloat16 if spec.storage == "bf16" else np.float32
            self._write(as_rows(block.astype(dtype, copy=False)), start, tensor, index)
        part = tensor.parts[index]
        held = (part.row + min(max(0, stop - first), part.rows) for first in part.source_row)
        return block.nbytes, [tensor.offset + rows * tensor.row_stride for rows in held]

    def _write(self, data: Bytes, start: int, tensor: Tensor, index: int) -> None:
        """Writes to each rank the overlap of source rows [start, start + len(data)) with the rows that it holds."""
        width, part = DTYPE_BYTES[tensor.dtype], tensor.parts[index]
        for blob, first_row, first_col in zip(self.blobs, part.source_row, part.source_col, strict=True):
            begin, end = max(start, first_row), min(start + len(data), first_row + part.rows)
            if begin >= end:
                continue
            rows = data[begin - start : end - start, first_col * width : (first_col + part.cols) * width]
            pad = tensor.row_stride - rows.shape[1]
            if pad:
                rows = np.pad(rows, ((0, 0), (0, pad)))
            offset = tensor.offset + (part.row + begin - first_row) * tensor.row_stride
            pwrite_all(blob, np.ascontiguousarray(rows).data, offset)


def as_rows(array: NDArray[np.generic]) -> Bytes:
    """Returns the bytes of a one- or two-dimensional array as [rows, bytes per row]."""
    rows = array.reshape(array.shape[0], -1)
    return np.ascontiguousarray(rows).view(np.uint8).reshape(array.shape[0], -1)


def _stored_scales(checkpoint: Checkpoint, stored: SourceTensor, spec: WeightSpec) -> NDArray[np.float32]:
    """Returns the scales of an FP8 source: [rows], or a grid, its rows repeated for the bundle's smaller blocks."""
    scales = weight_scales(checkpoint, stored.name.removesuffix(".weight"))
    if not spec.scale_block:
        return scales
    starts = np.arange(0, stored.rows, spec.scale_block[0])
    return scales[starts // BLOCK]


def pwrite_all(file: IO[bytes], data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`, whatever the number of system calls that takes."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view = view[written:]
        offset += written
