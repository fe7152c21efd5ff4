"""Converted weights, kept apart from bundles.

A build that was interrupted after converting goes on from there, and one for other targets or with other plans converts
nothing::

    stages/<key>/rank-<r>.bin    the blobs
    stages/<key>/blobs.json      their chunks and digests

The key covers what the blobs' bytes depend on, and no more. What is taken from here is digested again and compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from paiton_aot.cache.links import share
from paiton_aot.identity.build_key import BuildKey
from paiton_artifacts.errors import FileSizeError
from paiton_artifacts.schema import Blob, Tensor
from paiton_artifacts.temporary import LOCK_NAME, LockedDirectory, remove_stale, remove_tree
from paiton_artifacts.writer import BundleWriter

_OPTIONS = ("act", "kv", "lm_head", "max_model_len", "tp", "weights")
_TOOLS = ("gguf", "ml_dtypes", "numpy")
_RECORD = "blobs.json"


class BlobStages:
    """The blobs that follow from one build's inputs, in a folder of a cache.

    Args:
        root: the cache.
        key: of the build.
    """

    def __init__(self, root: Path, key: BuildKey) -> None:
        self._root = root / "stages"
        names = {*(f"option/{name}" for name in _OPTIONS), *(f"tool/{name}" for name in _TOOLS)}
        self._components = {
            name: value
            for name, value in key.components.items()
            if name in names or name.startswith(("checkpoint/", "sources/"))
        }

    def take(self, writer: BundleWriter, ranks: int, size: int, tensors: Sequence[Tensor]) -> tuple[Blob, ...] | None:
        """Puts the blobs into a bundle; returns None, and leaves the bundle as it was, where there are none.

        Args:
            writer: of the bundle.
            ranks: how many blobs there must be.
            size: of each, in bytes.
            tensors: that they hold, by offset.

        Raises:
            PaitonError: as `BundleWriter.finish_blob`.
        """
        folder = self._folder(size, tensors)
        try:
            recorded = (folder / _RECORD).read_bytes()
        except OSError:
            return None
        taken = []
        with contextlib.suppress(OSError, FileSizeError):
            for rank in range(ranks):
                share(folder / f"rank-{rank}.bin", writer.blob_path(rank))
                taken.append(writer.finish_blob(rank, size, tensors))
        if _encode(taken) == recorded:
            return tuple(taken)
        for rank in range(ranks):
            writer.blob_path(rank).unlink(missing_ok=True)
        remove_tree(folder)
        return None

    def keep(self, writer: BundleWriter, blobs: Sequence[Blob], tensors: Sequence[Tensor]) -> None:
        """Keeps the finished blobs of a bundle. Where that fails, the next build converts again: no harm is done."""
        folder = self._folder(blobs[0].size, tensors)
        with contextlib.suppress(OSError):
            self._root.mkdir(parents=True, exist_ok=True)
            remove_stale(folder)
            temporary = LockedDirectory(folder)
            try:
                for blob in blobs:
                    copy = temporary.path / f"rank-{blob.rank}.bin"
                    share(writer.blob_path(blob.rank), copy)
                    copy.chmod(0o444)
                (temporary.path / _RECORD).write_bytes(_encode(blobs))
                temporary.path.rename(folder)
            except BaseException:
                temporary.remove()
                raise
            temporary.renamed()
            (folder / LOCK_NAME).unlink()

    def _folder(self, size: int, tensors: Sequence[Tensor]) -> Path:
        layout = [dataclasses.asdict(tensor) for tensor in tensors]
        document = {"components": self._components, "size": size, "tensors": layout}
        return self._root / hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _encode(blobs: Sequence[Blob]) -> bytes:
    return json.dumps([dataclasses.asdict(blob) for blob in blobs]).encode()
