"""Runs `paiton-build --cache` as CI does."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from paiton_aot.cli import main


@dataclass
class Cached:
    """Runs the command with one cache.

    Attributes:
        model: what is built.
        cache: the cache's directory or URL.
        capture: pytest's.
    """

    model: Path
    cache: str
    capture: pytest.CaptureFixture[str]

    def run(self, *flags: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Returns the result and the events of a run that must succeed."""
        code, out, err = self.attempt(*flags)
        assert code == 0, err
        return json.loads(out), [json.loads(line) for line in err.splitlines()]

    def attempt(self, *flags: str | Path) -> tuple[int, str, str]:
        """Returns the exit code and what was printed."""
        self.capture.readouterr()
        flags = ("--cache", self.cache, "--json", "--progress", "json", *flags)
        code = main([str(self.model), *map(str, flags)])
        return code, *self.capture.readouterr()


def contents(bundle: Path) -> dict[str, str]:
    """Returns the digest of every file of a bundle."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    return {str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
