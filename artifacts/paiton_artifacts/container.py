"""The container of manifest, plans and kernel tables: a checked header in front of compressed msgpack.

::

    0   8   magic
    8   4   u32 format major version
    12  4   u32 zero
    16  8   u64 bytes of the payload
    24  8   u64 bytes of the payload once decompressed
    32  32  SHA-256 of the payload
    64  ..  payload: one zstd frame of one msgpack value

All integers are little-endian. The header and the payload are attacker-controlled: sizes are compared with absolute
limits before anything is allocated, and the digest is checked before zstd or msgpack see a byte.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import msgpack
import zstandard

from paiton_artifacts.errors import (
    CodeObjectError,
    DigestMismatchError,
    ManifestError,
    PlanError,
    UnsupportedVersionError,
    VerificationError,
)
from paiton_artifacts.layout import FORMAT_MAJOR
from paiton_artifacts.limits import (
    MAX_BINARY,
    MAX_ITEMS,
    MAX_KERNEL_TABLE_BYTES,
    MAX_KERNEL_TABLE_COMPRESSED,
    MAX_MANIFEST_BYTES,
    MAX_MANIFEST_COMPRESSED,
    MAX_MAPS,
    MAX_PLAN_BYTES,
    MAX_PLAN_COMPRESSED,
    MAX_STRING,
)
from paiton_artifacts.record import dataclass
from paiton_artifacts.rules import show

HEADER = struct.Struct("<8sIIQQ32s")

_LEVEL = 19
_REBUILD = "the file is damaged; build or fetch the bundle again"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of container: its magic, its limits in bytes and the error that a malformed one raises."""

    magic: bytes
    max_compressed: int
    max_decompressed: int
    error: type[VerificationError]


MANIFEST = Kind(b"PAITONMF", MAX_MANIFEST_COMPRESSED, MAX_MANIFEST_BYTES, ManifestError)
PLAN = Kind(b"PAITONPL", MAX_PLAN_COMPRESSED, MAX_PLAN_BYTES, PlanError)
KERNELS = Kind(b"PAITONKT", MAX_KERNEL_TABLE_COMPRESSED, MAX_KERNEL_TABLE_BYTES, CodeObjectError)


def pack(kind: Kind, value: object, *, major: int = FORMAT_MAJOR) -> bytes:
    """Returns the bytes of a container that holds a value.

    The same value gives the same bytes with the same version of zstd: maps keep their order, and the compressor runs
    in one fixed mode on one thread.

    Raises:
        VerificationError: of the kind's class, if the value exceeds the limits that `unpack` holds it to.
    """
    raw: bytes = msgpack.packb(value, use_bin_type=True)
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=True)
    payload = compressor.compress(raw)
    if len(raw) > kind.max_decompressed or len(payload) > kind.max_compressed:
        raise kind.error(
            f"content of {len(raw)} bytes, {len(payload)} compressed, exceeds the limits"
            f" {kind.max_decompressed} and {kind.max_compressed}",
            hint="build with fewer buckets or targets",
        )
    digest = hashlib.sha256(payload).digest()
    return HEADER.pack(kind.magic, major, 0, len(payload), len(raw), digest) + payload


def unpack(kind: Kind, data: bytes, what: str) -> object:
    """Returns the value in a container: maps as dicts with string keys, lists as tuples.

    Args:
        kind: what the container must be.
        data: the whole file.
        what: names the file in messages.

    Raises:
        UnsupportedVersionError: it has another major version.
        DigestMismatchError: the payload is not the one that was written.
        VerificationError: of the kind's class, for anything else that is wrong.
    """
    payload, decompressed = _open(kind, data, what)
    return _decode(kind, _decompress(kind, payload, decompressed, what), what)


def _open(kind: Kind, data: bytes, what: str) -> tuple[bytes, int]:
    """Checks the header and the digest; returns the payload and its decompressed size."""
    if len(data) < HEADER.size:
        raise kind.error(f"{what}: {len(data)} bytes are too few for a header of {HEADER.size}", hint=_REBUILD)
    magic, major, zero, size, decompressed, digest = HEADER.unpack_from(data)
    if magic != kind.magic:
        raise kind.error(f"{what}: magic is {magic!r}, not {kind.magic!r}", hint="this is not a file of a bundle")
    if major != FORMAT_MAJOR:
        raise UnsupportedVersionError(
            f"{what}: format version {major}, this reader knows {FORMAT_MAJOR}",
            hint="install the version of paiton-aot that wrote the bundle, or build it again with this one",
        )
    if zero:
        raise kind.error(f"{what}: reserved header field is {zero}, not 0", hint=_REBUILD)
    if size > kind.max_compressed:
        raise kind.error(f"{what}: payload of {size} bytes exceeds the limit {kind.max_compressed}", hint=_REBUILD)
    if decompressed > kind.max_decompressed:
        raise kind.error(
            f"{what}: decompressed size of {decompressed} bytes exceeds the limit {kind.max_decompressed}",
            hint=_REBUILD,
        )
    if size != len(data) - HEADER.size:
        raise kind.error(
            f"{what}: payload is {len(data) - HEADER.size} bytes, the header declares {size}", hint=_REBUILD
        )
    payload = data[HEADER.size :]
    found = hashlib.sha256(payload).digest()
    if found != digest:
        raise DigestMismatchError(
            f"{what}: SHA-256 of the payload at offset {HEADER.size} is {found.hex()},"
            f" the header declares {digest.hex()}",
            hint=_REBUILD,
        )
    return payload, decompressed


def _decompress(kind: Kind, payload: bytes, size: int, what: str) -> bytes:
    """Decompresses one frame that must give exactly `size` bytes; allocates no more than that."""
    try:
        # zstandard allocates what the frame's own header declares, so that has to agree first.
        frame = zstandard.get_frame_parameters(payload)
        if frame.content_size != size:
            raise kind.error(
                f"{what}: the zstd frame declares {_show_size(frame.content_size)} bytes, the header {size}",
                hint=_REBUILD,
            )
        decompressor = zstandard.ZstdDecompressor(max_window_size=max(1024, kind.max_decompressed))
        raw = decompressor.decompress(payload, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise kind.error(f"{what}: the payload does not decompress: {error}", hint=_REBUILD) from error
    if len(raw) != size:
        raise kind.error(f"{what}: the payload decompresses to {len(raw)} bytes, not {size}", hint=_REBUILD)
    return raw


def _show_size(size: int) -> str:
    """Renders a frame's content size, of which zstd's largest value means that none is declared."""
    return "no number of" if size == zstandard.CONTENTSIZE_UNKNOWN else str(size)


def _decode(kind: Kind, raw: bytes, what: str) -> object:
    """Decodes one msgpack value within the limits; refuses repeated keys, which readers would resolve differently."""
    maps = 0

    def one_map(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal maps
        maps += 1
        if maps > MAX_MAPS:
            raise ValueError(f"more than {MAX_MAPS} maps")
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in value if names.count(name) > 1)
            raise ValueError(f"the key {show(repeated)} appears twice in one map")
        return value

    try:
        return msgpack.unpackb(
            raw,
            object_pairs_hook=one_map,
            use_list=False,
            raw=False,
            strict_map_key=True,
            max_str_len=MAX_STRING,
            max_bin_len=MAX_BINARY,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else "nested too deeply"
        raise kind.error(f"{what}: the payload is not valid msgpack: {reason}", hint=_REBUILD) from error
