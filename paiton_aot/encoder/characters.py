"""Sets of characters, as the tokenizers library's regular expressions see them.

Every set begins with a question to the library itself, so that its Unicode version is the one that counts.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, pre_tokenizers

from paiton_artifacts.encoder_file import CHARACTERS

Set: TypeAlias = npt.NDArray[np.bool_]
"""Which characters: bool[CHARACTERS]."""

_SURROGATES = range(0xD800, 0xE000)
_RANGES = (range(0xD800), range(0xE000, 0x33480), range(0xE0000, 0xE0200))
"""Planes 0 to 3 up to the last ideograph, and plane 14's tags. What lies beyond is unassigned or for private use."""

_LATER_SYMBOLS = range(0x1F000, 0x1FB00)
"""Blocks from "Mahjong Tiles" to "Symbols and Pictographs Extended-A"."""

_HANGUL_TAILS = (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))
"""Vowels and final consonants that compose with what comes before: The Unicode Standard, section 3.12."""


@functools.cache
def known() -> Set:
    """Returns the characters that the library is asked about; the others are in no class."""
    found = np.zeros(CHARACTERS, np.bool_)
    for part in _RANGES:
        found[part.start : part.stop] = True
    return found


@functools.cache
def _text() -> str:
    """All known characters."""
    return "".join(chr(character) for part in _RANGES for character in part)


@functools.cache
def matching(pattern: str) -> Set:
    """Returns the known characters that a regular expression for one character matches."""
    rest = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed").pre_tokenize_str(_text())
    inside = np.ones(len(_text()), np.bool_)
    for _, (start, end) in rest:
        inside[start:end] = False
    found = np.zeros(CHARACTERS, np.bool_)
    found[known()] = inside
    return found


@functools.cache
def numeric() -> Set:
    """Returns the known characters that the pre-tokenizer "Digits" cuts off."""
    text = "a" + "a".join(_text()) + "a"
    found = np.zeros(len(_text()), np.bool_)
    for _, (start, end) in pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str(text):
        if end - start == 1 and start % 2:
            found[start // 2] = True
    whole = np.zeros(CHARACTERS, np.bool_)
    whole[known()] = found
    return whole


def of(*characters: int) -> Set:
    """Returns a set of single characters."""
    found = np.zeros(CHARACTERS, np.bool_)
    found[list(characters)] = True
    return found


@functools.cache
def inert() -> Set:
    """Returns the characters that normalisation to NFC leaves alone wherever they are.

    They have no canonical decomposition, the combining class 0, and compose with nothing before them. Unicode promises
    never to change that for a character that is assigned: so those count that were in Unicode 3.2, which every Python
    knows, and later symbols such as emoji, which have nothing to do with normalisation in any version.
    """
    old = unicodedata.ucd_3_2_0
    composing = {chr(tail) for tail in _HANGUL_TAILS}
    for character in _text():
        parts = old.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            composing.add(chr(int(parts[1], 16)))
    found = np.zeros(CHARACTERS, np.bool_)
    for character in _text():
        found[ord(character)] = (
            old.category(character) != "Cn"
            and not old.combining(character)
            and old.normalize("NFC", character) == character
            and character not in composing
        )
    found[_LATER_SYMBOLS.start : _LATER_SYMBOLS.stop] = True
    return found
