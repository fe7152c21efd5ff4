"""The work list of ``attention``: how a step's queries and their histories are cut into items, and where things lie.

The query rows of one KV head are cut into *tiles* of BLOCK_Q rows: BLOCK_Q // group tokens of one request, each with
its group of Q_HEADS / KV_HEADS heads. The history that a tile attends to is cut into *splits*, ranges of positions. One
*entry* of the list is one split of one tile; with each of the KV heads it is one *item*, what programs take in turn.
Splits of a tile leave their partial results in *slots* of the workspace, one slot an item.

The list is i32: HEADER words (the first is the number of entries), then ENTRY words an entry:

    0  first token of the tile, in the batch        4  first position of the split
    1  tokens of the tile                           5  end of the split, exclusive
    2  request: row of the block tables             6  number of the split
    3  first slot of the tile, in entries           7  splits of the tile

All tiles of a request have entries for the same number of splits. A tile with a shorter history can have fewer; its
last entries are void: the number of the split is not below the splits of the tile.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from paiton_kernels.gpu.spec import Constant, Step

HEADER = tl.constexpr(8)
ENTRY = tl.constexpr(8)

FAN_IN = tl.constexpr(16)
"""Partial results that one program adds up. More splits than that are added up in two levels, so that no program reads
more than 2 * FAN_IN of them: a single compute unit reads slowly."""

MAX_SPLITS = tl.constexpr(256)
"""FAN_IN squared."""

CHOICES = tl.constexpr(128)
"""Lengths of a split that `schedule` chooses from: KV tiles, 8 to an octave, the longest first."""

ITEM_COST = tl.constexpr(128)
"""What an item costs besides its history (its queries, its output, latency), in positions. An estimate."""

PARTIAL_COST = tl.constexpr(32)
"""What adding up one partial result costs, in positions. An estimate."""


@triton.constexpr_function
def slots_of(programs: int, block_q: int) -> int:
    """Returns the slots of the workspace.

    Four for each program allow several rounds of small pieces in decode; tiles of more rows have larger slots and get
    fewer, one at least.
    """
    return programs * max(1, 64 // block_q)


def group_of(values: Mapping[str, Constant]) -> int:
    """Returns how many query heads share a KV head."""
    return int(values["Q_HEADS"]) // int(values["KV_HEADS"])


def max_tiles(values: Mapping[str, Constant], step: Step) -> int:
    """Returns the largest number of tiles in a step: the sum of ceil(tokens / tile) over requests."""
    tile = int(values["BLOCK_Q"]) // group_of(values)
    requests = min(step.requests, step.tokens)
    return (step.tokens + requests * (tile - 1)) // tile


def max_slots(values: Mapping[str, Constant], step: Step) -> int:
    """Returns the largest number of slots that a step's work list uses."""
    everything = max_tiles(values, step) * int(MAX_SPLITS.value) * int(values["KV_HEADS"])
    return min(int(slots_of(int(values["PROGRAMS"]), int(values["BLOCK_Q"]))), everything)


def list_words(values: Mapping[str, Constant], step: Step) -> int:
    """Returns the i32 words of the longest work list of a step."""
    split = max_slots(values, step) // int(values["KV_HEADS"])
    return int(HEADER.value) + int(ENTRY.value) * (max_tiles(values, step) + split)


def check_group(values: Mapping[str, Constant]) -> str:
    """Returns why tiles cannot be made of these heads, or ""."""
    q_heads, kv_heads, rows = (int(values[name]) for name in ("Q_HEADS", "KV_HEADS", "BLOCK_Q"))
    if q_heads % kv_heads:
        return f"Q_HEADS {q_heads} is not a multiple of KV_HEADS {kv_heads}"
    if q_heads // kv_heads > rows:
        return f"{q_heads // kv_heads} query heads share a KV head, more than the {rows} rows of a tile"
    return ""
