"""KV blocks with reference counts, and the prefix cache, which finds full blocks by the tokens up to their end."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

ROOT = b""
"""Key of what comes before the first block."""


def block_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Returns the key of a full block: SHA-256 of its tokens and the key of the block before it.

    Args:
        parent: that key, ROOT for the first block.
        tokens: ids of the block's positions.

    A collision would show one user's text to another, so the hash is a cryptographic one.
    """
    return hashlib.sha256(parent + array("i", tokens).tobytes()).digest()


class BlockManager:
    """Hands out the blocks of a KV cache; a block that nobody holds keeps its contents until it is taken again.

    Args:
        blocks: how many there are, numbered from 0.
        block_tokens: positions of a block.
        caching: find blocks again by their contents.
    """

    def __init__(self, blocks: int, block_tokens: int, *, caching: bool = True) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.caching = caching
        self._holders = [0] * blocks
        self._key_of: list[bytes | None] = [None] * blocks
        self._by_key: dict[bytes, int] = {}
        # Least recently used first; blocks without contents worth finding are put in front.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Blocks that can be found by their contents."""
        return len(self._by_key)

    def count_for(self, tokens: int) -> int:
        """Returns how many blocks hold this many tokens."""
        return -(-tokens // self.block_tokens)

    def take(self, count: int) -> list[int] | None:
        """Returns `count` blocks that nobody held, contents forgotten; None, and none taken, if fewer are free."""
        if count > len(self._free):
            return None
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
            if (key := self._key_of[block]) is not None:
                del self._by_key[key]
                self._key_of[block] = None
        return taken

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """Returns the blocks with these keys, up to the first that is not there; nobody holds them more than before."""
        found: list[int] = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def hold(self, blocks: Iterable[int]) -> None:
        """Adds a holder to each block, so that it stays what it is."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1

    def held(self, blocks: Iterable[int]) -> int:
        """Returns how many of these blocks somebody holds."""
        return sum(self._holders[block] > 0 for block in blocks)

    def give_back(self, blocks: Sequence[int]) -> None:
        """Takes a holder from each block. A sequence's end is forgotten before its beginning, which others share."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None
                if self._key_of[block] is None:
                    self._free.move_to_end(block, last=False)

    def remember(self, block: int, key: bytes) -> None:
        """Makes a full block that somebody holds findable; the first of several with the same contents stays so."""
        if self.caching and key not in self._by_key and self._key_of[block] is None:
            self._by_key[key] = block
            self._key_of[block] = key

    def clear(self) -> None:
        """Forgets all contents."""
        for block in self._by_key.values():
            self._key_of[block] = None
        self._by_key.clear()
