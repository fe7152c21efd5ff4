"""A second reader of bundles, written from artifacts/FORMAT.md alone: msgpack, zstandard and the standard library.

It shares no code with the project, on purpose: where the two disagree, the format is not what FORMAT.md says.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import zstandard

WIDTHS = {"f32": 4, "bf16": 2, "fp8_e4m3fn": 1, "int8": 1}
RELOCATION_FIELDS = ("arg_offset", "kind", "region", "access", "zero", "rank", "offset", "stride", "size", "zero2")


@dataclass(frozen=True)
class IndependentBundle:
    """A bundle as FORMAT.md describes it: the manifest as plain maps and lists."""

    path: Path
    manifest: dict[str, Any]

    def tensor_names(self) -> list[str]:
        """Returns the names of all tensors in order of offset."""
        return [tensor["name"] for tensor in self.manifest["tensors"]]

    def tensor(self, rank: int, name: str) -> tuple[str, tuple[int, ...], bytes]:
        """Returns dtype, shape and the bytes of a rank's tensor, rows without the padding between them."""
        entry = next(tensor for tensor in self.manifest["tensors"] if tensor["name"] == name)
        width, shape = WIDTHS[entry["dtype"]], tuple(entry["shape"])
        row_bytes = width * (shape[1] if len(shape) == 2 else 1)
        with (self.path / self.manifest["blobs"][rank]["path"]).open("rb") as blob:
            blob.seek(entry["offset"])
            data = blob.read(entry["size"])
        starts = (row * entry["row_stride"] for row in range(shape[0]))
        rows = [data[start : start + row_bytes] for start in starts]
        return entry["dtype"], shape, b"".join(rows)

    def file(self, entry: dict[str, Any]) -> bytes:
        """Returns the verified contents of a file entry."""
        data: bytes = (self.path / entry["path"]).read_bytes()
        assert len(data) == entry["size"], entry["path"]
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], entry["path"]
        return data

    def plan(self, index: int) -> dict[str, Any]:
        """Returns the plan of a plan entry, its relocation records as maps."""
        plan = read_container(self.file(self.manifest["plans"][index]["file"]), b"PAITONPL")
        for segment in plan["segments"]:
            for launch in segment["launches"]:
                records = struct.iter_unpack("<HBBBBHqQQQ", launch["relocations"])
                launch["relocations"] = [dict(zip(RELOCATION_FIELDS, record, strict=True)) for record in records]
        return plan

    def verify_blobs(self) -> None:
        """Asserts that the chunks cover every blob and have the declared digests."""
        for blob in self.manifest["blobs"]:
            data = (self.path / blob["path"]).read_bytes()
            end = 0
            for chunk in blob["chunks"]:
                assert chunk["offset"] == end
                end += chunk["size"]
                assert hashlib.sha256(data[chunk["offset"] : end]).hexdigest() == chunk["sha256"]
            assert end == len(data) == blob["size"]


def read_container(data: bytes, magic: bytes) -> dict[str, Any]:
    """Returns the map in a manifest or plan file."""
    found, major, zero, size, decompressed, digest = struct.unpack_from("<8sIIQQ32s", data)
    payload = data[64:]
    assert (found, major, zero, size) == (magic, 1, 0, len(payload))
    assert hashlib.sha256(payload).digest() == digest
    raw = zstandard.ZstdDecompressor().decompress(payload)
    assert len(raw) == decompressed
    value: dict[str, Any] = msgpack.unpackb(raw)
    return value


def read_bundle(path: Path) -> IndependentBundle:
    """Opens a bundle."""
    return IndependentBundle(path, read_container((path / "manifest.msgpack").read_bytes(), b"PAITONMF"))
