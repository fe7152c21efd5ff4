"""How ranks exchange data inside kernels: the layout of the comm region, and one step of the flag protocol.

docs/tensor-parallelism.md has the protocol and why it is ordered. In short: block b of every collective launch owns
*channel* b. An exchange pushes data into the staging memory of all ranks' channel b, then raises a flag there, then
waits for the flags of all ranks in its own. Numbers of exchanges are counted in device memory, so that a launch can be
replayed; they alternate between two halves of the staging memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import triton
import triton.language as tl

from paiton_kernels.gpu.last_arriver import on_amd
from paiton_kernels.gpu.spec import Constant, GpuArg

MAX_RANKS = 8
MAX_BLOCKS = 64
"""Blocks of a collective launch at most. All of them must run at once, so no device may have fewer compute units."""

MAX_POLLS = 20_000_000
"""How often a block looks for its peers' flags before it gives up: tens of seconds where a look takes a microsecond."""

LINE = 64
"""Bytes of a channel's counters, and of its flags: lines that no other block writes."""

MAX_CHANNEL_BYTES = 512 << 10
"""Staging memory of a channel's half beyond which messages are cut into several exchanges."""

WIRE_BYTES = 1 << 20
"""Bytes of partial sums beyond which they travel as bf16: there the links' rate counts, and f32 would halve it."""

GATHER_COLUMNS = 1024
"""Columns of logits that a block sends at a time, at most."""

ERROR_TIMED_OUT = 1
"""Word 0 of `comm_error` once a peer did not come."""

_LINE = tl.constexpr(LINE)
_TIMED_OUT = tl.constexpr(ERROR_TIMED_OUT)


@dataclass(frozen=True, slots=True)
class CommLayout:
    """The comm region of a rank, the same for all of a model's ranks.

    Attributes:
        tp: number of ranks.
        blocks: of every collective launch; each has a channel.
        channel_bytes: of one half of a channel's staging memory.
    """

    tp: int
    blocks: int
    channel_bytes: int

    @property
    def header_bytes(self) -> int:
        """Bytes of counters (LINE each channel: exchanges, launches, failed) and then flags: zero at boot."""
        return 2 * LINE * self.blocks

    @property
    def bytes(self) -> int:
        """Bytes of the region: the header, then [blocks][2 halves][channel_bytes]."""
        return self.header_bytes + 2 * self.blocks * self.channel_bytes


def comm_layout(tp: int, hidden: int, max_tokens: int, max_requests: int) -> CommLayout:
    """Returns the layout for a model's steps.

    Args:
        tp: number of ranks.
        hidden: elements of a row of the residual stream.
        max_tokens: of the largest step.
        max_requests: rows of logits of the largest step.
    """
    blocks = min(MAX_BLOCKS, 1 << (max(4 * max_tokens, max_requests) - 1).bit_length())
    row = tp * _aligned(hidden, 8 * tp) * 4
    wanted = row * triton.cdiv(max_tokens, blocks)
    channel = max(row, min(wanted, MAX_CHANNEL_BYTES), tp * GATHER_COLUMNS * 4)
    return CommLayout(tp, blocks, _aligned(channel, 4096))


def wire_of(hidden: int, tokens: int) -> str:
    """Returns what partial sums travel as in a step of so many tokens: "FP32", or "BF16" where they are many."""
    return "BF16" if tokens * hidden * 4 > WIRE_BYTES else "FP32"


_ARGS = {
    arg.name: arg
    for arg in (
        GpuArg("comm", "*i8", "this rank's comm region (CommLayout)"),
        GpuArg("comm_peers", "*i64", "i64[TP]: bytes from this rank's comm region to each rank's"),
        GpuArg("comm_error", "*i32", "i32[4]: 0, or 1 = a peer did not come; then number of the launch, peer, block"),
        GpuArg("rank", "i64", "of this rank"),
        GpuArg("max_polls", "i32", "how often to look for a peer"),
        GpuArg("channel_bytes", "i64", "of the layout", divisor=16),
    )
}


def comm_arguments(*names: str) -> tuple[GpuArg, ...]:
    """Returns the arguments of these names that all collective launches have."""
    return tuple(_ARGS[name] for name in names)


def why_no_group(values: Mapping[str, Constant]) -> str:
    """Returns why TP ranks with BLOCKS blocks each cannot be a group, or ""."""
    tp, blocks = int(values["TP"]), int(values["BLOCKS"])
    if tp & (tp - 1) or not 0 < tp <= MAX_RANKS:
        return f"TP is {tp}, not 1, 2, 4 or {MAX_RANKS}"
    return "" if 0 < blocks <= MAX_BLOCKS else f"BLOCKS is {blocks}, not within {MAX_BLOCKS}"


