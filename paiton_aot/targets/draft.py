"""Launches before their addresses are settled: arguments refer to weights, io fields and scratch values by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paiton_artifacts.plan import Access, LaunchFlag
from paiton_kernels.spec import Variant


@dataclass(frozen=True, slots=True)
class Bucket:
    """The largest step that a plan can run."""

    tokens: int
    requests: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the weights region."""

    name: str


@dataclass(frozen=True, slots=True)
class Io:
    """A field of the io region."""

    field: str
    access: Access = Access.READ


@dataclass(frozen=True, slots=True)
class Scratch:
    """A value in the scratch region, alive from its first to its last use."""

    value: str
    size: int  # bytes
    access: Access = Access.READ


@dataclass(frozen=True, slots=True)
class WorkerScratch:
    """The per-worker area at the end of the scratch region."""


@dataclass(frozen=True, slots=True)
class Kv:
    """The K and V of one layer within every KV block."""

    layer: int
    access: Access = Access.READ


@dataclass(frozen=True, slots=True)
class Comm:
    """Bytes of the comm region: the own rank's, or `rank`'s."""

    offset: int
    size: int
    access: Access = Access.READ
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class RankTimes:
    """The integer rank * factor."""

    factor: int


Reference = Weight | Io | Scratch | WorkerScratch | Kv | Comm | RankTimes


@dataclass(frozen=True, slots=True)
class Draft:
    """One launch of a plan under construction; `layer` is None outside the decoder layers."""

    variant: Variant
    references: Mapping[str, Reference]
    constants: Mapping[str, int | float]
    layer: int | None = None
    flags: LaunchFlag = LaunchFlag.NONE
