"""What ``route`` leaves for the launches of the experts: the entries of a step, ordered by expert.

An *entry* is a token and one of its TOP_K experts; token t and its j-th expert are entry t * TOP_K + j. The list of a
step is i32:

    0               entries of the step: tokens * TOP_K
    1 .. HEADER - 1 zeros
    HEADER + e      end of expert e's entries in the order, exclusive; they begin where those of expert e - 1 end; for
                    experts up to the next multiple of 4 too, which have none
    order_start()   the order: entries by expert, those of one expert by token

Every launch over the experts cuts the entries of each into tiles of its own height: the list says nothing about tiles.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from paiton_kernels.experts import in_order
from paiton_kernels.gpu.spec import Constant
from paiton_kernels.route import check_choice

HEADER = tl.constexpr(4)


@triton.constexpr_function
def order_start(experts):
    """Returns the word at which the order begins."""
    return 4 + -(-experts // 4) * 4


@triton.constexpr_function
def width_of(experts):
    """Returns the elements of a vector with a place for every expert: a power of two that fills a matrix tile."""
    return max(16, triton.next_power_of_2(experts))


def list_bytes(experts: int, entries: int) -> int:
    """Returns the bytes of the list of a step with so many entries."""
    return 4 * (int(order_start(experts)) + entries)


def list_of(chosen: NDArray[np.int32], experts: int) -> NDArray[np.int32]:
    """Returns the list of a step whose tokens have chosen these experts, i32[T][TOP_K]."""
    times = np.bincount(chosen.ravel(), minlength=int(order_start(experts)) - int(HEADER.value))
    return np.concatenate([[chosen.size, 0, 0, 0], np.cumsum(times), in_order(chosen)]).astype(np.int32)


def check_routes(values: Mapping[str, Constant]) -> str:
    """Returns why tokens cannot be routed like this, or ""."""
    return check_choice({name: int(values[name]) for name in ("EXPERTS", "TOP_K")})


@triton.jit
def extents(routes, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Returns, for every expert, where its entries begin and end in the order, its first tile, and its tiles: i32."""
    expert = tl.arange(0, width_of(EXPERTS))
    known = expert < EXPERTS
    end = tl.load(routes + HEADER + expert, mask=known, other=0)
    start = tl.load(routes + (HEADER - 1 + expert), mask=known, other=0)
    tiles = (end - start + BLOCK_M - 1) // BLOCK_M
    return start, end, tl.cumsum(tiles, 0) - tiles, tiles


@triton.jit
def write_extents(routes, end, tokens, EXPERTS: tl.constexpr, TOP_K: tl.constexpr):
    """Writes the list up to the order: the number of entries, and where those of every expert end, i32[width]."""
    word = tl.arange(0, HEADER)
    tl.store(routes + word, tl.where(word == 0, tokens * TOP_K, 0))
    place = HEADER + tl.arange(0, width_of(EXPERTS))
    tl.store(routes + place, end, mask=place < order_start(EXPERTS))


@triton.jit
def write_order(routes, slot, start, first, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, TILE: tl.constexpr):
    """Writes the entries of a tile of tokens to their places in the order.

    Args:
        routes: the list.
        slot: i32[TILE][width]: which of a token's experts each is, -1 for none.
        start: i32[width]: place of the tile's first entry of every expert.
        first: the tile's first token.
    """
    chosen = slot >= 0
    one = chosen.to(tl.int32)
    place = start[None, :] + tl.cumsum(one, 0) - one
    entry = (first + tl.arange(0, TILE))[:, None] * TOP_K + slot
    tl.store(routes + order_start(EXPERTS) + place, entry, mask=chosen)
