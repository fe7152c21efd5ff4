"""The build key: SHA-256 over everything that a bundle's bytes depend on, component by component.

Components are named, so that two keys can be compared: "why was this built again" has an answer. What does not matter
is left out: where the checkpoint lies and what it is called, the machine, the clock, the cache. A model of the Hugging
Face hub and its commit matter, as the manifest names them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import zstandard

import paiton_aot
import paiton_artifacts
import paiton_kernels
from paiton_aot.checkpoint.inventory import GGUF_NAME
from paiton_aot.options import BuildOptions
from paiton_artifacts.errors import UsageError
from paiton_artifacts.layout import FORMAT_MAJOR, FORMAT_MINOR, RUNTIME_ABI

_VERSION = 1
"""Counts up when the key is made otherwise."""

_NOT_IN_KEY = {"cache_dir", "origin", "tuning_tables"}
_SOURCES = {".py", ".c", ".h", ".json"}
_TOOLS = ("jinja2", "minijinja", "ml_dtypes", "numpy", "tokenizers", "ziglang")


@dataclass(frozen=True, slots=True)
class BuildKey:
    """What a build depends on.

    Attributes:
        components: digests, versions and flags by name, such as "checkpoint/config.json" or "option/tp".
    """

    components: Mapping[str, str]

    @property
    def value(self) -> str:
        """The key: 64 hexadecimal digits."""
        document = {"version": _VERSION, "components": dict(self.components)}
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def difference(self, other: Mapping[str, str]) -> list[str]:
        """Returns the names of the components in which this key differs from others, sorted."""
        names = self.components.keys() | other.keys()
        return sorted(name for name in names if self.components.get(name) != other.get(name))

    def checkpoint(self) -> dict[str, str]:
        """Returns the SHA-256 of each file of the checkpoint, by its name within it."""
        return _below("checkpoint", self.components)

    def options(self) -> dict[str, str]:
        """Returns the flags of the build, as JSON values."""
        return _below("option", self.components)

    def tools(self) -> dict[str, str]:
        """Returns the versions of what the build used, by the names of their packages."""
        return _below("tool", self.components)


def make_key(checkpoint: Mapping[str, str], options: BuildOptions) -> BuildKey:
    """Returns the key of a build.

    Args:
        checkpoint: SHA-256 of each file that the build may read, by name: see `checkpoint.inventory`.
        options: what to build.

    Raises:
        UsageError: a tuning table cannot be read, or a package that the build needs is not installed.
    """
    components = {f"checkpoint/{name}": digest for name, digest in checkpoint.items()}
    for field in dataclasses.fields(options):
        if field.name not in _NOT_IN_KEY:
            components[f"option/{field.name}"] = json.dumps(getattr(options, field.name))
    for index, table in enumerate(options.tuning_tables):
        components[f"tuning table/{index}"] = _table(table)
    components |= {
        "sources/build": _source_digest(Path(paiton_aot.__file__).parent),
        "sources/kernels": _source_digest(Path(paiton_kernels.__file__).parent),
        # The format proper: stores and signatures, in folders of their own, shape no byte of a bundle.
        "sources/format": _source_digest(Path(paiton_artifacts.__file__).parent, deep=False),
        "format": f"{FORMAT_MAJOR}.{FORMAT_MINOR}",
        "runtime abi": str(RUNTIME_ABI),
        "tool/zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
    }
    gguf = ("gguf",) if GGUF_NAME in checkpoint else ()
    triton = ("triton",) if options.targets else ()
    components |= {f"tool/{name}": _version(name) for name in (*_TOOLS, *gguf, *triton)}
    return BuildKey(dict(sorted(components.items())))


def _below(prefix: str, components: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(f"{prefix}/"): v for name, v in components.items() if name.startswith(f"{prefix}/")}


def _table(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"tuning table {path} cannot be read: {error.strerror}", hint="check the path") from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        extra = "build,gpu" if package == "triton" else "build"
        raise UsageError(
            f"paiton-build needs the Python package {package} for this", hint=f"pip install 'paiton-aot[{extra}]'"
        ) from None


@functools.cache
def _source_digest(folder: Path, *, deep: bool = True) -> str:
    """Returns a digest of the sources in a folder, names included; whatever is compiled from them is not one."""
    digest = hashlib.sha256()
    for name, data in _sources(folder, deep=deep):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _sources(folder: Path, *, deep: bool) -> Iterable[tuple[str, bytes]]:
    found = folder.rglob("*") if deep else folder.glob("*")
    names = sorted(str(path.relative_to(folder)) for path in found if path.suffix in _SOURCES)
    return ((name, (folder / name).read_bytes()) for name in names)
