"""The block manager against a plain model of it: counts of holders, and a dictionary from contents to blocks."""

from __future__ import annotations

import hashlib
from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from paiton_runtime.engine.blocks import ROOT, BlockManager, block_key

BLOCKS = 7


class Blocks(RuleBasedStateMachine):
    """Takes, shares, remembers, finds and gives back at random."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(BLOCKS, 4)
        self.holders = [0] * BLOCKS
        self.contents: dict[bytes, int] = {}

    @rule(target=held, count=st.integers(0, BLOCKS))
    def take(self, count: int) -> object:
        """Takes blocks, if so many are free."""
        taken = self.manager.take(count)
        if taken is None:
            assert count > self.holders.count(0)
            return multiple()
        assert len(set(taken)) == count
        for block in taken:
            assert self.holders[block] == 0
            self.holders[block] = 1
        self.contents = {key: block for key, block in self.contents.items() if block not in taken}
        return taken

    @rule(blocks=consumes(held))
    def give_back(self, blocks: list[int]) -> None:
        """Gives back what was held."""
        self.manager.give_back(blocks)
        for block in blocks:
            self.holders[block] -= 1

    @rule(blocks=held, key=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def remember(self, blocks: list[int], key: bytes) -> None:
        """Names a block's contents, unless they or the block have a name."""
        for block in blocks[:1]:
            self.manager.remember(block, key)
            if key not in self.contents and block not in self.contents.values():
                self.contents[key] = block

    @rule(target=held, keys=st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), unique=True))
    def share(self, keys: list[bytes]) -> list[int]:
        """Holds what is found."""
        found = self.manager.find(keys)
        expected = []
        for key in keys:
            if key not in self.contents:
                break
            expected.append(self.contents[key])
        assert found == expected
        assert self.manager.held(found) == sum(self.holders[block] > 0 for block in found)
        self.manager.hold(found)
        for block in found:
            self.holders[block] += 1
        return found

    @invariant()
    def counts_agree(self) -> None:
        """The manager counts as the model does."""
        assert self.manager.free == self.holders.count(0)
        assert self.manager.cached == len(self.contents)


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


def test_the_least_recently_used_contents_go_first() -> None:
    manager = BlockManager(3, 4)
    for key in (b"old", b"middle", b"new"):
        block = (manager.take(1) or [])[0]
        manager.remember(block, key)
        manager.give_back([block])
        # The next one shall not take this block while another has no contents.
    manager.take(1)
    assert [len(manager.find([key])) for key in (b"old", b"middle", b"new")] == [0, 1, 1]


def test_the_end_of_a_sequence_is_forgotten_before_its_beginning() -> None:
    manager = BlockManager(3, 4)
    blocks = manager.take(3) or []
    for block, key in zip(blocks, (b"0", b"1", b"2"), strict=True):
        manager.remember(block, key)
    manager.give_back(blocks)
    manager.take(2)
    assert manager.find([b"0", b"1", b"2"]) == [blocks[0]]


def test_without_caching_nothing_is_found() -> None:
    manager = BlockManager(2, 4, caching=False)
    block = (manager.take(1) or [])[0]
    manager.remember(block, b"key")
    assert manager.find([b"key"]) == []


@pytest.mark.parametrize(("parent", "tokens"), [(ROOT, [1, 2, 3, 4]), (b"x" * 32, [49151, 0, 7, 7])])
def test_a_key_is_the_digest_of_the_parent_and_little_endian_ids(parent: bytes, tokens: list[int]) -> None:
    ids = b"".join(token.to_bytes(4, "little") for token in tokens)
    assert block_key(parent, tokens) == hashlib.sha256(parent + ids).digest()
    assert array("i").itemsize == 4
