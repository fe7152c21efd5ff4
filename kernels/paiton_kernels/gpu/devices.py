"""Devices that plans and tuning are made for: what each profile of a target offers.

Figures are the vendors' published ones (data sheets and white papers of MI300X, MI300A, MI355X, A100, H100, H200, H20
and B200); rates are dense peaks, used for predictions only.
"""

from __future__ import annotations

from dataclasses import dataclass

from paiton_artifacts.errors import UnsupportedTargetError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Target:
    """An instruction set.

    Attributes:
        name: as on the command line, e.g. "hip:gfx942".
        backend: "hip" or "cuda".
        arch: what the compiler calls it: "gfx942", or the compute capability, "90".
        warp_size: lanes of a warp (wavefront).
        max_shared_bytes: shared memory (LDS) that one block can have.
        fp8: whether matrix instructions take FP8.
        fp8_unit: value of an e4m3fn code divided by what the target's FP8 type makes of the same byte: 2 where that
            type is e4m3fnuz, whose exponent bias is one higher.
    """

    name: str
    backend: str
    arch: str
    warp_size: int
    max_shared_bytes: int
    fp8: bool
    fp8_unit: float

    @property
    def level(self) -> str:
        """The name without the backend: the architecture as vendors write it."""
        return self.name.partition(":")[2]

    @property
    def slug(self) -> str:
        """The name without the colon, for paths."""
        return self.name.replace(":", "-")


@dataclass(frozen=True, slots=True)
class Profile:
    """A device of a target.

    Attributes:
        name: e.g. "mi300x".
        target: name of its target.
        compute_units: CUs or SMs.
        dies: XCDs that take turns in receiving blocks, each with an L2 of its own; 1 where the L2 is one.
        memory_bytes: device memory.
        memory_rate: bytes per second from device memory.
        fp8_rate: FP8 operations per second of the matrix units; 0 without.
        bf16_rate: likewise for bf16.
        shared_per_unit: bytes of shared memory of a compute unit.
        registers_per_unit: 32-bit registers of a compute unit.
        warps_per_unit: warps that a compute unit can hold.
    """

    name: str
    target: str
    compute_units: int
    dies: int
    memory_bytes: int
    memory_rate: float
    fp8_rate: float
    bf16_rate: float
    shared_per_unit: int
    registers_per_unit: int
    warps_per_unit: int


TARGETS = {
    target.name: target
    for target in (
        Target("hip:gfx942", "hip", "gfx942", 64, 64 << 10, fp8=True, fp8_unit=2.0),
        Target("hip:gfx950", "hip", "gfx950", 64, 160 << 10, fp8=True, fp8_unit=1.0),
        Target("cuda:sm_80", "cuda", "80", 32, 163 << 10, fp8=False, fp8_unit=1.0),
        Target("cuda:sm_90", "cuda", "90", 32, 227 << 10, fp8=True, fp8_unit=1.0),
        Target("cuda:sm_100", "cuda", "100", 32, 227 << 10, fp8=True, fp8_unit=1.0),
    )
}

_AMD = {"shared_per_unit": 64 << 10, "registers_per_unit": 131072, "warps_per_unit": 32}
_NVIDIA = {"registers_per_unit": 65536, "warps_per_unit": 64}

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("mi300x", "hip:gfx942", 304, 8, 192 * GIB, 5.3e12, 2.615e15, 1.307e15, **_AMD),
        Profile("mi300a", "hip:gfx942", 228, 6, 128 * GIB, 5.3e12, 1.961e15, 0.981e15, **_AMD),
        Profile(
            "mi355x",
            "hip:gfx950",
            256,
            8,
            288 * GIB,
            8.0e12,
            5.033e15,
            2.517e15,
            **{**_AMD, "shared_per_unit": 160 << 10},
        ),
        Profile("a100", "cuda:sm_80", 108, 1, 80 * GIB, 2.04e12, 0.0, 0.312e15, shared_per_unit=164 << 10, **_NVIDIA),
        Profile(
            "h100", "cuda:sm_90", 132, 1, 80 * GIB, 3.35e12, 1.979e15, 0.989e15, shared_per_unit=228 << 10, **_NVIDIA
        ),
        Profile(
            "h200", "cuda:sm_90", 132, 1, 141 * 10**9, 4.8e12, 1.979e15, 0.989e15, shared_per_unit=228 << 10, **_NVIDIA
        ),
        Profile("h20", "cuda:sm_90", 78, 1, 96 * GIB, 4.0e12, 0.296e15, 0.148e15, shared_per_unit=228 << 10, **_NVIDIA),
        Profile(
            "b200", "cuda:sm_100", 148, 1, 180 * GIB, 8.0e12, 4.5e15, 2.25e15, shared_per_unit=228 << 10, **_NVIDIA
        ),
    )
}

DEFAULT_PROFILES = {
    "hip:gfx942": "mi300x",
    "hip:gfx950": "mi355x",
    "cuda:sm_80": "a100",
    "cuda:sm_90": "h200",
    "cuda:sm_100": "b200",
}
"""The profile that a target's plans are made for when none is asked for."""


def target_named(name: str) -> Target:
    """Returns the target of that name.

    Raises:
        UnsupportedTargetError: there is none.
    """
    if name not in TARGETS:
        raise UnsupportedTargetError(f"target {name} is unknown", hint=f"one of cpu, {', '.join(TARGETS)}")
    return TARGETS[name]


def profile_named(name: str) -> Profile:
    """Returns the profile of that name.

    Raises:
        UnsupportedTargetError: there is none.
    """
    if name not in PROFILES:
        raise UnsupportedTargetError(f"device profile {name} is unknown", hint=f"one of {', '.join(PROFILES)}")
    return PROFILES[name]
