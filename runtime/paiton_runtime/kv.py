"""KV blocks: a pool that hands them out, and the sequence of tokens whose keys and values some of them hold."""

from __future__ import annotations

from collections.abc import Sequence

from paiton_artifacts.errors import OutOfMemoryError


class BlockPool:
    """The free blocks of a KV cache, numbered 0 .. blocks - 1; lowest first, so that little memory is touched."""

    def __init__(self, blocks: int) -> None:
        self._free = list(range(blocks - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Returns `count` blocks.

        Raises:
            OutOfMemoryError: fewer are free; none is taken then.
        """
        if count > len(self._free):
            raise OutOfMemoryError(
                f"{count} KV blocks are needed and {len(self._free)} are free", hint="raise --kv-tokens"
            )
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: Sequence[int]) -> None:
        """Returns blocks to the pool."""
        self._free += reversed(blocks)


class CachedSequence:
    """The tokens of one request whose keys and values lie in blocks of a pool.

    Attributes:
        tokens: by position; a step may have written further positions, which are then garbage.
        blocks: cover at least these tokens.
    """

    def __init__(self, pool: BlockPool, block_tokens: int) -> None:
        self.tokens: list[int] = []
        self.blocks: list[int] = []
        self._pool = pool
        self._block_tokens = block_tokens

    def reserve(self, length: int) -> None:
        """Takes the blocks that `length` tokens need in all.

        Raises:
            OutOfMemoryError: the pool has too few.
        """
        needed = -(-length // self._block_tokens) - len(self.blocks)
        if needed > 0:
            self.blocks += self._pool.take(needed)

    def keep_prefix(self, wanted: Sequence[int]) -> int:
        """Forgets what does not begin `wanted`, and returns how many tokens are kept.

        One token of `wanted` at least is left to compute: its logits are what a request is for.
        """
        kept = 0
        for cached, token in zip(self.tokens, wanted[:-1], strict=False):
            if cached != token:
                break
            kept += 1
        self.truncate(kept)
        return kept

    def truncate(self, length: int) -> None:
        """Forgets the tokens from `length` on, and gives their blocks back."""
        del self.tokens[length:]
        needed = -(-len(self.tokens) // self._block_tokens)
        self._pool.give_back(self.blocks[needed:])
        del self.blocks[needed:]
