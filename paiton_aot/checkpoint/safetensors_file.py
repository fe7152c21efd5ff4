"""safetensors files: our own header parser and positional reads.

The library's numpy mode knows neither bf16 nor FP8, and it maps files. A header is untrusted: every offset, length and
shape in it is checked before anything is read or allocated. Format: https://github.com/huggingface/safetensors#format
(u64 LE length of the header, the header as a JSON object, the tensors' bytes without gaps).
"""

from __future__ import annotations

import math
from typing import NoReturn, TypeGuard

import numpy as np
from numpy.typing import NDArray

from paiton_aot.checkpoint.base import NUMPY_DTYPES, SourceTensor
from paiton_aot.checkpoint.fields import shown
from paiton_aot.checkpoint.files import AGAIN, CheckpointFile, is_name, parse_object
from paiton_artifacts.errors import CheckpointFormatError, DuplicateTensorError

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

MAX_DIMENSIONS = 8
LENGTH_BYTES = 8

DTYPES = {"BF16": "bf16", "F16": "f16", "F32": "f32", "F8_E4M3": "fp8_e4m3fn", "F8_E8M0": "ue8m0", "U8": "u8"}
"""The dtypes that we read."""

OTHER_DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "I8", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
"""Dtypes that may lie in a file as long as nothing asks for them (position ids, buffers of older exporters)."""


class SafetensorsTensor(SourceTensor):
    """A tensor at an offset of a file, stored as it is read."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str, file: CheckpointFile, offset: int) -> None:
        super().__init__(name, shape, dtype)
        self._file = file
        self._offset = offset

    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        dtype = NUMPY_DTYPES[self.dtype]
        row_bytes = self.row_elements * dtype.itemsize
        return self._file.read(self._offset + start * row_bytes, (stop - start) * row_bytes).view(dtype)


def read_header(file: CheckpointFile) -> dict[str, SourceTensor]:
    """Returns the tensors of a safetensors file, after checking its header against the file's size.

    Tensors of dtypes that we do not read are left out.

    Raises:
        CheckpointFormatError: the header is damaged, contradicts itself or describes another file size.
        DuplicateTensorError: the header lists a tensor twice.
    """
    where = str(file.path)
    header_bytes = int(file.read(0, LENGTH_BYTES).view("<u8")[0])
    if header_bytes > min(MAX_HEADER_BYTES, file.size - LENGTH_BYTES):
        raise CheckpointFormatError(
            f"{where} is truncated or no safetensors file: header of {header_bytes} bytes in a file of {file.size}",
            hint=AGAIN,
        )
    raw = file.read(LENGTH_BYTES, header_bytes).tobytes()
    header = parse_object(raw, f"header of {where}", duplicate=DuplicateTensorError)
    header.pop("__metadata__", None)
    data_start = LENGTH_BYTES + header_bytes
    tensors: dict[str, SourceTensor] = {}
    extents = []
    for name, entry in header.items():
        dtype, shape, begin, end = _check_entry(entry, name, where)
        extents.append((begin, end, name))
        if dtype in DTYPES:
            tensors[name] = SafetensorsTensor(name, shape, DTYPES[dtype], file, data_start + begin)
    _check_extents(extents, file.size - data_start, where)
    return tensors


def _check_entry(entry: object, name: str, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """Returns dtype, shape and extent of a header entry whose fields agree with each other."""

    def refuse(problem: str) -> NoReturn:
        raise CheckpointFormatError(f"tensor {name} of {where} has {problem}", hint=AGAIN)

    if not is_name(name):
        raise CheckpointFormatError(f"{where} has a tensor named {shown(name)}", hint=AGAIN)
    if not isinstance(entry, dict):
        refuse("no description")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        refuse(f"dtype {shown(dtype)}")
    if not _is_counts(shape) or len(shape) > MAX_DIMENSIONS:
        refuse(f"shape {shown(shape)}")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(f"offsets {shown(offsets)}")
    begin, end = offsets
    width = NUMPY_DTYPES[DTYPES[dtype]].itemsize if dtype in DTYPES else OTHER_DTYPE_BYTES.get(dtype)
    # The extent of a dtype that we have never heard of is bounded by the file, which is all that is needed to skip it.
    if width is not None and math.prod(shape) * width != end - begin:
        refuse(f"{end - begin} bytes for shape {shape} of {dtype}, which needs {math.prod(shape) * width}")
    return dtype, tuple(shape), begin, end


def _is_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_extents(extents: list[tuple[int, int, str]], data_bytes: int, where: str) -> None:
    """Checks that the extents, sorted, cover the data exactly: no overlap, no hole, nothing missing or left over."""
    position = 0
    for begin, end, name in sorted(extents):
        if begin != position:
            problem = "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            raise CheckpointFormatError(f"tensor {name} of {where} at offset {begin} {problem}", hint=AGAIN)
        position = end
    if position != data_bytes:
        problem = "is truncated" if position > data_bytes else "has bytes that belong to no tensor"
        raise CheckpointFormatError(
            f"{where} {problem}: {data_bytes} bytes of tensors, {position} described", hint=AGAIN
        )
