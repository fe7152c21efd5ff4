"""Digests of files, remembered between builds with the state that the file was in."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from paiton_artifacts.errors import StoreError
from paiton_artifacts.trust.sign import write_atomically


def recall(folder: Path, name: str, state: Mapping[str, object]) -> str | None:
    """Returns the SHA-256 that `remember` was given for a file in this state, else None.

    Args:
        folder: where digests are remembered.
        name: of the file, unique among all files.
        state: whatever changes when the content does; plain data.
    """
    try:
        entry = json.loads(_entry(folder, name).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(entry, dict) or entry.get("state") != state:
        return None
    digest = entry.get("sha256")
    return digest if isinstance(digest, str) and len(digest) == 64 else None


def remember(folder: Path, name: str, state: Mapping[str, object], digest: str) -> None:
    """Remembers the SHA-256 of a file in a state; a folder that cannot be written costs time, nothing else."""
    entry = json.dumps({"name": name, "state": state, "sha256": digest}).encode()
    with contextlib.suppress(OSError, StoreError):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(_entry(folder, name), entry)


def _entry(folder: Path, name: str) -> Path:
    return folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()}.json"
