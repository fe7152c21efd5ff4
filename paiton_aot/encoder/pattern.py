"""Regular expressions of pre-tokenizers as alternatives of steps, each of which takes characters of one set.

What is read is the part of Oniguruma's syntax that these expressions are written in: sets, characters, greedy
repetition, alternatives, `(?!...)` of one set, and a group of alternatives without case at the end of one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from paiton_aot.encoder.characters import Set, known, matching, of
from paiton_artifacts.encoder_file import MAX_CLASSES, NO_LIMIT

_ESCAPED = {"r": 0x0D, "n": 0x0A, "t": 0x09}
_PROPERTY = re.compile(r"\\[pP]\{[A-Za-z]+\}")
_REPEAT = re.compile(r"\{(\d{1,4})(,(\d{1,4})?)?\}")
_FOLDED_TOGETHER = ("ss", "st", "ff", "fi", "fl")
"""Letters that one character stands for where case does not count."""


class NotCoveredError(Exception):
    """A tokenizer has something that encoder files do not; says what."""


@dataclass(frozen=True, slots=True)
class Step:
    """`least` to `most` characters of a set, as many as possible; or a lookahead that none of them comes next."""

    members: Set
    least: int = 1
    most: int = 1
    lookahead: bool = False


Alternative = tuple[Step, ...]


def parse(pattern: str) -> list[Alternative]:
    """Returns the alternatives of a regular expression.

    Raises:
        NotCoveredError: it has other syntax, or matches nothing at all somewhere.
    """
    alternatives = list(_Parser(pattern).alternatives())
    if any(not any(step.least and not step.lookahead for step in alternative) for alternative in alternatives):
        raise NotCoveredError(f"the pattern {pattern!r}, which may match nothing")
    return alternatives


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def alternatives(self) -> Iterator[Alternative]:
        while True:
            yield from self._alternative()
            if self._at == len(self._pattern):
                return
            self._expect("|")

    def _alternative(self) -> list[Alternative]:
        """Returns one alternative, or several of the same beginning where a group ends it."""
        steps: list[Step] = []
        while self._peek() not in ("", "|"):
            if self._take("(?!"):
                steps.append(Step(self._set(), lookahead=True))
                self._expect(")")
            elif self._take("(?i:"):
                return self._group(tuple(steps))
            else:
                steps.append(self._repeated(self._set()))
        return [tuple(steps)]

    def _group(self, before: Alternative) -> list[Alternative]:
        # Only where what comes before takes a fixed number of characters is this the same as backtracking into it.
        if any(step.least != step.most for step in before):
            self._refuse()
        groups: list[Alternative] = []
        while True:
            start, steps = self._at, []
            while self._peek() not in ("", "|", ")"):
                steps.append(Step(self._without_case()))
            if any(pair in self._pattern[start : self._at].lower() for pair in _FOLDED_TOGETHER):
                self._refuse()
            groups.append(before + tuple(steps))
            if not self._take("|"):
                break
        self._expect(")")
        if self._peek() not in ("", "|"):
            self._refuse()
        return groups

    def _without_case(self) -> Set:
        if self._take("["):
            letters = self._pattern[self._at : self._pattern.find("]", self._at)]
            self._at += len(letters) + 1
        else:
            letters = self._next()
        if not letters or not all(letter == "'" or (letter.isascii() and letter.isalpha()) for letter in letters):
            self._refuse()
        return np.logical_or.reduce([matching(f"(?i:{letter})") for letter in letters])  # type: ignore[no-any-return]

    def _repeated(self, members: Set) -> Step:
        least, most = 1, 1
        if self._take("?"):
            least = 0
        elif self._take("*"):
            least, most = 0, NO_LIMIT
        elif self._take("+"):
            most = NO_LIMIT
        elif found := _REPEAT.match(self._pattern, self._at):
            self._at = found.end()
            least = int(found[1])
            most = least if found[2] is None else NO_LIMIT if found[3] is None else int(found[3])
        if self._peek() in ("?", "*", "+", "{") or least > most:  # lazy, possessive, or repeated twice
            self._refuse()
        return Step(members, least, most)

    def _set(self) -> Set:
        if self._take("["):
            return self._bracket()
        if self._peek() in tuple("()*+?{}]^$."):
            self._refuse()
        return self._one()

    def _one(self) -> Set:
        """Returns what an escape or a single character stands for."""
        if found := _PROPERTY.match(self._pattern, self._at):
            self._at = found.end()
            return matching(found[0])
        if not self._take("\\"):
            return of(ord(self._next()))
        letter = self._next()
        if letter in "sSdD":
            return matching("\\" + letter)
        if letter.isalnum() and letter not in _ESCAPED:
            self._refuse()
        return of(_ESCAPED.get(letter, ord(letter)))

    def _bracket(self) -> Set:
        inverted = self._take("^")
        members = of()
        while not self._take("]"):
            # Sets in sets and intersections, which other engines take for characters.
            if self._peek() in ("", "[") or self._pattern.startswith("&&", self._at):
                self._refuse()
            one = self._one()
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._one()
                if one.sum() != 1 or last.sum() != 1 or one.argmax() > last.argmax():
                    self._refuse()
                one = of(*range(int(one.argmax()), int(last.argmax()) + 1))
            members |= one
        return known() & ~members if inverted else members

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        letter = self._peek()
        if not letter:
            self._refuse()
        self._at += 1
        return letter

    def _take(self, word: str) -> bool:
        found = self._pattern.startswith(word, self._at)
        if found:
            self._at += len(word)
        return found

    def _expect(self, word: str) -> None:
        if not self._take(word):
            self._refuse()

    def _refuse(self) -> None:
        raise NotCoveredError(f"the pattern {self._pattern!r}, at character {self._at}")


def classes_of(stages: Sequence[Sequence[Alternative]]) -> list[Set]:
    """Divides the known characters into classes that no step of any pattern tells apart.

    Raises:
        NotCoveredError: there are too many.
    """
    steps = itertools.chain.from_iterable(itertools.chain.from_iterable(stages))
    distinct = {step.members.tobytes(): step.members for step in steps}
    if len(distinct) > MAX_CLASSES:
        raise NotCoveredError(f"patterns of {len(distinct)} sets of characters")
    keys = np.zeros(len(known()), np.uint64)
    for bit, members in enumerate(distinct.values()):
        keys |= members.astype(np.uint64) << np.uint64(bit)
    values = np.unique(keys[known()])
    if len(values) > MAX_CLASSES:
        raise NotCoveredError(f"patterns of {len(values)} classes of characters")
    return [(keys == value) & known() for value in values]
