"""Remembers what a whole build chose, so that the same build again decides nothing.

To find a choice in a table or to rank, the spaces of all kernels must be listed and ordered, which takes seconds for a
large model. What they depend on is the package's sources, the requests, the device and the tables: one digest.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from paiton_kernels.cache_file import write_atomically
from paiton_kernels.gpu.spec import Config, GpuKernelSpec

_PACKAGE = Path(__file__).parents[1]


def memory_key(specs: Iterable[GpuKernelSpec], *inputs: object) -> str | None:
    """Returns a digest of everything that choices follow from.

    Args:
        specs: the families that are chosen for.
        *inputs: the rest; their `repr` must tell them apart.

    Returns:
        None if a family is not defined by this package, whose sources are what the digest covers.
    """
    functions: list[Callable[..., Any]] = []
    for spec in specs:
        functions += [spec.function, spec.name, spec.space, spec.grid, spec.work, spec.check, spec.workspace]
    if not all(function.__module__.startswith(f"{_PACKAGE.name}.") for function in functions):
        return None
    return hashlib.sha256(repr((_package_digest(), inputs)).encode()).hexdigest()


@functools.cache
def _package_digest() -> str:
    """Returns a digest of the package's Python sources."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_PACKAGE)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def recall(path: Path) -> list[tuple[Config, str]] | None:
    """Returns configurations and their sources as `remember` wrote them; None if absent or damaged."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return None
    return [(_config(fields), source) for fields, source in json.loads(content)]


def _config(fields: Mapping[str, Any]) -> Config:
    return Config.of(fields["num_warps"], fields["num_stages"], fields["options"], **fields["values"])


def remember(path: Path, choices: Iterable[tuple[Config, str]]) -> None:
    """Writes configurations and their sources, with a digest."""
    content = json.dumps([(config.as_json(), source) for config, source in choices]).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
