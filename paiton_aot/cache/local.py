"""A build cache in a directory.

::

    builds/<key>/         a bundle, its files read-only
    records/<key>.json    size and time of change of each of them
    models/<name>         key of the last build of a model
    locks/<key>.lock      held by the build that makes it
    stages/<key>/         converted weights (`stages.py`)

Outputs share the files' bytes (`links.py`), so a file that somebody writes into changes in the cache too. A hit reads
no weights, but its record shows that: sizes and times must be those of the build.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

from paiton_aot.attest.provenance import components_in
from paiton_aot.cache.links import files_of_bundle
from paiton_aot.identity.build_key import BuildKey
from paiton_artifacts.errors import PaitonError, StoreError
from paiton_artifacts.files import read_bounded
from paiton_artifacts.layout import PROVENANCE_NAME
from paiton_artifacts.limits import MAX_COMPANION_BYTES
from paiton_artifacts.temporary import remove_tree
from paiton_artifacts.trust.sign import write_atomically

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_KEY = re.compile("[0-9a-f]{64}")


def model_name(text: str) -> str:
    """Returns a name under which builds of the same model follow each other: plain characters, at most 100."""
    return _NOT_IN_NAMES.sub("-", text).strip("-.")[:100] or "model"


class LocalCache:
    """Bundles by build key, below a directory that is created when something is stored.

    Args:
        root: the directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.locks = root / "locks"

    def path(self, key: str) -> Path:
        """Returns where the bundle of a key lies, or would."""
        return self.root / "builds" / key

    def find(self, key: str) -> Path | None:
        """Returns the bundle of a key; None where there is none, or one that is not as it was built."""
        path = self.path(key)
        if not path.is_dir():
            return None
        try:
            recorded = json.loads((self.root / "records" / f"{key}.json").read_bytes())
            return path if recorded == _record(path) and _recorded_key(path) == key else None
        except (PaitonError, OSError, ValueError):
            return None

    def discard(self, key: str) -> bool:
        """Removes what `find` refused; returns whether there was anything. Call it with the key's lock held."""
        found = self.path(key).exists()
        remove_tree(self.path(key))
        return found

    def record(self, key: str, model: str) -> None:
        """Notes that the bundle at `path(key)` is complete, and the last of its model.

        Raises:
            StoreError: the cache cannot be written.
        """
        path = self.path(key)
        try:
            for name in files_of_bundle(path):
                (path / name).chmod(0o444)
            for folder in ("records", "models"):
                (self.root / folder).mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cache {self.root}: {error.strerror}", hint="check its permissions and the space"
            ) from error
        write_atomically(self.root / "records" / f"{key}.json", json.dumps(_record(path)).encode())
        write_atomically(self.root / "models" / model, key.encode())

    def previous(self, model: str) -> BuildKey | None:
        """Returns the key of the last build of a model, with its components; None where there is none."""
        with contextlib.suppress(PaitonError, OSError, ValueError):
            key = (self.root / "models" / model).read_text("ascii")
            if _KEY.fullmatch(key):
                return _key_in(self.path(key))
        return None


def _record(path: Path) -> dict[str, list[int]]:
    """Returns size and time of change of every file of a bundle, without reading weights."""
    states = {name: (path / name).lstat() for name in files_of_bundle(path)}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}


def _recorded_key(path: Path) -> str | None:
    key = _key_in(path)
    return None if key is None else key.value


def _key_in(path: Path) -> BuildKey | None:
    data = read_bounded(path, PROVENANCE_NAME, MAX_COMPANION_BYTES)
    return components_in(data, str(path / PROVENANCE_NAME))
