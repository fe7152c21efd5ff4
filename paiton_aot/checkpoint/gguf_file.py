"""The structure of a GGUF file: metadata and tensor extents, through bounded positional reads.

Types and sizes are the gguf library's; its GGUFReader is not used, because it keeps an array view for every token and
merge (3.8 s and 150 MB for SmolLM2's 49,152 tokens, here 0.2 s and 15 MB) and loops without end on a damaged length.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import NoReturn

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from paiton_aot.checkpoint.fields import shown
from paiton_aot.checkpoint.files import AGAIN, CheckpointFile, is_name
from paiton_artifacts.errors import CheckpointFormatError, DuplicateTensorError, UnsupportedError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_METADATA_BYTES = 256 << 20
MAX_ARRAY_LENGTH = 4 << 20
MAX_ENTRIES = 1 << 20
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
WINDOW_BYTES = 1 << 20

SCALARS = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}
U32, U64 = SCALARS[GGUFValueType.UINT32], SCALARS[GGUFValueType.UINT64]


@dataclass(frozen=True, slots=True)
class GgufExtent:
    """Where a tensor lies in the file.

    Attributes:
        shape: as numpy sees it: the contiguous dimension last.
        offset: of its first byte in the file.
        row_bytes: of one row as stored; the last dimension is a whole number of quantisation blocks.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    row_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True, slots=True)
class GgufContents:
    """What the start of a GGUF file says: metadata by key, and where each tensor is."""

    metadata: dict[str, object]
    tensors: dict[str, GgufExtent]


def read_contents(file: CheckpointFile) -> GgufContents:
    """Reads metadata and tensor extents, and checks them against the file's size.

    Raises:
        CheckpointFormatError: the file is truncated, damaged or no GGUF file.
        DuplicateTensorError: it lists a tensor twice.
        UnsupportedError: its version or byte order is not one that we read, or a tensor's type is unknown.
    """
    cursor = _Cursor(file)
    if cursor.take(len(MAGIC)) != MAGIC:
        raise CheckpointFormatError(f"{file.path} is no GGUF file", hint="give a directory or a .gguf file")
    version = cursor.scalar(U32)
    if version not in VERSIONS:
        raise UnsupportedError(
            f"{file.path} has GGUF version {version:#x}", hint="supported: little-endian files of version 2 and 3"
        )
    tensor_count, entry_count = cursor.count(U64, MAX_ENTRIES), cursor.count(U64, MAX_ENTRIES)
    metadata: dict[str, object] = {}
    for _ in range(entry_count):
        key = cursor.string()
        if key in metadata:
            cursor.refuse(f"key {shown(key)} twice")
        metadata[key] = cursor.value(cursor.value_type())
    infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        cursor.refuse(f"alignment {shown(alignment)}")
    data_start = -(-cursor.position // alignment) * alignment
    return GgufContents(metadata, _extents(infos, data_start, file))


def _tensor_info(cursor: _Cursor) -> GgufExtent:
    """Reads one tensor's description; its offset is still relative to the data."""
    name = cursor.string()
    if not is_name(name):
        cursor.refuse(f"a tensor named {shown(name)}")
    dimensions = cursor.count(U32, MAX_DIMENSIONS)
    shape = tuple(cursor.scalar(U64) for _ in range(dimensions))[::-1]
    code, offset = cursor.scalar(U32), cursor.scalar(U64)
    if not shape or not all(0 < length < 1 << 40 for length in shape):
        cursor.refuse(f"tensor {name} of shape {list(shape)}")
    try:
        kind = GGMLQuantizationType(code)
    except ValueError as error:
        raise UnsupportedError(
            f"tensor {name} of {cursor.file.path} has type {code}", hint="a newer gguf library may know it"
        ) from error
    block_elements, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block_elements:
        cursor.refuse(f"tensor {name} with rows of {shape[-1]}, no multiple of the {block_elements} of {kind.name}")
    return GgufExtent(name, shape, kind, offset, shape[-1] // block_elements * block_bytes)


def _extents(infos: list[GgufExtent], data_start: int, file: CheckpointFile) -> dict[str, GgufExtent]:
    """Returns the tensors by name at absolute offsets, after checking that they neither overlap nor leave the file."""
    tensors: dict[str, GgufExtent] = {}
    end = data_start
    for info in sorted(infos, key=lambda info: info.offset):
        start = data_start + info.offset
        if info.name in tensors:
            raise DuplicateTensorError(f"{file.path} lists tensor {info.name} twice", hint="convert the model again")
        if start < end:
            raise CheckpointFormatError(
                f"tensor {info.name} of {file.path} at offset {start} overlaps the one before it", hint=AGAIN
            )
        end = start + info.nbytes
        if end > file.size:
            raise CheckpointFormatError(
                f"{file.path} is truncated: tensor {info.name} ends at {end}, the file at {file.size}", hint=AGAIN
            )
        tensors[info.name] = GgufExtent(info.name, info.shape, info.kind, start, info.row_bytes)
    return tensors


class _Cursor:
    """Reads a file from its start, through a window, so that a header of any size costs few system calls."""

    def __init__(self, file: CheckpointFile) -> None:
        self.file = file
        self._window = b""
        self._base = 0  # position of the window's first byte in the file
        self._used = 0  # bytes of the window that were taken

    @property
    def position(self) -> int:
        return self._base + self._used

    def take(self, size: int) -> bytes:
        if self._used + size > len(self._window):
            self._refill(size)
        self._used += size
        return self._window[self._used - size : self._used]

    def _refill(self, size: int) -> None:
        if self.position + size > MAX_METADATA_BYTES:
            self.refuse(f"metadata of more than {MAX_METADATA_BYTES} bytes, or a damaged length,")
        available = self.file.size - self.position
        # More than is available is left to the read, which says that the file is truncated.
        self._window = self.file.read(self.position, max(size, min(WINDOW_BYTES, available))).tobytes()
        self._base, self._used = self.position, 0

    def scalar(self, kind: struct.Struct) -> int:
        value: int = kind.unpack(self.take(kind.size))[0]
        return value

    def count(self, kind: struct.Struct, limit: int) -> int:
        count = self.scalar(kind)
        if count > limit:
            self.refuse(f"a count of {count}, more than {limit},")
        return count

    def string(self) -> str:
        raw = self.take(self.scalar(U64))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("a string that is not UTF-8")

    def value_type(self) -> GGUFValueType:
        code = self.scalar(U32)
        try:
            return GGUFValueType(code)
        except ValueError:
            self.refuse(f"a value of type {code}")

    def value(self, kind: GGUFValueType) -> object:
        if kind is GGUFValueType.STRING:
            return self.string()
        if kind is not GGUFValueType.ARRAY:
            number: int | float | bool = SCALARS[kind].unpack(self.take(SCALARS[kind].size))[0]
            return number
        item = self.value_type()
        length = self.count(U64, MAX_ARRAY_LENGTH)
        if item is GGUFValueType.STRING:
            return [self.string() for _ in range(length)]
        if item is GGUFValueType.ARRAY:
            self.refuse("an array of arrays")
        packed = SCALARS[item]
        return [value for (value,) in packed.iter_unpack(self.take(length * packed.size))]

    def refuse(self, problem: str) -> NoReturn:
        raise CheckpointFormatError(f"{self.file.path} has {problem} at or before offset {self.position}", hint=AGAIN)
