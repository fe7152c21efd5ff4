"""A bundle as the objects that it is stored as: one for each chunk of a blob, one for each other file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from paiton_artifacts.consistency import files_of
from paiton_artifacts.schema import Blob, FileEntry, Manifest


class Place(NamedTuple):
    """Where the bytes of an object go: a path relative to the bundle, and the offset of its first byte there."""

    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Item:
    """One object: SHA-256, bytes, and every place of the bundle that has these bytes (at least one)."""

    digest: str
    size: int
    places: tuple[Place, ...]


def items_of(manifest: Manifest) -> list[Item]:
    """Returns every object of a bundle once: files first, then chunks so that all ranks get on at the same pace."""
    chunks = [
        (chunk.offset, blob.rank, chunk.sha256, chunk.size, Place(blob.path, chunk.offset))
        for blob in manifest.blobs
        for chunk in blob.chunks
    ]
    parts = [(entry.sha256, entry.size, Place(entry.path, 0)) for entry in files_of(manifest)]
    parts += [part for _, _, *part in sorted(chunks)]  # type: ignore[misc]  # mypy sees a list, not its three fields
    places: dict[tuple[str, int], list[Place]] = {}
    for digest, size, place in parts:
        places.setdefault((digest, size), []).append(place)
    return [Item(digest, size, tuple(found)) for (digest, size), found in places.items()]


def file_sizes(manifest: Manifest) -> dict[str, int]:
    """Returns every file that a manifest lists, with its size in bytes."""
    entries: Iterable[Blob | FileEntry] = [*manifest.blobs, *files_of(manifest)]
    return {entry.path: entry.size for entry in entries}


def bundle_bytes(manifest: Manifest) -> int:
    """Returns the bytes of all files that a manifest lists."""
    return sum(file_sizes(manifest).values())
