"""`paiton-build --check`: builds again, from nothing that was kept, and compares every byte with an existing bundle."""

from __future__ import annotations

import filecmp
import importlib
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paiton_aot.attest.provenance import components_in
from paiton_aot.cache.links import files_of_bundle
from paiton_aot.identity.build_key import BuildKey
from paiton_aot.options import BuildOptions
from paiton_aot.progress import Progress
from paiton_artifacts.errors import ReproductionError, VerificationError
from paiton_artifacts.files import read_bounded
from paiton_artifacts.layout import PROVENANCE_NAME
from paiton_artifacts.limits import MAX_COMPANION_BYTES
from paiton_artifacts.temporary import LockedDirectory, remove_stale


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A bundle that came out the same.

    Attributes:
        bundle: that was compared.
        key: of the build.
        files: how many were compared.
        seconds: that it took.
    """

    bundle: Path
    key: str
    files: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Returns the outcome as plain data."""
        return {
            "bundle": str(self.bundle),
            "key": self.key,
            "reproduced": True,
            "files": self.files,
            "seconds": round(self.seconds, 3),
        }

    def summary(self) -> str:
        """Returns one line for people."""
        return f"{self.bundle}: {self.files} files came out the same in {self.seconds:.1f} s"


def check_reproduction(model: Path, bundle: Path, options: BuildOptions, progress: Progress) -> Reproduction:
    """Builds `model` again beside `bundle`, with an empty cache of compiled kernels, and compares.

    Raises:
        ReproductionError: a file differs, or there is one more or less.
        PaitonError: there is no bundle, or as a build.
    """
    start = time.perf_counter()
    names = files_of_bundle(bundle)
    remove_stale(bundle)
    scratch = LockedDirectory(bundle.absolute())
    try:
        rebuilt = scratch.path / "bundle"
        build = importlib.import_module("paiton_aot.build")
        result = build.build(model, rebuilt, replace(options, cache_dir=scratch.path / "cache"), progress=progress)
        shutil.rmtree(scratch.path / "cache", ignore_errors=True)
        _compare(bundle, names, rebuilt, result.key)
    finally:
        scratch.remove()
    return Reproduction(bundle, result.key.value, len(names), time.perf_counter() - start)


def _compare(bundle: Path, names: list[str], rebuilt: Path, key: BuildKey) -> None:
    again = files_of_bundle(rebuilt)
    if odd := sorted(set(names) ^ set(again)):
        raise ReproductionError(f"{bundle}: {odd[0]} is in one of the two builds only", hint=_hint(bundle, key))
    # By content: sizes and times say nothing here.
    _, differ, unreadable = filecmp.cmpfiles(bundle, rebuilt, names, shallow=False)
    if found := sorted([*differ, *unreadable]):
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ReproductionError(f"{bundle}: {found[0]}{more} came out otherwise", hint=_hint(bundle, key))


def _hint(bundle: Path, key: BuildKey) -> str:
    """Returns the likeliest reason: other inputs, as far as the bundle says what its inputs were."""
    try:
        data = read_bounded(bundle, PROVENANCE_NAME, MAX_COMPANION_BYTES)
        recorded = components_in(data, str(bundle / PROVENANCE_NAME))
    except VerificationError:
        recorded = None
    if recorded is None:
        return "the bundle does not say what it was built from"
    differs = key.difference(recorded.components)
    if differs:
        return f"it was built with other {', '.join(differs[:8])}"
    return "the inputs are the same: the bundle was altered, or the build is not reproducible here"
