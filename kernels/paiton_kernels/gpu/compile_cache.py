"""Compiled kernels on disk, by a digest of everything that they depend on; safe with several builders at once.

An entry is `<key>.kernel`: the SHA-256 of the rest, then zstd-compressed MessagePack. Entries appear by renaming and
never change, so a reader sees a whole one or none; one that is damaged nevertheless counts as absent and is replaced.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgpack
import zstandard

from paiton_kernels.cache_file import write_atomically
from paiton_kernels.gpu.compile_job import CompilerOutput

_DIGEST_BYTES = hashlib.sha256().digest_size
_MAX_ENTRY_BYTES = 256 << 20
_LEVEL = 3


def entry_path(folder: Path, key: str) -> Path:
    """Returns where the entry of a key lies."""
    return folder / f"{key}.kernel"


def load(folder: Path, key: str) -> CompilerOutput | None:
    """Returns an entry; None if it is absent or damaged."""
    try:
        content = entry_path(folder, key).read_bytes()
    except FileNotFoundError:
        return None
    digest, packed = content[:_DIGEST_BYTES], memoryview(content)[_DIGEST_BYTES:]
    if hashlib.sha256(packed).digest() != digest:
        return None
    fields = msgpack.unpackb(zstandard.decompress(packed, max_output_size=_MAX_ENTRY_BYTES))
    return CompilerOutput(**fields)


def store(folder: Path, key: str, output: CompilerOutput, scratch: Path) -> None:
    """Adds an entry, or replaces a damaged one.

    Args:
        folder: of the cache.
        key: of the entry.
        output: what it holds.
        scratch: a directory of the caller's on the same file system, for the file before it has its name.
    """
    fields = {name: getattr(output, name) for name in CompilerOutput.__slots__}
    packed = zstandard.compress(msgpack.packb(fields), _LEVEL)
    write_atomically(entry_path(folder, key), hashlib.sha256(packed).digest() + packed, scratch)
