"""Reads the text of an instruction: mnemonic, operands, modifiers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.waves import EXEC, FLAT_SCRATCH, M0, TTMP, VCC

Modifier = bool | int | str | tuple[int, ...]

_REGISTER: Final = re.compile(r"([vsa]|ttmp)(?:(\d+)|\[(\d+):(\d+)\])")
_INTEGER: Final = re.compile(r"-?(?:0x[0-9a-fA-F]+|\d+)")
_REAL: Final = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?")
_BETWEEN_OPERANDS: Final = re.compile(r",\s*(?![^\[(]*[\])])")
_WORDS: Final = re.compile(r"(?:[^\s\[(|]|\[[^\]]*\]|\([^)]*\)|\|[^|]*\|)+")
_NEGATED: Final = re.compile(r"-(?=[vsa|])")
_KINDS: Final = {"v": "vector", "a": "accumulator", "s": "scalar", "ttmp": "scalar"}
_SPECIAL: Final = {
    "vcc": (VCC, 2),
    "vcc_lo": (VCC, 1),
    "vcc_hi": (VCC + 1, 1),
    "exec": (EXEC, 2),
    "exec_lo": (EXEC, 1),
    "exec_hi": (EXEC + 1, 1),
    "m0": (M0, 1),
    "flat_scratch": (FLAT_SCRATCH, 2),
    "flat_scratch_lo": (FLAT_SCRATCH, 1),
    "flat_scratch_hi": (FLAT_SCRATCH + 1, 1),
}


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand.

    Attributes:
        text: as written.
        kind: ``vector``, ``accumulator``, ``scalar``, ``integer``, ``real``, ``off`` or ``symbol``.
        index: number of the first register.
        count: registers.
        integer: value of an ``integer``.
        real: value of a ``real``.
        negate: a minus sign or ``neg()`` stands before it.
        absolute: it stands between bars or in ``abs()``.
        sign_extend: it stands in ``sext()``.
    """

    text: str
    kind: str
    index: int = 0
    count: int = 1
    integer: int = 0
    real: float = 0.0
    negate: bool = False
    absolute: bool = False
    sign_extend: bool = False

    @property
    def is_constant(self) -> bool:
        """Whether the value is part of the instruction."""
        return self.kind in ("integer", "real")

    @property
    def is_vector(self) -> bool:
        """Whether it is a vector or accumulation register."""
        return self.kind in ("vector", "accumulator")

    @property
    def is_literal(self) -> bool:
        """Whether it is an integer that does not fit the inline constants -16..64, so is 32 bits wide."""
        return self.kind == "integer" and not -16 <= self.integer <= 64

    def part(self, offset: int, count: int = 1) -> Operand:
        """Returns some of the registers."""
        return replace(self, index=self.index + offset, count=count)


@lru_cache(maxsize=1 << 14)
def parse_operand(text: str) -> Operand:
    """Parses one operand; what is not understood becomes a ``symbol``, which no reader accepts."""
    negate = absolute = sign_extend = False
    bare = text
    if _NEGATED.match(bare):
        negate, bare = True, bare[1:]
    for prefix in ("neg(", "abs(", "sext(", "|"):
        if bare.startswith(prefix):
            negate |= prefix == "neg("
            absolute |= prefix in ("abs(", "|")
            sign_extend |= prefix == "sext("
            bare = bare[len(prefix) : -1]
    operand = _parse_bare(bare)
    return replace(operand, text=text, negate=negate, absolute=absolute, sign_extend=sign_extend)


def _parse_bare(text: str) -> Operand:
    register = _REGISTER.fullmatch(text)
    if register:
        first = int(register[2] or register[3])
        count = int(register[4]) - first + 1 if register[4] else 1
        return Operand(text, _KINDS[register[1]], first + (TTMP if register[1] == "ttmp" else 0), count)
    if text in _SPECIAL:
        index, count = _SPECIAL[text]
        return Operand(text, "scalar", index, count)
    if text in ("off", "null"):
        return Operand(text, "off")
    if _INTEGER.fullmatch(text):
        return Operand(text, "integer", integer=int(text, 0))
    if _REAL.fullmatch(text):
        return Operand(text, "real", real=float(text))
    return Operand(text, "symbol")


def split_instruction(text: str) -> tuple[str, tuple[Operand, ...], dict[str, Modifier]]:
    """Splits an instruction into its mnemonic, its operands and its modifiers."""
    mnemonic, _, rest = text.partition(" ")
    parts = _BETWEEN_OPERANDS.split(rest.strip())
    *_, last = parts
    words = _WORDS.findall(last) if "(" in last or "|" in last else last.split()
    parts[-1:] = words[:1]
    modifiers = dict(_parse_modifier(word) for word in words[1:])
    return mnemonic, tuple(parse_operand(part) for part in parts), modifiers


def _parse_modifier(word: str) -> tuple[str, Modifier]:
    name, colon, value = word.partition(":")
    if not colon:
        return name, True
    if value.startswith("["):
        return name, tuple(int(number) for number in value[1:-1].split(","))
    if _INTEGER.fullmatch(value):
        return name, int(value, 0)
    return name, value


def signed16(operand: Operand) -> int:
    """Returns the 16-bit immediate of a scalar instruction, sign-extended.

    Raises:
        EmulationError: the operand is no integer.
    """
    if operand.kind != "integer":
        raise EmulationError(f"{operand.text} is no 16-bit constant")
    return ((operand.integer & 0xFFFF) ^ 0x8000) - 0x8000
