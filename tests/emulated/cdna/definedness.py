"""Which registers an instruction leaves undefined when its sources are.

Reading a register that was never written is a fault, with exceptions: compilers copy, pack and spill values of which
a part does not matter (the upper half of a pair, one value of a packed pair, the inactive lanes of a mask), and leave
that part undefined. Such instructions pass undefinedness on: their destination is undefined if all their sources are.
"""

from __future__ import annotations

from typing import Final

from tests.emulated.cdna.instruction import Instruction
from tests.emulated.cdna.waves import EXEC

Flow = tuple[int, int]
"""Bit masks of registers: the first become undefined if all of the second are."""

_COPIES: Final = frozenset(
    (
        "v_mov_b32",
        "v_mov_b64",
        "v_accvgpr_read_b32",
        "v_accvgpr_write_b32",
        "v_accvgpr_mov_b32",
        "s_mov_b32",
        "s_mov_b64",
    )
)
_PACKS: Final = frozenset(
    (
        "v_perm_b32",
        "v_bfi_b32",
        "v_or_b32",
        "v_or3_b32",
        "v_and_or_b32",
        "v_lshl_or_b32",
        "v_alignbit_b32",
        "v_alignbyte_b32",
        "v_pack_b32_f16",
        "v_cvt_pk_f16_f32",
        "v_cvt_pkrtz_f16_f32",
        "v_cvt_pk_bf16_f32",
        "v_cvt_pk_fp8_f32",
        "v_cvt_pk_bf8_f32",
        "s_or_b64",  # joins what lanes say that are active now with what the others said before
    )
)
_OF_OTHER_LANES: Final = "s_andn2_b64"
"""With EXEC as its last operand: keeps what the inactive lanes said, which nobody may have."""
_SPILLS: Final = "v_writelane_b32"
"""Keeps a scalar in one lane of a vector register, whose other lanes have others."""
_WIDE_SUMS: Final = frozenset(("v_mad_u64_u32", "v_mad_i64_i32"))
"""Also the way to a 32-bit sum: then the upper halves of the addend and of the result do not matter."""


def flows_of(instruction: Instruction) -> tuple[Flow, ...]:
    """Returns how undefinedness passes through a decoded instruction, which then no longer counts as reading."""
    name = instruction.name
    if name in _COPIES:
        target, source = (instruction.bits(operand) for operand in instruction.operands)
        if target >> EXEC & 1:
            return ()
        instruction.reads &= ~source
        flows = []
        while target and source:  # register by register
            flows.append((target & -target, source & -source))
            target, source = target & (target - 1), source & (source - 1)
        return tuple(flows)
    if name == _OF_OTHER_LANES:
        target, mask, taken = (instruction.bits(operand) for operand in instruction.operands)
        if taken != 3 << EXEC or target >> EXEC & 3:
            return ()
        instruction.reads &= ~mask
        return ((target, mask),)
    if name == _SPILLS:
        target, source, _ = (instruction.bits(operand) for operand in instruction.operands)
        instruction.reads &= ~source
        return ((target, target | source),)
    if name in _WIDE_SUMS:
        target, addend = (instruction.bits(instruction.operands[place]) for place in (0, -1))
        upper = addend & (addend - 1)
        instruction.reads &= ~upper
        return ((target & (target - 1), upper),) if upper else ()
    if name in _PACKS or name.startswith("v_pk_"):
        target, *sources = (instruction.bits(operand) for operand in instruction.operands)
        together = 0
        for source in sources:
            together |= source
        if not together:
            return ()
        instruction.reads &= ~together
        return ((target, together),)
    return ()
