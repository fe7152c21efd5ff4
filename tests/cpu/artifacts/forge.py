"""Forges malformed bundles: containers that lie, and manifests and plans edited at will with all digests put right."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import zstandard

from tests.independent_reader import read_container

Edit = Mapping[tuple[str | int, ...], Any]
"""From a position, such as ("tensors", 1, "offset"), to the value to put there; DELETE removes the field."""

DELETE = object()


def frame(
    payload: bytes,
    *,
    magic: bytes = b"PAITONMF",
    major: int = 1,
    zero: int = 0,
    size: int | None = None,
    raw: int = 1,
    digest: bytes | None = None,
) -> bytes:
    """Returns a container around a payload, with any header field forged."""
    digest = hashlib.sha256(payload).digest() if digest is None else digest
    size = len(payload) if size is None else size
    return struct.pack("<8sIIQQ32s", magic, major, zero, size, raw, digest) + payload


def squeeze(raw: bytes, *, declared: int | None = None, magic: bytes = b"PAITONMF") -> bytes:
    """Returns a container of raw msgpack bytes; `declared` forges the decompressed size in the header."""
    payload = zstandard.ZstdCompressor(level=3).compress(raw)
    return frame(payload, raw=len(raw) if declared is None else declared, magic=magic)


def edited(value: Any, edit: Edit) -> Any:
    """Returns a decoded manifest or plan with the edits applied (in place)."""
    for position, new in edit.items():
        inner = value
        for step in position[:-1]:
            inner = inner[step]
        if new is DELETE:
            del inner[position[-1]]
        elif position[-1] == "append":
            inner.append(new)
        else:
            inner[position[-1]] = new
    return value


def edit_manifest(bundle: Path, edit: Edit) -> None:
    """Rewrites a bundle's manifest with edits, as an attacker who can compute digests would."""
    file = bundle / "manifest.msgpack"
    file.write_bytes(squeeze(msgpack.packb(edited(read_container(file.read_bytes(), b"PAITONMF"), edit))))


def edit_plan(bundle: Path, edit: Edit, index: int = 0) -> None:
    """Rewrites one of a bundle's plans with edits, and its entry in the manifest."""
    manifest = read_container((bundle / "manifest.msgpack").read_bytes(), b"PAITONMF")
    file = bundle / manifest["plans"][index]["file"]["path"]
    value = edited(read_container(file.read_bytes(), b"PAITONPL"), edit)
    data = squeeze(msgpack.packb(value), magic=b"PAITONPL")
    file.write_bytes(data)
    entry: dict[tuple[str | int, ...], Any] = {
        ("plans", index, "file", "size"): len(data),
        ("plans", index, "file", "sha256"): hashlib.sha256(data).hexdigest(),
    }
    edit_manifest(bundle, entry)


def record(
    arg_offset: int = 0,
    kind: int = 0,
    region: int = 0,
    access: int = 1,
    zero: int = 0,
    rank: int = 0,
    offset: int = 0,
    stride: int = 0,
    size: int = 8,
    zero2: int = 0,
) -> bytes:
    """Returns a packed relocation."""
    return struct.pack("<HBBBBHqQQQ", arg_offset, kind, region, access, zero, rank, offset, stride, size, zero2)
