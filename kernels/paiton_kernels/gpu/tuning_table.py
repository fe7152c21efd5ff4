"""Tuning tables: which configuration a kernel uses on a device, as JSON.

A table belongs to one device profile and one compiler version. Its entries are keyed by family, by the readable name of
a shape (the family's `name` of the constants), and by bucket. There are two kinds: those that `paiton-build tune`
measures on a device, given with --tuning-table, and those recorded beside the kernels in `tables/`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paiton_artifacts.errors import UnsupportedVersionError, UsageError
from paiton_kernels.cache_file import write_atomically
from paiton_kernels.gpu.compile_job import COMPILER
from paiton_kernels.gpu.devices import PROFILES, Profile
from paiton_kernels.gpu.spec import Config, GpuKernelSpec

FORMAT = 1
RECORDED = Path(__file__).parent / "tables"
"""Folder of the tables that come with the kernels: one per profile."""

STATIC_RANKING = "static ranking"
"""Provenance of an entry that nothing was measured for."""

_MAX_BYTES = 16 << 20
_MAX_NUMBER = 1 << 20
_MAX_WARPS = 32
_HINT = "write a table for this device with `paiton-build tune`, or leave --tuning-table out"


@dataclass(frozen=True, slots=True)
class Entry:
    """One choice.

    Attributes:
        config: how to compute it.
        provenance: where the choice comes from: "measured on <device>" or "static ranking".
        microseconds: measured, or predicted by the static ranking.
    """

    config: Config
    provenance: str
    microseconds: float


@dataclass(slots=True)
class TuningTable:
    """Choices for one profile.

    Attributes:
        profile: the device's name.
        entries: by family, shape and bucket.
        compiler: that the choices were made with.
    """

    profile: str
    entries: dict[tuple[str, str, str], Entry] = field(default_factory=dict)
    compiler: str = COMPILER

    def write(self, path: Path) -> None:
        """Writes the table as JSON, sorted, atomically."""
        families: dict[str, Any] = {}
        for (family, shape, bucket), entry in sorted(self.entries.items()):
            families.setdefault(family, {}).setdefault(shape, {})[bucket] = {
                **entry.config.as_json(),
                "provenance": entry.provenance,
                "microseconds": round(entry.microseconds, 3),
            }
        document = {
            "format": FORMAT,
            "profile": self.profile,
            "target": PROFILES[self.profile].target,
            "compiler": self.compiler,
            "entries": families,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())

    def config(self, spec: GpuKernelSpec, shape: str, bucket: str) -> Config | None:
        """Returns the choice for a bucket of a shape; None if the table has none.

        Raises:
            UnsupportedVersionError: the table was made for another version of the kernel.
        """
        entry = self.entries.get((spec.family, shape, bucket))
        if entry is None:
            return None
        names = dict(entry.config.values).keys()
        if names != set(spec.tunables):
            raise UnsupportedVersionError(
                f"tuning table for {self.profile} has {', '.join(names) or 'nothing'} for kernel {spec.family}, "
                f"which takes {', '.join(spec.tunables)}",
                hint=f"the table is for another version of the kernels: {_HINT}",
            )
        return entry.config


def read_table(path: Path, profile: Profile) -> TuningTable:
    """Reads a table that a user passed.

    Raises:
        UsageError: the file is unreadable, is not a tuning table, or is one for another device.
        UnsupportedVersionError: it has another format, or was made with another compiler.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"tuning table {path} cannot be read: {error.strerror}", hint=_HINT) from error
    if len(content) > _MAX_BYTES:
        raise UsageError(f"tuning table {path} has more than {_MAX_BYTES} bytes", hint=_HINT)
    return _parse(content, str(path), profile)


def recorded_table(profile: Profile) -> TuningTable | None:
    """Returns the table that comes with the kernels; None if there is none, or only one for another compiler."""
    path = RECORDED / f"{profile.name}.json"
    if not path.is_file():
        return None
    try:
        return read_table(path, profile)
    except UnsupportedVersionError:
        return None


def _parse(content: bytes, what: str, profile: Profile) -> TuningTable:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"tuning table {what} is not JSON: {error}", hint=_HINT) from error
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise UsageError(f"{what} is not a tuning table: it names no format", hint=_HINT)
    if document["format"] != FORMAT:
        raise UnsupportedVersionError(
            f"tuning table {what} has format {document['format']}, this version reads {FORMAT}", hint=_HINT
        )
    if (document.get("profile"), document.get("target")) != (profile.name, profile.target):
        raise UsageError(
            f"tuning table {what} is for {document.get('profile')!r} ({document.get('target')!r}), "
            f"not for {profile.name} ({profile.target})",
            hint=_HINT,
        )
    if document.get("compiler") != COMPILER:
        raise UnsupportedVersionError(
            f"tuning table {what} was made with {document.get('compiler')!r}, kernels are compiled with {COMPILER}",
            hint=_HINT,
        )
    return TuningTable(profile.name, _entries(document.get("entries"), what))


def _entries(families: object, what: str) -> dict[tuple[str, str, str], Entry]:
    entries = {}
    for family, shapes in _items(families, what, "entries"):
        for shape, buckets in _items(shapes, what, family):
            for bucket, fields in _items(buckets, what, f"{family}.{shape}"):
                entries[family, shape, bucket] = _entry(fields, what, f"{family}.{shape}.{bucket}")
    return entries


def _items(value: object, what: str, where: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise UsageError(f"tuning table {what}: {where} is not an object", hint=_HINT)
    return list(value.items())


def _entry(fields: object, what: str, where: str) -> Entry:
    known = dict(_items(fields, what, where))
    expected = {"values", "num_warps", "num_stages", "options", "provenance", "microseconds"}
    if known.keys() != expected:
        raise UsageError(f"tuning table {what}: {where} has the fields {', '.join(sorted(known))}", hint=_HINT)
    values = {name: _number(value, what, f"{where}.{name}") for name, value in _items(known["values"], what, where)}
    options = {name: _number(value, what, f"{where}.{name}") for name, value in _items(known["options"], what, where)}
    warps = _number(known["num_warps"], what, f"{where}.num_warps")
    stages = _number(known["num_stages"], what, f"{where}.num_stages")
    time, provenance = known["microseconds"], known["provenance"]
    if warps & (warps - 1) or not 0 < warps <= _MAX_WARPS or stages < 1:
        raise UsageError(f"tuning table {what}: {where} has {warps} warps and {stages} stages", hint=_HINT)
    if type(time) not in (int, float) or not isinstance(provenance, str):
        raise UsageError(f"tuning table {what}: {where} has no time or no provenance", hint=_HINT)
    return Entry(Config.of(warps, stages, options, **values), provenance, float(time))


def _number(value: object, what: str, where: str) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_NUMBER:
        raise UsageError(f"tuning table {what}: {where} is {value!r}, not a number up to {_MAX_NUMBER}", hint=_HINT)
    return value
