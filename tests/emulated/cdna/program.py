"""A kernel's assembly text as a program: metadata, instructions, decoded once for all launches."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from tests.emulated.cdna.definedness import Flow, flows_of
from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.global_memory import decode_memory, decode_scalar_load
from tests.emulated.cdna.instruction import Action, Instruction, Layout
from tests.emulated.cdna.operands import split_instruction
from tests.emulated.cdna.scalar_alu import decode_scalar
from tests.emulated.cdna.shared_memory import decode_shared
from tests.emulated.cdna.vector_alu import decode_vector, plain_name
from tests.emulated.cdna.waves import SCALARS, SCC

ARCHITECTURES: Final = ("gfx942", "gfx950")
_DIRECTIVE: Final = re.compile(r"^\s*\.amdhsa_(\w+)\s+(\S+)", re.MULTILINE)
_COMMENT: Final = re.compile(r";|//")
_LABEL: Final = re.compile(r"([.\w$]+):")
_REGISTER_GRANULE: Final = 8

Step = tuple[Action, int, int, tuple[Flow, ...]]
"""What an instruction does, bit masks of the registers that it reads and writes, and how undefinedness passes."""


class Program:
    """One kernel of an assembly text.

    Attributes:
        name: of the kernel.
        arch: ``gfx942`` or ``gfx950``.
        metadata: the kernel descriptor's directives, without their ``.amdhsa_``.
        texts: the instructions.
        steps: the decoded instructions; None where none has been executed yet.
        layout: of the vector registers, and the labels.
    """

    def __init__(self, assembly: str, arch: str) -> None:
        if arch not in ARCHITECTURES:
            raise EmulationError(f"unknown architecture {arch}; known: {', '.join(ARCHITECTURES)}")
        self.arch = arch
        self.metadata = {match[1]: match[2] for match in _DIRECTIVE.finditer(assembly)}
        if "kernel" not in self.metadata:
            raise EmulationError("the assembly holds no kernel descriptor (.amdhsa_kernel)")
        self.name = self.metadata["kernel"]
        self.texts: list[str] = []
        labels = self._read_body(assembly)
        accumulators = self.number("accum_offset", 256)
        rows = max(self.number("next_free_vgpr", 256), accumulators if "accum_offset" in self.metadata else 0)
        rows = -(-rows // _REGISTER_GRANULE) * _REGISTER_GRANULE
        self.layout = Layout(arch, accumulators, rows, labels)
        self.steps: list[Step | None] = [None] * len(self.texts)
        self._polls: dict[tuple[int, int], bool] = {}

    def number(self, directive: str, default: int = 0) -> int:
        """Returns a directive of the kernel descriptor."""
        return int(self.metadata.get(directive, default))

    def _read_body(self, assembly: str) -> dict[str, int]:
        start = re.search(rf"^{re.escape(self.name)}:", assembly, re.MULTILINE)
        if not start:
            raise EmulationError(f"the assembly has no label {self.name}")
        body = assembly[start.end() :]
        end = re.search(r"^\.Lfunc_end", body, re.MULTILINE)
        labels: dict[str, int] = {}
        for line in body[: end.start() if end else None].splitlines():
            text = _COMMENT.split(line, maxsplit=1)[0].strip()
            label = _LABEL.fullmatch(text)
            if label:
                labels[label[1]] = len(self.texts)
            elif text and not text.startswith("."):
                self.texts.append(" ".join(text.split()))
        return labels

    def decode(self, pc: int) -> Step:
        """Decodes an instruction.

        Raises:
            EmulationError: it is not known; the message names it.
        """
        try:
            step = _decode(self.texts[pc], self.layout)
        except EmulationError as error:
            raise EmulationError(f"{self.where(pc)}: {error}") from None
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise EmulationError(f"{self.where(pc)}: not understood ({type(error).__name__}: {error})") from error
        self.steps[pc] = step
        return step

    def polls(self, start: int, end: int) -> bool:
        """Returns whether one of the instructions from `start` to before `end` is atomic."""
        if (start, end) not in self._polls:
            self._polls[start, end] = any("_atomic_" in text for text in self.texts[start:end])
        return self._polls[start, end]

    def where(self, pc: int) -> str:
        """Names an instruction."""
        return f"{self.name}+{pc}: {self.texts[pc]!r}"

    def names_of(self, registers: int) -> str:
        """Names the registers of a bit mask."""
        names: list[str] = []
        for bit in range(registers.bit_length()):
            if not registers >> bit & 1:
                continue
            row = bit - SCALARS
            if bit == SCC:
                names.append("scc")
            elif row < 0:
                names.append(f"s{bit}")
            elif row >= self.layout.accumulators:
                names.append(f"a{row - self.layout.accumulators}")
            else:
                names.append(f"v{row}")
        return ", ".join(names)


def _decode(text: str, layout: Layout) -> Step:
    mnemonic, operands, modifiers = split_instruction(text)
    if mnemonic.startswith("s_"):
        instruction = Instruction(mnemonic, operands, modifiers, layout)
        if "load_dword" in mnemonic:
            action = decode_scalar_load(instruction)
        else:
            action = decode_scalar(instruction)
            if mnemonic.startswith("s_waitcnt"):  # its counters look like modifiers
                return action, 0, 0, ()
    elif mnemonic.startswith("v_"):
        instruction = Instruction(plain_name(mnemonic), operands, modifiers, layout)
        action = decode_vector(instruction)
    elif mnemonic.startswith("ds_"):
        instruction = Instruction(mnemonic, operands, modifiers, layout)
        action = decode_shared(instruction)
    else:
        instruction = Instruction(mnemonic, operands, modifiers, layout)
        action = decode_memory(instruction)
    instruction.finish()
    flows = flows_of(instruction)
    return action, instruction.reads, instruction.writes, flows


@lru_cache(maxsize=128)
def program_of(assembly: str, arch: str) -> Program:
    """Returns the program of an assembly text; launches of the same text share its decoded instructions."""
    return Program(assembly, arch)
