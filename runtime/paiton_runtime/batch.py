"""A step's batch: chunks of requests, checked and packed into arrays in the layout of the io region.

Packing needs nothing of the device, so a caller may pack the next step while the current one runs.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from paiton_artifacts.errors import UnsupportedError, UsageError
from paiton_artifacts.record import dataclass, field
from paiton_artifacts.schema import MemoryPlan

FORMATS = {"i32": ("i", 4), "u64": ("Q", 8), "f32": ("f", 4)}
"""Struct letter and bytes of each dtype of the io region."""

OFF: dict[str, float] = {
    "repetition_penalty": 1.0,
    "mask_row": -1,
    "top_logprobs": -1,
    "stop_tokens": -1,
    "max_position": (1 << 31) - 1,
}
"""What io fields hold that switch a feature of the sampler off with another value than 0."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn from logits; engine.params.SamplingParams has the meaning and order of each field."""

    temperature: float = 0.0  # 0: greedy, the lowest index on ties
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    seed: int = 0  # unsigned, 64 bits
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int = -1  # best tokens to report; -1: not even the sampled one's log-probability
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def plain_greedy(self) -> bool:
        """Whether the most probable token is taken as the logits came, and nothing else of them is asked for."""
        penalised = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)
        return self.temperature == 0 and self.top_logprobs < 0 and not self.bias and not penalised


GREEDY = Sampling()

_CERTAIN = 1e30
"""Bias of a target: above all logits, and finite, so that one of minus infinity stays what it is."""

_ROW_FIELDS = (
    ("temperature", "f"),
    ("top_k", "i"),
    ("top_p", "f"),
    ("min_p", "f"),
    ("repetition_penalty", "f"),
    ("presence_penalty", "f"),
    ("frequency_penalty", "f"),
    ("top_logprobs", "i"),
    ("seed", "Q"),
    ("draw", "Q"),
    ("slot_of", "i"),
    ("mask_row", "i"),
    ("bias_count", "i"),
)
"""Io fields with one element for each row of logits, in the order of the tuples that `_row` makes."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one request in a step: its whole prompt, a part of it, or the token to decode.

    Attributes:
        tokens: ids; -1 - slot stands for the token that its slot sampled last, which the device knows.
        start: position of tokens[0].
        blocks: KV blocks that cover positions 0 .. start + len(tokens).
        logits: of which tokens logits are computed and a token is sampled.
        sampling: how.
        draw: Philox counter beside the seed; the rows of "all" take the following ones.
        slot: where the device keeps what it knows of the request; None: its index in the batch.
        masked: a mask of allowed tokens follows before sampling.
        targets: a token for each row, which the row "samples" whatever its logits: its report is then the target's. Of
            `sampling`, only `top_logprobs` counts; the slot's last token and counts mean nothing afterwards.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    logits: Literal["none", "last", "all"] = "last"
    sampling: Sampling = GREEDY
    draw: int = 0
    slot: int | None = None
    masked: bool = False
    targets: Sequence[int] | None = None

    @property
    def rows(self) -> int:
        """Number of logits rows."""
        return {"none": 0, "last": 1, "all": len(self.tokens)}[self.logits]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch must stay within: kernels trust what the io region says."""

    context: int  # positions
    kv_blocks: int
    vocab: int


@dataclass(slots=True)
class StepInput:
    """A packed step.

    Attributes:
        tokens: of all chunks.
        requests: chunks.
        rows: logits rows.
        arrays: io field and what it begins with.
        pieces: io field, first element, and what is written there.
        masked_rows: rows whose mask is to be written before sampling.
        plain_greedy: of every row only the most probable token is asked for, as the logits came.
    """

    tokens: int
    requests: int
    rows: int
    arrays: list[tuple[str, array[int] | array[float]]] = field(default_factory=list)
    pieces: list[tuple[str, int, array[int] | array[float]]] = field(default_factory=list)
    masked_rows: list[int] = field(default_factory=list)
    plain_greedy: bool = True


