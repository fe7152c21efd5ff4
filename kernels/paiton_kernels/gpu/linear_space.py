"""Configurations of ``linear`` to choose from, most promising first.

Tiles that fit a target are ordered by a predicted time, in seconds, of a launch over a full bucket::

    load    = ceil(blocks / compute units), the blocks of the busiest unit;  imbalance = load * units / blocks
    memory  = operands / min(0.85 * memory rate, bytes in flight / latency)
    cache   = bytes that all blocks load / (2.5 * memory rate) * imbalance
    matrix  = operations on padded tiles / (0.7 * matrix rate) * imbalance
    shared  = bytes written to and read from shared memory / (128 bytes a cycle and unit) * imbalance
    time    = latency + passes of a block * synchronisation + 0.9 * longest of the four + 0.1 * their sum + reduction
    reduction = 2 * latency + partial sums written and read / memory rate, where K is split

So few rows get narrow tiles and split K, for bytes in flight on all units; many rows get large tiles, for reuse, as
long as the units are evenly loaded. The figures are what is published about the devices; nothing here was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import triton

from paiton_kernels.gpu.devices import TARGETS, Profile, Target
from paiton_kernels.gpu.linear_shape import ELEMENT_BYTES, LOAD_BYTES, SCALE_COLUMNS, has_empty_part, rows, work
from paiton_kernels.gpu.spec import Config, Constant, Step

CANDIDATES = 20
"""Configurations offered for a launch."""

_LATENCY = {"hip": 800e-9, "cuda": 600e-9}
_SYNCHRONISATION = 100e-9
"""Seconds that a block waits in each pass through the loop over K, hidden by the others on its unit."""

_MOST_PARTIAL_BYTES = 32 << 20
_MOST_NARROW = 0.1
"""Share of a pass that may be loaded in less than the widest loads."""

_SHARED_RATE = 128 * 2e9


@dataclass(frozen=True, slots=True)
class _Tile:
    """What a block computes and how, before the options of the compiler."""

    m: int
    n: int
    k: int
    split: int
    warps: int
    stages: int
    swap: int


@dataclass(frozen=True, slots=True)
class _Launch:
    """A launch to find tiles for."""

    constants: Mapping[str, Constant]
    step: Step
    profile: Profile

    @property
    def target(self) -> Target:
        return TARGETS[self.profile.target]

    @property
    def rows(self) -> int:
        return rows(self.constants, self.step)

    @property
    def n(self) -> int:
        return int(self.constants["N"])

    @property
    def k(self) -> int:
        return int(self.constants["K"])

    @property
    def fp8(self) -> bool:
        """Whether matrix instructions take FP8."""
        return self.constants["A_SCALE"] != "NONE"

    @property
    def converts(self) -> bool:
        """Whether weights are converted to bf16 in registers."""
        return not self.fp8 and self.constants["WEIGHT"] != "BF16"

    @property
    def bytes_a(self) -> int:
        return ELEMENT_BYTES[str(self.constants["A"])]

    @property
    def bytes_w(self) -> int:
        return ELEMENT_BYTES[str(self.constants["WEIGHT"])]

    @property
    def warp_groups(self) -> bool:
        """Whether four warps share a matrix instruction, of 64 rows (sm_90 and later)."""
        return self.target.backend == "cuda" and int(self.target.arch) >= 90

    @property
    def head(self) -> int:
        """Columns that a tile must hold together: a head, where heads are normalised."""
        return int(self.constants["HEAD_DIM"]) if self.constants["HEAD_NORM"] else 0

    @property
    def blocks_scaled(self) -> bool:
        """Whether each pass is scaled before it is added up."""
        return self.constants["SCALE_ROWS"] != 0

    def blocks(self, tile: _Tile) -> int:
        return -(-self.rows // tile.m) * -(-self.n // tile.n) * tile.split

    def pass_bytes(self, tile: _Tile) -> int:
        return (tile.m * self.bytes_a + tile.n * self.bytes_w) * tile.k

    def shared_bytes(self, tile: _Tile) -> int:
        """What a block keeps in shared memory: AMD's loads pass through registers on gfx942, one stage fewer."""
        stages = tile.stages - 1 if self.target.arch == "gfx942" else tile.stages
        padding = 1.07 if self.target.arch == "gfx950" else 1.0
        converted = 2 * tile.n * tile.k if self.warp_groups and self.converts and tile.m >= 64 else 0
        return int(self.pass_bytes(tile) * stages * padding) + converted


def space(constants: Mapping[str, Constant], step: Step, profile: Profile) -> tuple[Config, ...]:
    """Returns configurations for a bucket, most promising first."""
    launch = _Launch(constants, step, profile)
    tiles = sorted(set(_tiles(launch)), key=lambda tile: (_seconds(launch, tile), _order(tile)))
    variants = [tuple(_configs(launch, tile)) for tile in tiles]
    # The best options of many tiles before further options of the best tiles.
    found: dict[Config, None] = {}
    for depth, width in ((0, CANDIDATES - 6), (1, 4), (2, 2), *((depth, len(variants)) for depth in range(9))):
        for options in variants[:width]:
            if depth < len(options) and len(found) < CANDIDATES:
                found.setdefault(options[depth])
    return tuple(found)


