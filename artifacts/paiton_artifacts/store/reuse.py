"""Finds what other bundles on this machine have in common with one that is to be fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from paiton_artifacts.digest import sha256_of_ranges
from paiton_artifacts.errors import PaitonError
from paiton_artifacts.layout import MANIFEST_NAME
from paiton_artifacts.schema import Manifest
from paiton_artifacts.store.assembly import Assembly
from paiton_artifacts.store.client import PIECE_BYTES
from paiton_artifacts.store.items import Item, items_of
from paiton_artifacts.store.remote import MAX_MANIFEST_FILE, decode_manifest


class LocalItems:
    """Every chunk and file of complete bundles in some caches. Nothing is trusted: whoever takes one hashes it.

    Args:
        roots: of the caches.
    """

    def __init__(self, roots: tuple[Path, ...]) -> None:
        self._items: dict[str, tuple[Path, int]] = {}
        self._bundles: list[tuple[Path, Manifest]] = []
        for root in roots:
            folder = root / "sha256"
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                self._add(path)

    def __call__(self, item: Item) -> Iterator[tuple[int, bytes]] | None:
        """Yields an item in pieces with their offsets; None where no bundle has it.

        Raises (while it yields):
            OSError: the bundle has gone meanwhile.
        """
        found = self._items.get(item.digest)
        return None if found is None else _read_pieces(*found, item.size)

    def link_blobs(self, assembly: Assembly) -> bool:
        """Makes the blobs of an assembly hard links to those of a bundle that has the same, if all of them verify.

        All or none: an item may lie in several blobs, and what is linked is never written to.
        """
        wanted = assembly.manifest.blobs
        source = next((path for path, manifest in self._bundles if manifest.blobs == wanted), None)
        if source is None or source == assembly.directory:
            return False
        linked: list[str] = []
        for blob in wanted:
            if not assembly.replace(blob.path, source / blob.path):
                break
            linked.append(blob.path)
            ranges = [(chunk.offset, chunk.size) for chunk in blob.chunks]
            found = sha256_of_ranges(assembly.descriptor(blob.path), ranges)
            if list(found) != [chunk.sha256 for chunk in blob.chunks]:
                break
        else:
            paths = set(linked)
            for item in assembly.items:
                if all(place.path in paths for place in item.places):
                    assembly.done(item)
            return True
        for path in linked:
            assembly.reset(path)
        return False

    def _add(self, path: Path) -> None:
        try:
            with (path / MANIFEST_NAME).open("rb") as file:
                manifest = decode_manifest(file.read(MAX_MANIFEST_FILE), str(path))
        except (OSError, PaitonError):
            return
        self._bundles.append((path, manifest))
        for item in items_of(manifest):
            place = item.places[0]
            self._items.setdefault(item.digest, (path / place.path, place.offset))


def _read_pieces(path: Path, start: int, size: int) -> Iterator[tuple[int, bytes]]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        offset = 0
        while offset < size:
            piece = os.pread(descriptor, min(PIECE_BYTES, size - offset), start + offset)
            if not piece:
                return
            yield offset, piece
            offset += len(piece)
    finally:
        os.close(descriptor)
