"""Which instruction-set levels this machine runs, best first."""

from __future__ import annotations

import os
from collections.abc import Collection

from paiton_artifacts.errors import UnsupportedHostError, UnsupportedTargetError

_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

LEVELS: dict[str, frozenset[str]] = {
    "x86-64-v4-bf16-vbmi": _V4 | {"avx512vbmi", "avx512_bf16"},
    "x86-64-v4": _V4,
    "x86-64-v3": _V3,
    "generic": frozenset(),
}
"""Levels from best to worst, with the flags (names of /proc/cpuinfo) that each needs."""

INTEL = "GenuineIntel"
"""On Intel vdpbf16ps does half of what f32 FMA does (docs/cpu-target.md): the level without it goes first there."""


def cpu_flags() -> frozenset[str]:
    """Returns the flags and the vendor of the first processor, and the flags that `PAITON_CPU_FLAGS` adds.

    The variable is for virtual machines whose hypervisor hides an instruction set that the processor has.
    """
    flags = set(os.environ.get("PAITON_CPU_FLAGS", "").split())
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "vendor_id"):
                flags.update(value.split())
            if name.strip() == "flags":
                break
    return frozenset(flags)


def runnable_levels(flags: Collection[str]) -> list[str]:
    """Returns the levels that a processor with these flags (and vendor) runs, best first."""
    runnable = [level for level, needed in LEVELS.items() if needed <= set(flags)]
    if INTEL in flags and "x86-64-v4-bf16-vbmi" in runnable:
        runnable.remove("x86-64-v4-bf16-vbmi")
        runnable.insert(runnable.index("x86-64-v4") + 1, "x86-64-v4-bf16-vbmi")
    return runnable


def choose_level(available: Collection[str], flags: Collection[str], wanted: str | None = None) -> str:
    """Returns the best of the bundle's levels that this machine runs, or `wanted` if it is one of them.

    Raises:
        UnsupportedTargetError: the bundle does not hold `wanted`.
        UnsupportedHostError: this machine runs none of the bundle's levels, or not `wanted`.
    """
    runnable = runnable_levels(flags)
    held = ", ".join(sorted(available)) or "none"
    if wanted is not None and wanted not in available:
        raise UnsupportedTargetError(f"the bundle has no cpu level {wanted!r}", hint=f"it holds: {held}")
    if wanted is not None and wanted not in runnable:
        missing = ", ".join(sorted(LEVELS.get(wanted, frozenset()) - set(flags))) or "support in this version"
        raise UnsupportedHostError(
            f"this machine lacks {missing} for level {wanted}", hint=f"it runs: {', '.join(runnable)}"
        )
    for level in runnable:
        if level in available and wanted in (None, level):
            return level
    raise UnsupportedHostError(
        f"this machine runs none of the bundle's cpu levels: {held}", hint="build the bundle again with generic"
    )
