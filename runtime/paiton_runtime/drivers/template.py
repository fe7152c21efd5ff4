"""Packs a decoded plan into the records that the host library unrolls (native/paiton_host.h)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from paiton_artifacts.plan import Plan, pack_relocations
from paiton_artifacts.record import dataclass

_LAUNCH = struct.Struct("<QIIIIII")
_SEGMENT = struct.Struct("<IIII")


@dataclass(frozen=True, slots=True)
class Template:
    """Packed records of one plan, and how many segments, launches and relocations there are."""

    segments: bytes
    launches: bytes
    relocations: bytes
    args: bytes
    counts: tuple[int, int, int]


def pack_template(plan: Plan, kernels: Mapping[str, int]) -> Template:
    """Packs `plan`, with each symbol replaced by its address in `kernels`."""
    segments: list[bytes] = []
    launches: list[bytes] = []
    relocations: list[bytes] = []
    relocated = 0
    args = bytearray()
    for segment in plan.segments:
        segments.append(_SEGMENT.pack(segment.repeat, len(launches), len(segment.launches), 0))
        for launch in segment.launches:
            count = len(launch.relocations)
            record = (kernels[launch.symbol], launch.flags, len(args), len(launch.args), relocated, count, 0)
            launches.append(_LAUNCH.pack(*record))
            relocations.append(pack_relocations(launch.relocations))
            relocated += count
            args += launch.args
    counts = (len(segments), len(launches), relocated)
    return Template(b"".join(segments), b"".join(launches), b"".join(relocations), bytes(args), counts)
