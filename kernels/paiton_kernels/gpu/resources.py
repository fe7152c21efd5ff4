"""How many blocks of a compiled kernel a compute unit holds at once, by the rules of the hardware.

Sources: AMD "Instinct MI300" (CDNA 3) and "CDNA 4" instruction set guides and LLVM's `AMDGPUBaseInfo.cpp` (granules,
waves and barriers of a CU); NVIDIA "CUDA C++ Programming Guide", table of technical specifications per compute
capability, and the CUDA occupancy calculator (granules, shared memory that the system keeps for each block).
"""

from __future__ import annotations

from dataclasses import dataclass

from paiton_artifacts.errors import CompilerError
from paiton_kernels.gpu.compile import CompiledKernel
from paiton_kernels.gpu.devices import Profile, Target, target_named


@dataclass(frozen=True, slots=True)
class _Rules:
    """Granularity and limits of a compute unit.

    Attributes:
        partitions: SIMDs of a compute unit; a warp lives in one.
        register_granule: registers of a thread are allocated in multiples of this.
        shared_granule: bytes of shared memory likewise.
        shared_kept: bytes of shared memory that the system takes for each block.
        blocks: that a compute unit can track.
        threads: largest block.
        registers: that one thread can have.
    """

    partitions: int
    register_granule: int
    shared_granule: int
    shared_kept: int
    blocks: int
    threads: int
    registers: int


# 512 registers of 64 lanes per SIMD; a CU has 16 barriers, hence 16 blocks of more than one wave.
_AMD = {"partitions": 4, "register_granule": 8, "shared_kept": 0, "blocks": 16, "threads": 1024, "registers": 512}
# Registers are allocated to a warp in units of 256, hence 8 to each of its 32 threads.
_NVIDIA = {
    "partitions": 4,
    "register_granule": 8,
    "shared_granule": 128,
    "shared_kept": 1024,
    "blocks": 32,
    "threads": 1024,
    "registers": 255,
}
_RULES = {
    "hip:gfx942": _Rules(shared_granule=512, **_AMD),
    "hip:gfx950": _Rules(shared_granule=1280, **_AMD),
    "cuda:sm_80": _Rules(**_NVIDIA),
    "cuda:sm_90": _Rules(**_NVIDIA),
    "cuda:sm_100": _Rules(**_NVIDIA),
}

_SGPRS_FOR_ALL_WAVES = 100
"""On gfx9, 8 waves of a SIMD share 800 SGPRs; with more each there is room for 7."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What fits on a compute unit at once.

    Attributes:
        blocks: of this kernel.
        warps: of them together.
        of_warps: that the compute unit can hold.
        limit: what there is not enough of for one more block: "warps", "blocks", "registers" or "shared memory".
    """

    blocks: int
    warps: int
    of_warps: int
    limit: str

    @property
    def fraction(self) -> float:
        """Warps held, of those that could be."""
        return self.warps / self.of_warps


def _up(value: int, granule: int) -> int:
    return -(-value // granule) * granule


def occupancy(kernel: CompiledKernel, profile: Profile) -> Occupancy:
    """Returns what fits on a compute unit of a device.

    Raises:
        CompilerError: not even one block does.
    """
    if kernel.target != profile.target:
        raise ValueError(f"kernel {kernel.symbol} is for {kernel.target}, {profile.name} is {profile.target}")
    target, rules = target_named(kernel.target), _RULES[kernel.target]
    warps = -(-kernel.threads // target.warp_size)
    shared = _up(kernel.shared_bytes + rules.shared_kept, rules.shared_granule)
    limits = {  # of those that are equal the first is named
        "warps": profile.warps_per_unit // warps,
        "blocks": rules.blocks if warps > 1 or target.backend == "cuda" else profile.warps_per_unit,
        "registers": _warps_by_registers(kernel, profile, target, rules) // warps,
        "shared memory": profile.shared_per_unit // shared if shared else profile.warps_per_unit,
    }
    limit = min(limits, key=lambda name: limits[name])
    blocks = limits[limit]
    if not blocks or kernel.threads > rules.threads or kernel.shared_bytes > target.max_shared_bytes:
        raise CompilerError(
            f"kernel {kernel.symbol} does not fit {profile.name}: {kernel.threads} threads of {kernel.registers} "
            f"registers, {kernel.shared_bytes} bytes of shared memory"
        )
    return Occupancy(blocks, blocks * warps, profile.warps_per_unit, limit)


def _warps_by_registers(kernel: CompiledKernel, profile: Profile, target: Target, rules: _Rules) -> int:
    """Returns how many warps' registers a compute unit has, a multiple of its partitions."""
    per_warp = _up(max(kernel.registers, 1), rules.register_granule) * target.warp_size
    per_partition = profile.registers_per_unit // rules.partitions // per_warp
    if target.backend == "hip" and kernel.sgpr > _SGPRS_FOR_ALL_WAVES:
        per_partition = min(per_partition, 7)
    return per_partition * rules.partitions
