"""A booted model: one call runs one step of a ragged batch, and gives logits and sampled tokens."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from paiton_artifacts.errors import PaitonError, UsageError
from paiton_artifacts.layout import Region
from paiton_artifacts.schema import Manifest, MemoryPlan
from paiton_runtime.drivers.base import Driver, Graph
from paiton_runtime.ledger import Ledger

_FORMATS = {"i32": ("i", 4), "u64": ("Q", 8), "f32": ("f", 4)}

_DEFAULTS: dict[str, float] = {
    "repetition_penalty": 1.0,
    "mask_row": -1,
    "top_logprobs": -1,
    "stop_tokens": -1,
    "max_position": (1 << 31) - 1,
}
"""What io fields hold that switch a feature of the sampler off with another value than 0. The cpu has none of them."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn from logits: temperature, then top-k, then top-p on what is left; see Chunk.draw."""

    temperature: float = 0.0  # 0: greedy, the lowest index on ties
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    seed: int = 0  # unsigned, 64 bits


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one request in a step: its whole prompt, a part of it, or the token to decode."""

    tokens: Sequence[int]
    start: int  # position of tokens[0]
    blocks: Sequence[int]  # KV blocks that cover positions 0 .. start + len(tokens)
    logits: Literal["none", "last", "all"] = "last"  # of which tokens logits are computed and a token is sampled
    sampling: Sampling = GREEDY
    draw: int = 0  # Philox counter beside the seed; the rows of "all" take the following ones

    @property
    def rows(self) -> int:
        """Number of logits rows."""
        return {"none": 0, "last": 1, "all": len(self.tokens)}[self.logits]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave, one entry per logits row in the order of the batch."""

    sampled: list[int]
    _logits: Callable[[int], memoryview[Any]]

    def logits(self, row: int) -> memoryview[Any]:
        """Returns the f32 logits [vocab_size] of a row: the device's own or a copy, valid until the next step."""
        if not 0 <= row < len(self.sampled):
            raise UsageError(f"logits row {row} of a step that has {len(self.sampled)}")
        return self._logits(row)


@dataclass(frozen=True, slots=True)
class Buckets:
    """The graphs of one family by size: (tokens, requests) in ascending order, and the graph of each."""

    sizes: list[tuple[int, int]]
    graphs: list[Graph]

    def find(self, tokens: int, requests: int) -> Graph:
        """Returns the smallest graph with room for `tokens` and `requests`."""
        for i in range(bisect_left(self.sizes, (tokens, 0)), len(self.sizes)):
            if self.sizes[i][1] >= requests:
                return self.graphs[i]
        raise UsageError(f"no plan holds a step of {tokens} tokens and {requests} requests or logits rows")