def pack(batch: Sequence[Chunk], memory: MemoryPlan, limits: Limits, fields: Mapping[str, object]) -> StepInput:
    """Checks and packs a batch.

    Args:
        batch: chunks of different requests.
        memory: the plan whose sizes hold.
        limits: see `Limits`.
        fields: io fields of the target, by name.

    Raises:
        UsageError: the batch exceeds a limit, or a token, position, block or slot does not exist.
        UnsupportedError: it asks for something that the bundle's kernels do not have.
    """
    step = StepInput(sum(len(chunk.tokens) for chunk in batch), len(batch), sum(chunk.rows for chunk in batch))
    for what, count, limit in (
        ("tokens", step.tokens, memory.max_tokens),
        ("requests", step.requests, memory.max_requests),
        ("logits rows", step.rows, memory.max_requests),
    ):
        if count > limit:
            raise UsageError(f"a step of {count} {what} exceeds the plans' {limit}", hint="split the batch")
    tokens, positions, owners = array("i"), array("i"), array("i")
    starts, logit_rows = array("i", [0]), array("i")
    rows: list[tuple[float, ...]] = []
    for request, chunk in enumerate(batch):
        slot = request if chunk.slot is None else chunk.slot
        used = _check(chunk, slot, memory, limits, placeholders="last_token" in fields)
        count = len(chunk.tokens)
        tokens.extend(chunk.tokens)
        positions.extend(range(chunk.start, chunk.start + count))
        owners.extend((request,) * count)
        table = chunk.blocks[:used]
        piece = table if isinstance(table, array) else array("i", table)
        step.pieces.append(("block_tables", request * memory.max_blocks_per_request, piece))
        for i in range(count - chunk.rows, count):
            logit_rows.append(starts[-1] + i)
            sampling = _sampling_of(chunk, i - (count - chunk.rows))
            rows.append(_row(chunk, sampling, slot, chunk.draw + i - (count - chunk.rows), len(rows)))
            step.plain_greedy &= sampling.plain_greedy and not chunk.masked
            if chunk.masked:
                step.masked_rows.append(len(rows) - 1)
            if sampling.bias:
                _add_bias(step, len(rows) - 1, sampling.bias, memory)
        starts.append(starts[-1] + count)
    step.arrays = [
        ("counts", array("i", (step.tokens, step.requests, step.rows, 0))),
        ("token_ids", tokens),
        ("positions", positions),
        ("request_of", owners),
        ("logit_rows", logit_rows),
    ]
    if "query_start" in fields:
        step.arrays.append(("query_start", starts))
    step.arrays += _columns(rows, fields)
    return step


def _sampling_of(chunk: Chunk, row: int) -> Sampling:
    """Returns how a row of a chunk is sampled; a target has all the probability."""
    if chunk.targets is None:
        return chunk.sampling
    return Sampling(top_logprobs=chunk.sampling.top_logprobs, bias=((chunk.targets[row], _CERTAIN),))


def _row(chunk: Chunk, s: Sampling, slot: int, draw: int, row: int) -> tuple[float, ...]:
    penalties = s.repetition_penalty, s.presence_penalty, s.frequency_penalty
    mask = row if chunk.masked else -1
    choice = s.temperature, s.top_k, s.top_p, s.min_p
    return *choice, *penalties, s.top_logprobs, s.seed & 0xFFFF_FFFF_FFFF_FFFF, draw, slot, mask, len(s.bias)


def _columns(
    rows: list[tuple[float, ...]], fields: Mapping[str, object]
) -> Iterable[tuple[str, array[int] | array[float]]]:
    """Returns the rows as one array for each io field; fields that the target lacks must be switched off."""
    for (name, letter), values in zip(_ROW_FIELDS, zip(*rows, strict=True), strict=False):
        if name in fields:
            yield name, array(letter, values)
        elif name not in {"slot_of", "draw"} and any(value != OFF.get(name, 0) for value in values):
            raise UnsupportedError(f"the bundle's sampler has no {name}", hint="build the bundle again")


def _add_bias(step: StepInput, row: int, bias: Sequence[tuple[int, float]], memory: MemoryPlan) -> None:
    width = next((io.count for io in memory.io if io.name == "bias_tokens"), 0) // memory.max_requests
    if len(bias) > width:
        raise UsageError(f"{len(bias)} biased tokens exceed the bundle's {width}", hint="bias fewer tokens")
    step.pieces.append(("bias_tokens", row * width, array("i", (token for token, _ in bias))))
    step.pieces.append(("bias_values", row * width, array("f", (value for _, value in bias))))


def _check(chunk: Chunk, slot: int, memory: MemoryPlan, limits: Limits, *, placeholders: bool) -> int:
    """Refuses what lies outside a region; returns how many blocks the chunk uses."""
    end = chunk.start + len(chunk.tokens)
    if not chunk.tokens:
        raise UsageError("a chunk without tokens")
    if chunk.start < 0 or end > limits.context:
        raise UsageError(f"positions {chunk.start} .. {end} leave the context of {limits.context} tokens")
    used = -(-end // memory.kv_block_tokens)
    if len(chunk.blocks) < used:
        raise UsageError(f"{len(chunk.blocks)} KV blocks given for {end} positions, which need {used}")
    if not 0 <= min(chunk.blocks[:used]) <= max(chunk.blocks[:used]) < limits.kv_blocks:
        raise UsageError(f"a KV block outside 0 .. {limits.kv_blocks - 1}")
    known = [token for token in chunk.tokens if token != -1 - slot] if placeholders else chunk.tokens
    if known and not 0 <= min(known) <= max(known) < limits.vocab:
        raise UsageError(f"a token id outside 0 .. {limits.vocab - 1}")
    if not 0 <= slot < memory.max_requests:
        raise UsageError(f"slot {slot} outside 0 .. {memory.max_requests - 1}")
    if any(not 0 <= token < limits.vocab for token, _ in chunk.sampling.bias):
        raise UsageError(f"a biased token outside 0 .. {limits.vocab - 1}")
    if chunk.targets is not None:
        if len(chunk.targets) != chunk.rows or chunk.masked:
            raise UsageError(f"{len(chunk.targets)} targets for {chunk.rows} rows, which must not wait for masks")
        if any(not 0 <= token < limits.vocab for token in chunk.targets):
            raise UsageError(f"a target outside 0 .. {limits.vocab - 1}")
    return used
