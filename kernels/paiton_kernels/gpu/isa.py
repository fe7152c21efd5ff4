"""Facts about compiled code that tests assert and ranking weighs: matrix instructions, widths of loads, promotion adds.

All counts are static: an instruction in the text counts once. What a loop loads is counted for one pass of one warp.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from paiton_kernels.gpu.devices import Target
from paiton_kernels.gpu.isa_index import index_loads
from paiton_kernels.gpu.isa_loops import Instruction, basic_blocks, innermost_loops

WIDE = 16
"""Bytes per lane of the widest load."""

PROMOTION_INTERVAL = 128
"""Elements of K after which Hopper's FP8 accumulator must be added to an f32 one: it keeps 13 bits of fraction."""

_MFMA = re.compile(r"v_s?mfmac?_(?:scale_)?f32_(\d+)x(\d+)x(\d+)_(\w+)")
_WGMMA = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m(\d+)n(\d+)k(\d+)\.f32\.(\w+)\.")
_MMA = re.compile(r"mma\.sync\.aligned\.m(\d+)n(\d+)k(\d+)\.row\.col\.f32\.(\w+)\.")
_TCGEN = re.compile(r"tcgen05\.mma\.\S*kind::(\w+)")
_ELEMENTS = {"f8f6f4": "fp8", "fp8_fp8": "fp8", "e4m3": "fp8", "bf16": "bf16", "bf16_1k": "bf16", "f16": "f16"}

_AMD_LOAD = re.compile(r"(?:global|buffer|flat)_load_(?:lds_)?(dword(?:x(\d))?|[us]byte|[us]short|short)")
_AMD_SCALAR_LOAD = re.compile(r"s_(?:buffer_)?load_dword(?:x(\d+))?$")
_PTX_LOAD = re.compile(r"ld\.global\b(?:\.\w+(?:::\w+)*)*?(?:\.v(\d))?\.[bsuf](\d+)$")
_PTX_COPY = re.compile(r"cp\.async\.c[ag]\.")
_PTX_SIZE = re.compile(r"\],\s*\[[^\]]*\],\s*(0x[0-9a-f]+|\d+)")

_WIDE_MULTIPLIES = re.compile(
    r"v_mad_[ui]64|[sv]_mul_hi_|s_mul_u64|mul\.wide|mad\.wide|mul\.lo\.[su]64|mad\.lo\.[su]64|mul\.hi\."
)


class MatrixKind(NamedTuple):
    """A kind of matrix instruction: the unit ("mfma", "wgmma", "mma", "tcgen05") and the operands' type."""

    unit: str
    element: str


@dataclass(frozen=True, slots=True)
class LoopFacts:
    """One pass of one warp through an innermost loop.

    Attributes:
        instructions: in the loop.
        loads: bytes of data from global memory by width in bytes per lane; copies into shared memory count.
        index_bytes: bytes loaded from global memory only to address other loads.
        matrix: matrix instructions by kind.
        operations: multiplications and additions of the matrix instructions; 0 where the text does not say (tcgen05).
        f32_adds: additions of f32 that are not part of a matrix instruction, per lane, fused with a product or not.
        promotions: f32 additions per lane that FP8 warp-group products need if each is promoted every
            PROMOTION_INTERVAL elements of K (Hopper).
    """

    instructions: int
    loads: Mapping[int, int]
    index_bytes: int
    matrix: Mapping[MatrixKind, int]
    operations: int
    f32_adds: int
    promotions: int

    @property
    def load_bytes(self) -> int:
        """Bytes of data loaded."""
        return sum(self.loads.values())

    @property
    def promoted(self) -> bool:
        """Whether imprecise accumulators are added to f32 ones often enough."""
        return self.f32_adds >= self.promotions


@dataclass(frozen=True, slots=True)
class IsaFacts:
    """A kernel's assembly in numbers.

    Attributes:
        instructions: in all.
        matrix: matrix instructions by kind.
        loops: innermost loops that load from global memory or multiply matrices. If none multiplies though the kernel
            does, its loop was unrolled: then everything up to the last product counts as one pass of one.
        system_scope: atomics and fences that other devices and the host take part in.
        wide_multiplies: multiplications with more than 32 bits of result.
    """

    instructions: int
    matrix: Mapping[MatrixKind, int]
    loops: tuple[LoopFacts, ...]
    system_scope: int
    wide_multiplies: int

    @property
    def wide_share(self) -> float:
        """Of the bytes that hot loops load, the share loaded 16 bytes at a time; 1 without loads in them.

        Hot are the loops that multiply matrices, or all if none does.
        """
        hot = [loop for loop in self.loops if loop.matrix] or self.loops
        total = sum(loop.load_bytes for loop in hot)
        return sum(loop.loads.get(WIDE, 0) for loop in hot) / total if total else 1.0

    def uses(self, element: str) -> bool:
        """Returns whether matrix instructions take operands of a type ("fp8", "bf16")."""
        return any(kind.element == element for kind in self.matrix)


