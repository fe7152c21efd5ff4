"""Assembly text as a control flow graph, and its innermost loops: where a kernel spends its time.

AMDGCN and PTX differ in syntax only: instructions one a line, labels, branches to labels. Blocks of a loop need not be
neighbours in the text, so loops are found by back edges: branches to a block that dominates the branch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LABEL = re.compile(r"^\s*(\$?[.\w]*L[\w.$]*BB\w+):")
_INSTRUCTION = re.compile(r"^\s+(?:@!?%\w+\s+)?([a-z]\w*[\w.:]*)\s*([^;]*)")
_PREDICATED = re.compile(r"^\s+@")
_TARGET = re.compile(r"(\$?[.\w]*L[\w.$]*BB\w+)")
_ENDS = ("s_endpgm", "s_setpc_b64", "ret", "exit", "trap")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: with all its suffixes.
        operands: the rest of the line, without comments.
    """

    opcode: str
    operands: str


@dataclass(slots=True)
class _Block:
    instructions: list[Instruction]
    targets: list[str]
    falls_through: bool


def instructions_of(blocks: Sequence[Sequence[Instruction]]) -> list[Instruction]:
    """Returns the instructions of blocks, in order."""
    return [instruction for block in blocks for instruction in block]


def basic_blocks(assembly: str) -> tuple[list[list[Instruction]], list[list[int]]]:
    """Returns the basic blocks of a kernel's assembly text, and for each the numbers of its successors."""
    blocks = [_Block([], [], falls_through=True)]
    starts: dict[str, int] = {}
    for line in assembly.splitlines():
        text = line.split("//", 1)[0].split(" ;", 1)[0].split("\t;", 1)[0]
        if label := _LABEL.match(text):
            if blocks[-1].instructions:
                blocks.append(_Block([], [], falls_through=True))
            starts[label[1]] = len(blocks) - 1
            continue
        found = _INSTRUCTION.match(text)
        if not found or text.lstrip().startswith("."):
            continue
        opcode, operands = found[1], found[2].strip()
        block = blocks[-1]
        block.instructions.append(Instruction(opcode, operands))
        branches = opcode.startswith(("s_cbranch", "s_branch")) or opcode.split(".")[0] == "bra"
        ends = opcode.rstrip(";").split(".")[0] in _ENDS
        if branches and (target := _TARGET.search(operands)):
            block.targets.append(target[1])
            block.falls_through = opcode.startswith("s_cbranch") or bool(_PREDICATED.match(text))
        elif ends:
            block.falls_through = bool(_PREDICATED.match(text))
        else:
            continue  # also branches within inline assembly, to labels of its own: waits, not loops of the kernel
        blocks.append(_Block([], [], falls_through=True))
    successors = []
    for number, block in enumerate(blocks):
        after = [number + 1] if block.falls_through and number + 1 < len(blocks) else []
        successors.append([starts[target] for target in block.targets if target in starts] + after)
    return [block.instructions for block in blocks], successors


def innermost_loops(successors: Sequence[Sequence[int]]) -> list[list[int]]:
    """Returns the blocks of each loop that holds no other loop, in the order of the loops' first blocks."""
    dominators = _dominators(successors)
    bodies: dict[int, set[int]] = {}
    predecessors: list[list[int]] = [[] for _ in successors]
    for block, following in enumerate(successors):
        for successor in following:
            predecessors[successor].append(block)
    for block, following in enumerate(successors):
        for header in following:
            if header in dominators[block]:
                body = bodies.setdefault(header, {header})
                _add_what_reaches(block, body, predecessors)
    loops = []
    for header, body in sorted(bodies.items()):
        if not any(other != header and other in body for other in bodies):
            loops.append(sorted(body))
    return loops


def _add_what_reaches(block: int, body: set[int], predecessors: Sequence[Sequence[int]]) -> None:
    waiting = [block]
    while waiting:
        current = waiting.pop()
        if current not in body:
            body.add(current)
            waiting += predecessors[current]


def _dominators(successors: Sequence[Sequence[int]]) -> list[set[int]]:
    """Returns for each block those that every path from the first block to it passes; none if it is unreachable."""
    reachable, waiting = {0}, [0]
    while waiting:
        for successor in successors[waiting.pop()]:
            if successor not in reachable:
                reachable.add(successor)
                waiting.append(successor)
    found = [set(reachable) if block in reachable else set() for block in range(len(successors))]
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in sorted(reachable - {0}):
            before = [found[other] for other in sorted(reachable) if block in successors[other]]
            now = set.intersection(*before) | {block}
            changed |= now != found[block]
            found[block] = now
    return found
