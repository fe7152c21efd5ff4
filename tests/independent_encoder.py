"""A second reader of encoder files, written from artifacts/FORMAT.md alone; slow, and sure of nothing but the text."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

ANY = 0xFFFFFFFF
Item = tuple[int, int, int, int, int]


class IndependentEncoder:
    """An encoder file as FORMAT.md describes it."""

    def __init__(self, data: bytes) -> None:
        magic, version, flags, *counts = struct.unpack_from("<8s10I", data)
        assert (magic, version) == (b"PAITONEN", 1)
        tokens, merges, words, added, pages, stages, alternatives, items = counts
        (text_bytes, zero) = struct.unpack_from("<QQ", data, 48)
        assert zero == 0
        self._data, self._at = data, 64
        self.whole_words = bool(flags & 1)
        self.items = self._section("QIIII", items)
        self.alternatives = self._section("II", alternatives)
        self.stages = self._section("II", stages)
        self.page_of = [number for (number,) in self._section("H", 4352)]
        self.pages = self._section("256s", pages)
        self.bytes = [token for (token,) in self._section("I", 256)]
        starts = [start for (start,) in self._section("I", tokens + 1)]
        firsts = [first for (first,) in self._section("I", tokens + 1)]
        entries = self._section("III", merges)
        self.merges = {
            (left, right): (rank, token)
            for left in range(tokens)
            for right, rank, token in entries[firsts[left] : firsts[left + 1]]
        }
        chosen = [token for (token,) in self._section("I", words)]
        flags_of = self._section("II", added)
        ((text,),) = self._section(f"{text_bytes}s", 1)
        assert self._at == len(data)
        self.texts = [text[start:end] for start, end in pairwise(starts)]
        self.words = {self.texts[token]: token for token in chosen}
        self.added = [{self.texts[t]: t for t, f in flags_of if bool(f & 2) == second} for second in (False, True)]

    def _section(self, entry: str, count: int) -> list[Any]:
        size = struct.calcsize(f"<{entry}") * count
        made = list(struct.iter_unpack(f"<{entry}", self._data[self._at : self._at + size]))
        padding = -size % 8
        assert not any(self._data[self._at + size : self._at + size + padding])
        self._at += size + padding
        return made

    def encode(self, text: str) -> list[int] | None:
        """Returns the tokens of a text, None for one that the file does not cover."""
        if any(self._class(character) == 255 for character in text):
            return None
        tokens: list[int] = []
        for piece in self._cut_added(text, 0):
            if isinstance(piece, int):
                tokens.append(piece)
                continue
            for word in self._cut(piece, 0):
                found = self._merge(word.encode())
                if found is None:
                    return None
                tokens += found
        return tokens

    def _class(self, character: str) -> int:
        page, at = divmod(ord(character), 256)
        value: int = self.pages[self.page_of[page]][0][at]
        return value

    def _cut_added(self, text: str, which: int) -> Iterator[str | int]:
        if which == 2:
            yield text
            return
        known, rest, at = self.added[which], 0, 0
        while at < len(text):
            found = [word for word in known if text[at:].encode().startswith(word)]
            if not found:
                at += 1
                continue
            longest = max(found, key=len)
            yield from self._cut_added(text[rest:at], which + 1)
            yield known[longest]
            rest = at = at + len(longest.decode())
        yield from self._cut_added(text[rest:], which + 1)

    def _cut(self, piece: str, stage: int) -> Iterator[str]:
        if not piece:
            return
        if stage == len(self.stages):
            yield piece
            return
        first, count = self.stages[stage]
        rest = at = 0
        while at < len(piece):
            ends = (self._match(piece, at, self.items[a : a + n]) for a, n in self.alternatives[first : first + count])
            end = next((end for end in ends if end is not None and end > at), None)
            if end is None:
                at += 1
                continue
            yield from self._cut(piece[rest:at], stage + 1)
            yield from self._cut(piece[at:end], stage + 1)
            rest = at = end
        yield from self._cut(piece[rest:], stage + 1)

    def _match(self, piece: str, at: int, items: list[Item]) -> int | None:
        if not items:
            return at
        classes, least, most, lookahead, _ = items[0]
        if lookahead:
            blocked = at < len(piece) and classes >> self._class(piece[at]) & 1
            return None if blocked else self._match(piece, at, items[1:])
        taken = 0
        while at + taken < len(piece) and taken < most and classes >> self._class(piece[at + taken]) & 1:
            taken += 1
        while taken >= least:
            end = self._match(piece, at + taken, items[1:])
            if end is not None:
                return end
            taken -= 1
        return None

    def _merge(self, word: bytes) -> list[int] | None:
        if self.whole_words and word in self.words:
            return [self.words[word]]
        tokens = [self.bytes[byte] for byte in word]
        if ANY in tokens:
            return None
        while True:
            found = enumerate(pairwise(tokens))
            pairs = [(self.merges[pair][0], at) for at, pair in found if pair in self.merges]
            if not pairs:
                return tokens
            _, at = min(pairs)
            tokens[at : at + 2] = [self.merges[tokens[at], tokens[at + 1]][1]]