class Model:
    """A model that is ready to run; a context manager that frees it at the end.

    Attributes:
        manifest: of the bundle.
        memory: the bundle's memory plan for this target.
        level: the instruction-set level that runs.
        ledger: of the boot.
        kv_blocks: blocks of the KV cache, numbered from 0.
        steps: steps that were run so far.
    """

    def __init__(
        self,
        manifest: Manifest,
        memory: MemoryPlan,
        driver: Driver,
        families: dict[str, Buckets],
        *,
        level: str,
        ledger: Ledger,
        kv_blocks: int,
    ) -> None:
        self.manifest = manifest
        self.memory = memory
        self.level = level
        self.ledger = ledger
        self.kv_blocks = kv_blocks
        self.steps = 0
        self._driver: Driver | None = driver
        self._forward = families["forward"]
        self._sample = families["sample"]
        self._io: dict[str, memoryview[Any]] = {}
        for field in memory.io:
            letter, width = _FORMATS[field.dtype]
            self._io[field.name] = driver.view(Region.IO, field.offset, field.count * width, letter)
        for name in _DEFAULTS.keys() & self._io.keys():
            view = self._io[name]
            view[:] = array(view.format, [_DEFAULTS[name] if view.format == "f" else int(_DEFAULTS[name])]) * len(view)
        logits_bytes = memory.max_requests * memory.logits_stride * 4
        self._logits = driver.view(Region.COMM, memory.logits_offset, logits_bytes, "f")

    @property
    def context_tokens(self) -> int:
        """Positions that one request may have: the model's context, or the whole KV cache where that is smaller."""
        return min(self.manifest.model.max_model_len, self.kv_blocks * self.memory.kv_block_tokens)

    @property
    def driver(self) -> Driver:
        """The devices that run it.

        Raises:
            PaitonError: the model is closed.
        """
        if self._driver is None:
            raise PaitonError("the model is closed")
        return self._driver

    def step(self, batch: Sequence[Chunk]) -> StepResult:
        """Runs one step.

        Args:
            batch: chunks of different requests, at most `memory.max_tokens` tokens, `memory.max_requests` chunks and
                as many logits rows in all.

        Raises:
            UsageError: the batch exceeds a limit, or a token, position or block does not exist.
        """
        driver = self.driver
        tokens, rows = self._fill(batch)
        requests = max(len(batch), rows)
        graphs = [self._forward.find(tokens, requests)]
        if rows:
            graphs.append(self._sample.find(0, rows))
        driver.run(*graphs)
        self.steps += 1
        sampled = self._io["sampled"][:rows].tolist()
        return StepResult(sampled, self._logits_row)

    def _logits_row(self, row: int) -> memoryview[Any]:
        driver = self.driver
        first, count = row * self.memory.logits_stride, self.manifest.model.vocab_size
        driver.fetch(Region.COMM, self.memory.logits_offset + 4 * first, 4 * count)
        return self._logits[first : first + count]

    def _fill(self, batch: Sequence[Chunk]) -> tuple[int, int]:
        """Checks the batch and writes it to the io region; returns its tokens and logits rows."""
        tokens = sum(len(chunk.tokens) for chunk in batch)
        rows = sum(chunk.rows for chunk in batch)
        memory, io = self.memory, self._io
        for what, count, limit in (
            ("tokens", tokens, memory.max_tokens),
            ("requests", len(batch), memory.max_requests),
            ("logits rows", rows, memory.max_requests),
        ):
            if count > limit:
                raise UsageError(f"a step of {count} {what} exceeds the plans' {limit}", hint="split the batch")
        at = row = 0
        starts = array("i", [0])
        for request, chunk in enumerate(batch):
            self._check(chunk)
            end = at + len(chunk.tokens)
            io["token_ids"][at:end] = array("i", chunk.tokens)
            io["positions"][at:end] = array("i", range(chunk.start, chunk.start + len(chunk.tokens)))
            io["request_of"][at:end] = array("i", [request]) * len(chunk.tokens)
            table = request * memory.max_blocks_per_request
            used = -(-(chunk.start + len(chunk.tokens)) // memory.kv_block_tokens)
            io["block_tables"][table : table + used] = array("i", chunk.blocks[:used])
            for i in range(chunk.rows):
                self._fill_row(row, end - chunk.rows + i, chunk, chunk.draw + i)
                if "slot_of" in io:
                    io["slot_of"][row] = request
                row += 1
            at = end
            starts.append(end)
        if "query_start" in io:
            io["query_start"][: len(starts)] = starts
        io["counts"][:4] = array("i", (tokens, len(batch), rows, 0))
        return tokens, rows

    def _fill_row(self, row: int, token: int, chunk: Chunk, draw: int) -> None:
        io, sampling = self._io, chunk.sampling
        io["logit_rows"][row] = token
        io["temperature"][row] = sampling.temperature
        io["top_k"][row] = sampling.top_k
        io["top_p"][row] = sampling.top_p
        io["seed"][row] = sampling.seed & 0xFFFF_FFFF_FFFF_FFFF
        io["draw"][row] = draw

    def _check(self, chunk: Chunk) -> None:
        """Kernels trust what the io region says, so nothing that lies outside a region may get there."""
        end = chunk.start + len(chunk.tokens)
        if not chunk.tokens:
            raise UsageError("a chunk without tokens")
        if chunk.start < 0 or end > self.manifest.model.max_model_len:
            context = self.manifest.model.max_model_len
            raise UsageError(f"positions {chunk.start} .. {end} leave the context of {context} tokens")
        used = -(-end // self.memory.kv_block_tokens)
        if len(chunk.blocks) < used:
            raise UsageError(f"{len(chunk.blocks)} KV blocks given for {end} positions, which need {used}")
        if not 0 <= min(chunk.blocks[:used]) <= max(chunk.blocks[:used]) < self.kv_blocks:
            raise UsageError(f"a KV block outside 0 .. {self.kv_blocks - 1}")
        if not 0 <= min(chunk.tokens) <= max(chunk.tokens) < self.manifest.model.vocab_size:
            raise UsageError(f"a token id outside 0 .. {self.manifest.model.vocab_size - 1}")

    def close(self) -> None:
        """Stops the threads and frees all memory; views of logits must no longer be used."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
