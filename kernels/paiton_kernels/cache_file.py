"""Files of the compilers' caches, which several builds may write at once."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: bytes, scratch: Path | None = None) -> None:
    """Writes a file that others see whole or not at all; a crash of the machine may lose it.

    Args:
        path: of the file, in a folder that is made if need be.
        content: of the file.
        scratch: a directory on the same file system for the file before it has its name; by default the file's own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = (scratch or path.parent) / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