def read_isa(assembly: str, target: Target) -> IsaFacts:
    """Returns the facts of a kernel's assembly text (AMDGCN or PTX)."""
    blocks, successors = basic_blocks(assembly)
    everything = [instruction for block in blocks for instruction in block]
    loops = []
    for numbers in innermost_loops(successors):
        loop = _loop_facts([instruction for number in numbers for instruction in blocks[number]], target)
        if loop.loads or loop.matrix:
            loops.append(loop)
    last = max((index for index, item in enumerate(everything) if _matrix_instruction(item.opcode)), default=None)
    if last is not None and not any(loop.matrix for loop in loops):  # few passes: the compiler unrolled the loop
        loops.append(_loop_facts(everything[: last + 1], target))
    return IsaFacts(
        instructions=len(everything),
        matrix=_matrix(everything),
        loops=tuple(loops),
        system_scope=sum(_system_scope(instruction) for instruction in everything),
        wide_multiplies=sum(bool(_WIDE_MULTIPLIES.match(instruction.opcode)) for instruction in everything),
    )


def _matrix_instruction(opcode: str) -> tuple[MatrixKind, tuple[int, int, int]] | None:
    """Returns kind and shape (M, N, K; zeros where unknown) of a matrix instruction; None for any other."""
    for unit, pattern in (("mfma", _MFMA), ("wgmma", _WGMMA), ("mma", _MMA)):
        if found := pattern.match(opcode):
            return MatrixKind(unit, _ELEMENTS.get(found[4], found[4])), (int(found[1]), int(found[2]), int(found[3]))
    if found := _TCGEN.match(opcode):
        element = "bf16" if found[1] == "f16" else _ELEMENTS.get(found[1], found[1])  # kind::f16 is for both
        return MatrixKind("tcgen05", element), (0, 0, 0)
    return None


def _matrix(instructions: Iterable[Instruction]) -> Mapping[MatrixKind, int]:
    found = (_matrix_instruction(instruction.opcode) for instruction in instructions)
    return Counter(item[0] for item in found if item is not None)


_F32_ADDS = (
    *("add.f32", "add.rn.f32", "add.ftz.f32", "fma.rn.f32", "fma.rn.ftz.f32"),
    *("v_add_f32", "v_pk_add_f32", "v_fma_f32", "v_fmac_f32", "v_pk_fma_f32"),
)


def _loop_facts(instructions: list[Instruction], target: Target) -> LoopFacts:
    loads: Counter[int] = Counter()
    operations = adds = promotions = index_bytes = 0
    indices = index_loads(instructions)
    for position, instruction in enumerate(instructions):
        width, lanes = _load(instruction, target)
        if position in indices:
            index_bytes += width * lanes
        elif width:
            loads[width] += width * lanes
        if instruction.opcode.startswith(_F32_ADDS):
            adds += 2 if "f32x2" in instruction.opcode or "_pk_" in instruction.opcode else 1
        if multiplication := _matrix_instruction(instruction.opcode):
            (unit, element), (m, n, k) = multiplication
            warps = 4 if unit == "wgmma" else 1  # that share an instruction
            operations += 2 * m * n * k // warps
            if (unit, element) == ("wgmma", "fp8"):
                promotions += m * n // (warps * target.warp_size) * k // PROMOTION_INTERVAL
    return LoopFacts(
        instructions=len(instructions),
        loads=dict(loads),
        index_bytes=index_bytes,
        matrix=_matrix(instructions),
        operations=operations,
        f32_adds=adds,
        promotions=promotions,
    )


def _load(instruction: Instruction, target: Target) -> tuple[int, int]:
    """Returns bytes per lane that an instruction loads from global memory, and its lanes; zeros for any other."""
    if found := _AMD_LOAD.match(instruction.opcode):
        size = 1 if "byte" in found[1] else 2 if "short" in found[1] else 4 * int(found[2] or 1)
        return size, target.warp_size
    if found := _AMD_SCALAR_LOAD.match(instruction.opcode):
        return 4 * int(found[1] or 1), 1
    if found := _PTX_LOAD.match(instruction.opcode):
        return int(found[1] or 1) * int(found[2]) // 8, target.warp_size
    if _PTX_COPY.match(instruction.opcode) and (copied := _PTX_SIZE.search(instruction.operands)):
        return int(copied[1], 0), target.warp_size
    return 0, 0


def _system_scope(instruction: Instruction) -> bool:
    words = set(instruction.operands.split())
    if "_atomic" in instruction.opcode:
        return "sc1" in words  # sc0 asks for the old value
    if instruction.opcode in ("buffer_wbl2", "buffer_inv"):
        return {"sc0", "sc1"} <= words
    return ".sys" in instruction.opcode and ".shared" not in instruction.opcode
