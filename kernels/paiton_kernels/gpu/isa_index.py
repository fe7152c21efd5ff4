"""Tells loads of indices from loads of data in a loop: an index only helps to address other loads.

Block tables and work lists are read four bytes at a time, many lanes the same ones; how wide data is loaded shows only
without them. What was loaded is followed from register to register, in the order of the text and twice around the loop,
until it addresses a load. Values that pass through shared memory are lost on the way: their loads count as data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from paiton_kernels.gpu.isa_loops import Instruction

_AMD_REGISTER = re.compile(r"\b([vsa])(?:\[(\d+):(\d+)\]|(\d+))")
_PTX_REGISTER = re.compile(r"%[a-z]+\d+")
_PTX_ADDRESS = re.compile(r"\[([^\]]*)\]")
_AMD_LOAD = re.compile(r"(?:global|buffer|flat)_load_")
_AMD_WITHOUT_RESULT = re.compile(r"(?:global|buffer|flat|ds)_(?:store|write|load_lds)")
_TWO_RESULTS = ("v_mad_u64_u32", "v_mad_i64_i32", "v_add_co_u32", "v_addc_co_u32")


def index_loads(instructions: Sequence[Instruction]) -> set[int]:
    """Returns the positions of a loop's instructions that load indices."""
    followed: dict[str, frozenset[int]] = {}  # register -> loads that its value comes from
    found: set[int] = set()
    for _ in range(2):
        for position, instruction in enumerate(instructions):
            results, addresses, operands = _registers(instruction)
            for register in addresses:
                found |= followed.get(register, frozenset())
            if addresses:
                came_from = frozenset({position})
            else:
                came_from = frozenset().union(*(followed.get(register, frozenset()) for register in operands))
            for register in results:
                followed[register] = came_from
    return found


def _registers(instruction: Instruction) -> tuple[list[str], list[str], list[str]]:
    """Returns the registers that an instruction writes, those that address what it loads, and the others it reads."""
    opcode, operands = instruction.opcode, instruction.operands
    if opcode.startswith(("ld.global", "cp.async.c")):
        addressed = _PTX_ADDRESS.findall(operands)
        addresses = _PTX_REGISTER.findall(addressed[-1]) if addressed else []
        return _PTX_REGISTER.findall(operands.split("[", 1)[0]), addresses, []
    if "%" in operands:
        written, _, read = operands.partition("," if not operands.startswith("{") else "}")
        return _PTX_REGISTER.findall(written), [], _PTX_REGISTER.findall(read)
    parts = operands.split(", ")
    loads = bool(_AMD_LOAD.match(opcode))
    if loads and ("lds" in opcode or operands.endswith(" lds")):
        return [], list(_expanded(operands)), []
    if _AMD_WITHOUT_RESULT.match(opcode):
        return [], [], []
    count = 2 if opcode.startswith(_TWO_RESULTS) else 1
    results, others = list(_expanded(", ".join(parts[:count]))), list(_expanded(", ".join(parts[count:])))
    return (results, others, []) if loads else (results, [], others)


def _expanded(operands: str) -> Iterator[str]:
    """Yields the registers in operands of AMDGCN, ranges one by one."""
    for kind, first, last, single in _AMD_REGISTER.findall(operands):
        numbers = [single] if single else range(int(first), int(last) + 1)
        yield from (f"{kind}{number}" for number in numbers)