def _order(tile: _Tile) -> tuple[int, ...]:
    return tile.split, tile.m, tile.n, tile.k, tile.warps, tile.stages


def _powers(least: int, most: int) -> list[int]:
    return [1 << exponent for exponent in range(least.bit_length() - 1, most.bit_length())]


def _tiles(launch: _Launch) -> Iterator[_Tile]:
    """Yields the tiles that fit the launch and its target."""
    height = min(max(16, triton.next_power_of_2(launch.rows)), 256)
    narrowest = max(32 if launch.target.backend == "hip" else 64, launch.head)
    width = min(max(narrowest, triton.next_power_of_2(launch.n)), 256)
    # Hopper's copies into shared memory take two registers for each 16 bytes of a thread's share.
    depth = min(max(64, triton.next_power_of_2(launch.k)), 512 if launch.target.backend == "hip" else 256)
    depth = min(depth, SCALE_COLUMNS) if launch.blocks_scaled else depth
    shallowest = SCALE_COLUMNS if launch.constants["A_SCALE"] == "GROUP" else 64
    for m in _powers(max(16, height // 4), height):
        for n in _powers(narrowest, width):
            for k in _powers(shallowest, max(shallowest, depth)):
                for split in _splits(launch, m, n, k):
                    for warps, swap in _arrangements(launch, m, n):
                        for stages in _stages(launch, m):
                            tile = _Tile(m, n, k, split, warps, stages, swap)
                            if _fits(launch, tile):
                                yield tile


def _splits(launch: _Launch, m: int, n: int, k: int) -> list[int]:
    """Returns the numbers of parts of K, all of the same number of passes but the last, that fill the units."""
    passes, blocks = -(-launch.k // k), launch.blocks(_Tile(m, n, k, 1, 4, 2, 0))
    units, partial = launch.profile.compute_units, 4 * blocks * m * n
    parts = {-(-passes // each) for each in range(2, passes + 1)} if blocks < 2 * units else {1}
    most = min(16, 4 * units // blocks, _MOST_PARTIAL_BYTES // partial)
    if launch.blocks_scaled:
        parts = {split for split in parts if not has_empty_part(launch.k // k, passes, split)}
    return sorted({1} | {split for split in parts if split <= most})


def _arrangements(launch: _Launch, m: int, n: int) -> list[tuple[int, int]]:
    """Returns numbers of warps, and whether weights are the left operand, for a tile."""
    if launch.warp_groups and (m >= 64 or not launch.converts):
        # The left operand has 64 rows at least, so few rows of activations go to the right, unless weights are
        # converted: as a left operand in registers they would be copied to shared memory 4 bytes at a time.
        # Activations that are quantised on the way cannot be it either: Triton 3.9 then loses the promotion interval.
        swap = int(m < 64 or launch.constants["A_SCALE"] in ("AMAX", "GROUP"))
        return [(4, swap)] + ([(8, swap)] if m * n > 64 * 64 else []) if (n if swap else m) >= 64 else []
    if m * n <= 16 * 32:
        return [(2, 0)]
    return [(4, 0)] if m * n < 64 * 256 else [(4, 0), (8, 0)]


def _stages(launch: _Launch, m: int) -> tuple[int, ...]:
    if launch.target.backend == "hip":
        return (2,) if launch.target.arch == "gfx942" or m > 64 else (2, 3)
    return (3, 4, 5) if m <= 64 else (3, 4)


def _registers(launch: _Launch, tile: _Tile) -> int:
    """Returns an estimate of the registers of a thread: accumulators, addresses, and what is on its way."""
    arch, threads = launch.target.arch, tile.warps * launch.target.warp_size
    accumulators = tile.m * tile.n // threads
    if arch == "gfx942":  # a pass, from device memory to shared memory
        carried = launch.pass_bytes(tile) // (4 * threads)
    elif arch == "gfx950":  # a pass, from shared memory to the matrix instructions, of warps that are two high
        carried = (tile.m // 2 + 2 * tile.n // tile.warps) * tile.k * (1 if launch.fp8 else 2) // (4 * 64)
    else:  # the addresses of a pass
        carried = launch.pass_bytes(tile) // (8 * threads)
    if launch.blocks_scaled or (arch == "90" and launch.fp8):
        carried += accumulators  # those of one pass, besides those that they are added to
    if launch.warp_groups and launch.converts and tile.m >= 64:  # weights as bf16, between shared memory and itself
        carried += tile.n * tile.k // (2 * threads)
    # What the epilogue loads for each element, all at once; on NVIDIA also what SILU has for each in between.
    beside = ("ADD", "ROPE") if launch.target.backend == "hip" else ("ADD", "ROPE", "SILU", "GELU")
    behind = accumulators if launch.constants["EPILOGUE"] in beside else 0
    return accumulators + max(carried, behind) + 40


def _most_registers(launch: _Launch, tile: _Tile) -> int:
    """Returns the registers that a thread can have by that estimate without spilling any."""
    if launch.target.backend == "hip":
        return 216 if tile.warps == 8 else 300  # of 256 and 512
    return 204


def _fits(launch: _Launch, tile: _Tile) -> bool:
    if launch.shared_bytes(tile) > launch.target.max_shared_bytes or launch.pass_bytes(tile) > 64 << 10:
        return False
    operands = tile.m * tile.k * launch.bytes_a, tile.n * tile.k * launch.bytes_w
    lanes = tile.warps * launch.target.warp_size
    narrow = sum(size for size in operands if size < LOAD_BYTES * lanes)
    if narrow > _MOST_NARROW * sum(operands):
        return False
    return _registers(launch, tile) <= _most_registers(launch, tile)


def _seconds(launch: _Launch, tile: _Tile) -> float:
    """Returns the predicted time of a launch, by the formula at the top of this file."""
    profile, target = launch.profile, launch.target
    units, blocks, latency = profile.compute_units, launch.blocks(tile), _LATENCY[target.backend]
    passes = -(-launch.k // (tile.k * tile.split))
    load = -(-blocks // units)
    imbalance = load * units / blocks
    resident = max(
        1,
        min(
            load,
            profile.shared_per_unit // max(1, launch.shared_bytes(tile)),
            profile.warps_per_unit // tile.warps,
            profile.registers_per_unit // (_registers(launch, tile) * tile.warps * target.warp_size),
        ),
    )
    in_flight = min(blocks, units * resident) * launch.pass_bytes(tile) * (tile.stages - 1)
    partial = 0 if tile.split == 1 else 8 * min(tile.m, launch.rows) * tile.n * blocks
    needed = work({**launch.constants, **_values(launch, tile)}, launch.step, profile)
    rate = profile.fp8_rate if launch.fp8 else profile.bf16_rate
    groups = tile.warps // 4 if launch.warp_groups else tile.warps
    across = max(1, groups // 2) if tile.m > tile.n // 4 or launch.warp_groups else 1
    reads = tile.m * launch.bytes_a * (groups // across + 1) + tile.n * launch.bytes_w * (across + 1)
    parts = (
        needed.bytes / min(0.85 * profile.memory_rate, in_flight / latency),
        blocks * passes * launch.pass_bytes(tile) / (2.5 * profile.memory_rate) * imbalance,
        2 * blocks * passes * tile.m * tile.n * tile.k / (0.7 * rate) * imbalance,
        blocks * passes * reads * tile.k / (_SHARED_RATE * units) * imbalance,
    )
    longest = 0.9 * max(parts) + 0.1 * sum(parts)
    reduction = 2 * latency + partial / profile.memory_rate if tile.split > 1 else 0.0
    # Close to the most, what is behind the loop decides whether registers are spilled.
    caution = 1.15 if _registers(launch, tile) > 0.95 * _most_registers(launch, tile) else 1.0
    return latency + passes * _SYNCHRONISATION * math.ceil(load / resident) + longest * caution + reduction


def _values(launch: _Launch, tile: _Tile) -> dict[str, int]:
    """Returns the tunables of a tile."""
    high = -(-launch.rows // tile.m)
    dies = launch.profile.dies
    # A square of tiles, in elements, for what a die works on at a time.
    square = math.sqrt(launch.profile.compute_units / dies * tile.n / tile.m)
    group = min(triton.next_power_of_2(high), 1 << max(0, round(math.log2(square))), 16)
    return {
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
        "SPLIT_K": tile.split,
        "GROUP_M": group,
        "DIES": dies,
        "SWAP": tile.swap,
    }


def _configs(launch: _Launch, tile: _Tile) -> Iterator[Config]:
    """Yields a tile with options of the compiler, most promising first."""
    values = _values(launch, tile)
    if launch.target.backend == "cuda":
        for stages in (tile.stages, tile.stages - 1, 2, 1):
            yield Config.of(tile.warps, stages, None, **values)
            yield Config.of(tile.warps, stages, None, **{**values, "GROUP_M": max(1, values["GROUP_M"] // 2)})
        return
    small = tile.m < 32 or tile.n < 32
    # 16 rows take half the registers of 32 on the way; gfx950's wide FP8 instructions have K = 128 there, 64 with 32.
    shapes = (16,) if small else (16, 32) if launch.target.arch == "gfx950" and tile.k >= 128 else (32, 16)
    packs = (2, 1) if launch.target.arch == "gfx942" and tile.k >= 128 else (1,)
    for waves in (0, 2, 1, 3, 4):
        for shape in shapes:
            for pack in packs:
                options = {"matrix_instr_nonkdim": shape}
                options |= {"kpack": pack} if pack > 1 else {}
                options |= {"waves_per_eu": waves} if waves else {}
                yield Config.of(tile.warps, tile.stages, options, **values)
