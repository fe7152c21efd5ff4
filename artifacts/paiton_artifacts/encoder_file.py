"""The encoder file: a byte-level BPE tokenizer in the form in which it runs (artifacts/FORMAT.md, "Encoder").

It is read where it lies, by the host library (native/encoder.c), which bounds everything in it; this module writes it,
and reads what Python needs of it: the texts of tokens, and which of them were added.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from paiton_artifacts.errors import VerificationError
from paiton_artifacts.record import dataclass

MAGIC = b"PAITONEN"
VERSION = 1

CHARACTERS = 0x110000
PAGE = 256
"""Characters whose classes lie together."""

MAX_CLASSES = 64
NO_CLASS = 255
"""Of characters that the file does not cover: texts with one are left to the tokenizers library."""

NO_TOKEN = 0xFFFF_FFFF
NO_LIMIT = 0xFFFF_FFFF
"""Of an item that takes as many characters as there are."""

WHOLE_WORDS = 1
"""Flag of the file: a word that is a token is not merged from bytes."""

SPECIAL, SECOND_PASS = 1, 2
"""Flags of an added token: it is no text; it is looked for in what the others leave."""

_HEADER = struct.Struct("<8s10IQQ")
_ITEM = struct.Struct("<QIIII")
_PAIR = struct.Struct("<II")
_MERGE = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class Item:
    """A step of a pattern: `least` to `most` characters of some classes, as many as possible; or a lookahead.

    Attributes:
        classes: bit c stands for class c.
        least: characters.
        most: likewise, or NO_LIMIT.
        lookahead: takes nothing, and fails where a character of the classes comes next.
    """

    classes: int
    least: int = 1
    most: int = 1
    lookahead: bool = False


@dataclass(frozen=True, slots=True)
class Merge:
    """Two adjacent tokens that become one; of several merges the one of the lowest rank comes first."""

    left: int
    right: int
    rank: int
    token: int


@dataclass(frozen=True, slots=True)
class EncoderFile:
    """What an encoder file holds.

    Attributes:
        stages: patterns that cut a text, each applied to the pieces of the one before: alternatives of items.
        classes: of every character, CHARACTERS bytes.
        byte_tokens: the token of every byte, or NO_TOKEN.
        texts: of every token, in bytes.
        merges: no two of the same pair.
        words: tokens that a word may be as a whole, where whole words come before merges; else none.
        added: flags by token.
    """

    stages: Sequence[Sequence[Sequence[Item]]]
    classes: bytes
    byte_tokens: Sequence[int]
    texts: Sequence[bytes]
    merges: Sequence[Merge]
    words: Sequence[int]
    added: dict[int, int]

    def pack(self) -> bytes:
        """Returns the file's bytes."""
        alternatives = [alternative for stage in self.stages for alternative in stage]
        items = [item for alternative in alternatives for item in alternative]
        pages, classes = _pages(self.classes)
        merges = sorted(self.merges, key=lambda merge: (merge.left, merge.right))
        added = sorted(self.added, key=self.texts.__getitem__)
        text = b"".join(self.texts)
        flags = WHOLE_WORDS if self.words else 0
        patterns = (len(self.stages), len(alternatives), len(items))
        counts = (len(merges), len(self.words), len(added), len(classes) // PAGE, *patterns)
        sections = (
            _HEADER.pack(MAGIC, VERSION, flags, len(self.texts), *counts, len(text), 0),
            b"".join(_ITEM.pack(i.classes, i.least, i.most, i.lookahead, 0) for i in items),
            _runs(alternatives),
            _runs(self.stages),
            struct.pack(f"<{len(pages)}H", *pages),
            classes,
            _words(self.byte_tokens),
            _words(_starts(len(text) for text in self.texts)),
            _words(_merge_starts(merges, len(self.texts))),
            b"".join(_MERGE.pack(m.right, m.rank, m.token) for m in merges),
            _words(sorted(self.words, key=self.texts.__getitem__)),
            b"".join(_PAIR.pack(token, self.added[token]) for token in added),
            text,
        )
        return b"".join(section + bytes(-len(section) % 8) for section in sections)


def _pages(classes: bytes) -> tuple[list[int], bytes]:
    """Returns the number of each page of characters, and the pages, none of them twice."""
    numbers: dict[bytes, int] = {}
    pages = [classes[start : start + PAGE] for start in range(0, CHARACTERS, PAGE)]
    return [numbers.setdefault(page, len(numbers)) for page in pages], b"".join(numbers)


def _runs(lists: Sequence[Sequence[object]]) -> bytes:
    starts = _starts(map(len, lists))
    return b"".join(_PAIR.pack(start, len(entries)) for start, entries in zip(starts, lists, strict=False))


def _starts(sizes: Iterator[int]) -> list[int]:
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return starts


def _merge_starts(merges: Sequence[Merge], tokens: int) -> list[int]:
    counts = [0] * tokens
    for merge in merges:
        counts[merge.left] += 1
    return _starts(iter(counts))


def _words(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


class EncoderTexts:
    """The tokens of an encoder file: what each of them stands for, and which of them were added.

    Args:
        data: the file's bytes; those of other sections are the host library's to check.
        what: names the file in messages.

    Attributes:
        added: flags by token.

    Raises:
        VerificationError: it is not an encoder file, or a section does not fit.
    """

    def __init__(self, data: bytes, what: str) -> None:
        if len(data) < _HEADER.size or data[:8] != MAGIC:
            raise malformed(what)
        (_, version, _, tokens, merges, words, added, pages, stages, alternatives, items, size, _) = (
            _HEADER.unpack_from(data)
        )
        if version != VERSION:
            raise malformed(what)
        sections = [_HEADER.size, items * _ITEM.size, alternatives * 8, stages * 8, CHARACTERS // PAGE * 2]
        sections += [pages * PAGE, 256 * 4]
        starts = sum(map(_padded, sections))
        texts = starts + 2 * _padded((tokens + 1) * 4) + _padded(merges * _MERGE.size) + _padded(words * 4)
        end = texts + _padded(added * 8)
        if end + _padded(size) != len(data):
            raise malformed(what)
        self._starts = memoryview(data)[starts : starts + (tokens + 1) * 4].cast("I")
        self._texts = memoryview(data)[end : end + size]
        self._tokens = tokens
        self.added = dict(_PAIR.iter_unpack(memoryview(data)[texts : texts + added * 8]))

    def text(self, token: int) -> bytes:
        """Returns what a token stands for; nothing for those that do not exist."""
        if not 0 <= token < self._tokens:
            return b""
        return bytes(self._texts[self._starts[token] : self._starts[token + 1]])


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def malformed(what: str) -> VerificationError:
    """Returns the error for a file that is none."""
    return VerificationError(f"{what}: not an encoder file that this version reads", hint="build the bundle again")
