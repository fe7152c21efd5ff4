"""A booted model: runs steps of ragged batches, and gives logits and sampled tokens.

A step has two halves, the forward plan and the sample plan: what is only needed for sampling, such as a grammar's mask,
may be computed while the first half runs. Where ranks have the logits of a share of the vocabulary each, a greedy plan
takes the place of the sample plan in steps that ask for the most probable tokens only: it leaves no whole logits.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

from paiton_artifacts.errors import PaitonError, UnsupportedError, UsageError
from paiton_artifacts.layout import Region
from paiton_artifacts.record import dataclass
from paiton_artifacts.schema import Manifest, MemoryPlan
from paiton_runtime.batch import FORMATS, GREEDY, OFF, Chunk, Limits, Sampling, StepInput, pack
from paiton_runtime.drivers.base import Driver, Graph
from paiton_runtime.ledger import Ledger

__all__ = ["GREEDY", "Buckets", "Chunk", "Model", "RowReport", "Sampling", "StepResult"]


@dataclass(frozen=True, slots=True)
class RowReport:
    """Log-probabilities of one row, of the logits as they came: the sampled token's, its rank (from 1), the best."""

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave, one entry per logits row in the order of the batch."""

    sampled: list[int]
    _logits: Callable[[int], memoryview[Any]]
    _report: Callable[[int, int], RowReport]

    def logits(self, row: int) -> memoryview[Any]:
        """Returns the f32 logits [vocab_size] of a row: the device's own or a copy, valid until the next step.

        Raises:
            UsageError: there is no such row, or the step was run without leaving logits.
        """
        if not 0 <= row < len(self.sampled):
            raise UsageError(f"logits row {row} of a step that has {len(self.sampled)}")
        return self._logits(row)

    def report(self, row: int, count: int) -> RowReport:
        """Returns the log-probabilities of a row that asked for `count` best tokens; read before the next step.

        Raises:
            UsageError: see `logits`.
        """
        if not 0 <= row < len(self.sampled):
            raise UsageError(f"logits row {row} of a step that has {len(self.sampled)}")
        return self._report(row, count)


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


def _gone(row: int, _count: int = 0) -> NoReturn:
    raise UsageError(f"logits row {row} of a step that left none", hint="run the step with logits=True")


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
        self._greedy = families.get("greedy")
        self._history = families.get("history")
        self._limits = Limits(manifest.model.max_model_len, kv_blocks, manifest.model.vocab_size)
        self._io: dict[str, memoryview[Any]] = {}
        for field in memory.io:
            letter, width = FORMATS[field.dtype]
            self._io[field.name] = driver.view(Region.IO, field.offset, field.count * width, letter)
        for name in OFF.keys() & self._io.keys():
            view = self._io[name]
            view[:] = array(view.format, [OFF[name] if view.format == "f" else int(OFF[name])]) * len(view)
        logits_bytes = memory.max_requests * memory.logits_stride * 4
        self._logits = driver.view(memory.logits_region, memory.logits_offset, logits_bytes, "f")

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
        """Runs one step of unmasked chunks, whose logits may be read.

        Args:
            batch: chunks of different requests, at most `memory.max_tokens` tokens, `memory.max_requests` chunks and
                as many logits rows in all.

        Raises:
            UsageError: the batch exceeds a limit, or a token, position or block does not exist.
        """
        return self.run(self.prepare(batch), logits=True)

    def run(self, step: StepInput, *, logits: bool = False) -> StepResult:
        """Runs a packed step without masked rows, both halves at once.

        Args:
            step: see `prepare`.
            logits: the result's logits will be read: ranks that share the vocabulary then gather them even where they
                could do without.

        Raises:
            UsageError: a row waits for a mask; use `forward` and `sample`.
        """
        driver = self.driver
        if step.masked_rows:
            raise UsageError(f"{len(step.masked_rows)} rows of the step wait for their masks")
        self._write(step)
        sampling = self._greedy if self._greedy and step.plain_greedy and not logits else self._sample
        graphs = [self._forward_graph(step)]
        if step.rows:
            graphs.append(sampling.find(0, step.rows))
        driver.run(*graphs, changed=self._changed(step))
        return self._finish(step, whole=sampling is self._sample)

    def prepare(self, batch: Sequence[Chunk]) -> StepInput:
        """Checks and packs a batch for `run`, or `forward` and `sample`; another step may be running meanwhile.

        Raises:
            UsageError: see `step`.
            UnsupportedError: the batch asks for something that the bundle's kernels do not have.
        """
        return pack(batch, self.memory, self._limits, self._io)

    def forward(self, step: StepInput) -> None:
        """Runs a packed step up to its logits. Tokens that the step before sampled are known to the device."""
        driver = self.driver
        self._write(step)
        driver.run(self._forward_graph(step), changed=self._changed(step))

    def sample(self, step: StepInput, masks: Mapping[int, bytes] | None = None) -> StepResult:
        """Samples the rows of the step that `forward` ran last.

        Args:
            step: the same.
            masks: for each masked row which tokens are allowed: bit b of little-endian 32-bit word w stands for token
                32 w + b; ceil(vocab / 32) words.

        Raises:
            UsageError: a mask is missing or has another length.
        """
        driver, masks = self.driver, {} if masks is None else masks
        width = -(-self.manifest.model.vocab_size // 32) * 4
        for row in step.masked_rows:
            mask = masks.get(row, b"")
            if len(mask) != width:
                raise UsageError(f"the mask of row {row} has {len(mask)} bytes instead of {width}")
            self._io["mask"].cast("B")[row * width : (row + 1) * width] = mask
        if step.rows:
            driver.run(self._sample.find(0, step.rows), changed=("mask",) if step.masked_rows else ())
        return self._finish(step)

    def exchange_tokens(self, rows: int) -> list[int] | None:
        """Samples the rows of the step that ran last once more, which all were greedy, by the greedy plan alone.

        For checks of that plan: the tokens are counted once more. None where ranks have no such plan.
        """
        if self._greedy is None:
            return None
        self.driver.run(self._greedy.find(0, rows))
        return self._io["sampled"][:rows].tolist()

    def load_history(self, slot: int, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Tells the device the tokens of the request that takes a slot, which penalties count.

        Raises:
            UnsupportedError: the bundle's kernels have no penalties.
            UsageError: a slot or token does not exist, or there are more tokens than the context holds.
        """
        driver = self.driver  # a closed model has no io to write to
        if self._history is None:
            raise UnsupportedError("the bundle's sampler has no penalties", hint="build the bundle again")
        tokens = array("i", [*prompt, *output])
        if not 0 <= slot < self.memory.max_requests:
            raise UsageError(f"slot {slot} outside 0 .. {self.memory.max_requests - 1}")
        if not 0 < len(tokens) <= len(self._io["history_tokens"]):
            raise UsageError(f"a history of {len(tokens)} tokens, at most {len(self._io['history_tokens'])} fit")
        if not 0 <= min(tokens) <= max(tokens) < self.manifest.model.vocab_size:
            raise UsageError(f"a token id outside 0 .. {self.manifest.model.vocab_size - 1}")
        self._io["history_slot"][0] = slot
        self._io["history_length"][0] = len(tokens)
        self._io["history_prompt_length"][0] = len(prompt)
        self._io["history_tokens"][: len(tokens)] = tokens
        names = tuple(f"history_{name}" for name in ("slot", "length", "prompt_length", "tokens"))
        driver.run(self._history.find(0, 1), changed=names)

    def _forward_graph(self, step: StepInput) -> Graph:
        return self._forward.find(step.tokens, max(step.requests, step.rows))

    def _changed(self, step: StepInput) -> tuple[str, ...]:
        """Returns the io fields beside the inputs that a step has written."""
        return tuple(dict.fromkeys(name for name, _, _ in step.pieces))

    def _write(self, step: StepInput) -> None:
        io = self._io
        for name, values in step.arrays:
            io[name][: len(values)] = values
        for name, first, values in step.pieces:
            io[name][first : first + len(values)] = values

    def _finish(self, step: StepInput, *, whole: bool = True) -> StepResult:
        self.steps += 1
        sampled = self._io["sampled"][: step.rows].tolist()
        return StepResult(sampled, self._logits_row, self._report) if whole else StepResult(sampled, _gone, _gone)

    def _report(self, row: int, count: int) -> RowReport:
        io = self._io
        width = len(io["top_tokens"]) // self.memory.max_requests
        tops = io["top_tokens"][row * width : row * width + count].tolist()
        values = io["top_values"][row * width : row * width + count].tolist()
        best = tuple(zip(tops, values, strict=True))
        return RowReport(io["sampled_logprob"][row], io["sampled_rank"][row], best)

    def _logits_row(self, row: int) -> memoryview[Any]:
        driver = self.driver
        first, count = row * self.memory.logits_stride, self.manifest.model.vocab_size
        driver.fetch(self.memory.logits_region, self.memory.logits_offset + 4 * first, 4 * count)
        return self._logits[first : first + count]

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
