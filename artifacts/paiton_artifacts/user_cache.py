"""Where this machine keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache_dir() -> Path:
    """Returns $PAITON_CACHE, else paiton below $XDG_CACHE_HOME or ~/.cache."""
    if explicit := os.environ.get("PAITON_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "paiton"
