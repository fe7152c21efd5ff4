"""Files of random bytes with digests, for tests of the weight loader."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paiton_artifacts.schema import Chunk
from paiton_runtime.loader import FileLoad

CHUNK = 200_000
"""Bytes of a chunk: neither pages nor slots divide it."""


@dataclass(frozen=True)
class Weights:
    """A file, and what is in it."""

    file: FileLoad
    content: bytes


@contextmanager
def make_weights(path: Path, size: int) -> Iterator[Weights]:
    """Writes `size` random bytes, always the same ones of a name, and opens them."""
    content = random.Random(path.name).randbytes(size)
    path.write_bytes(content)
    chunks = [
        Chunk(offset, len(part), hashlib.sha256(part).hexdigest())
        for offset in range(0, size, CHUNK)
        for part in (content[offset : offset + CHUNK],)
    ]
    with path.open("rb") as file:
        yield Weights(FileLoad(file.fileno(), size, str(path), chunks), content)