def _aligned(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@triton.jit
def _same_in_all_lanes(value):
    # The compiler does not look inside for hazards: five wait states until the register may address memory.
    return tl.inline_asm_elementwise(
        "v_readfirstlane_b32 $0, $1\ns_nop 4", "=s,v", [value], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def enter(comm):
    """Counts this launch of the block. Returns (exchanges so far, number of this launch, whether an earlier failed)."""
    line = (comm + tl.program_id(0) * _LINE).to(tl.pointer_type(tl.int32))
    exchanges, launch, failed = tl.load(line), tl.load(line + 1) + 1, tl.load(line + 2)
    tl.debug_barrier()  # all warps have read it
    tl.store(line + 1, launch)
    return exchanges, launch, failed != 0


@triton.jit
def leave(comm, exchanges):
    """Keeps the number of exchanges for the next launch; after an `exchange`, which all warps have passed."""
    tl.store((comm + tl.program_id(0) * _LINE).to(tl.pointer_type(tl.int32)), exchanges)


@triton.jit
def staging(exchange, channel_bytes, BLOCKS: tl.constexpr):
    """Returns where an exchange's data lies in this block's channel, in bytes from a comm region's start."""
    half = exchange & 1
    if on_amd():
        half = _same_in_all_lanes(half)
    return 2 * _LINE * BLOCKS + (tl.program_id(0).to(tl.int64) * 2 + half) * channel_bytes


@triton.jit
def distances_to(comm_peers, TP: tl.constexpr):
    """Returns i64[TP]: bytes to the comm region of each rank. Loaded once: a later load would wait for stores."""
    return tl.load(comm_peers + tl.arange(0, TP))


@triton.jit
def region_of(comm, distances, peer, TP: tl.constexpr):
    """Returns the comm region of a rank."""
    distance = tl.sum(tl.where(tl.arange(0, TP) == peer, distances, 0), 0)
    if on_amd():
        # In scalar registers, as buffer stores want their base: else they loop over the lanes' bases.
        high = _same_in_all_lanes((distance >> 32).to(tl.int32)).to(tl.int64)
        distance = (high << 32) | (_same_in_all_lanes(distance.to(tl.int32)).to(tl.int64) & 0xFFFFFFFF)
    return comm + tl.multiple_of(distance, 16)


@triton.jit
def stores_done():
    """Waits for this wave's stores: AMD's barriers do not, and a release waits for those of its own wave only."""
    if on_amd():
        tl.inline_asm_elementwise(
            "s_waitcnt vmcnt(0)\nv_mov_b32 $0, $1", "=v,v", [tl.arange(0, 1)], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def exchange(comm, distances, comm_error, number, launch, rank, max_polls, TP: tl.constexpr, BLOCKS: tl.constexpr):
    """Tells all ranks that this block's data of an exchange is there, and waits until theirs is.

    Polls are atomic additions of 0: compilers delete or hoist loops of loads. The waiting is bounded, and ends early
    when another block of this rank has given up.

    Returns:
        Whether the data of all ranks is there; if not, this and all later launches of the block must leave.
    """
    block = tl.program_id(0)
    own = (comm + (BLOCKS + block) * _LINE).to(tl.pointer_type(tl.int32))
    peer = tl.arange(0, TP)
    stores_done()
    tl.debug_barrier()
    theirs = (comm + distances + (BLOCKS + block) * _LINE).to(tl.pointer_type(tl.int32))
    tl.atomic_xchg(theirs + rank, tl.full((TP,), number, tl.int32), sem="release", scope="sys")

    # Beside the flags, one lane watches the error word.
    lane = tl.arange(0, 2 * TP)
    watched = tl.where(lane < TP, own + lane, comm_error + tl.zeros_like(lane))
    zeros = tl.zeros_like(lane)
    state = 1
    polls = 0
    late_peer = TP
    while (state == 1) & (polls < max_polls):
        seen = tl.atomic_add(watched, zeros, mask=lane <= TP, sem="relaxed", scope="sys")
        late = (lane < TP) & (seen - number < 0)
        late_peer = tl.min(tl.where(late, lane, TP), 0)
        stopped = tl.max(tl.where(lane == TP, seen, 0), 0) != 0
        state = tl.where(stopped, 2, tl.where(late_peer < TP, 1, 0))
        polls += 1
    if state == 0:
        # One acquire for each flag: it must read what the peer's release wrote.
        tl.atomic_add(own + peer, tl.zeros_like(peer), sem="acquire", scope="sys")
    else:
        if state == 1:
            if tl.atomic_cas(comm_error, 0, _TIMED_OUT, sem="relaxed", scope="gpu") == 0:
                tl.store(comm_error + 1, launch)
                tl.store(comm_error + 2, late_peer)
                tl.store(comm_error + 3, block)
        tl.store((comm + block * _LINE).to(tl.pointer_type(tl.int32)) + 2, 1)
    tl.debug_barrier()
    return state == 0
