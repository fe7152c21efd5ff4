"""Which checkpoint tensors make up a bundle tensor, how they are stored, and which slice each rank holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from paiton_aot.checkpoint.base import Checkpoint, ModelConfig
from paiton_artifacts.errors import TensorParallelError
from paiton_artifacts.layout import align_up

MAX_TP = 16
VOCAB_ALIGNMENT = 64


class ShardRule(Enum):
    """How a weight `[N, K]` is divided between ranks."""

    COLUMN = "column"  # rows (N) in equal shares: each rank computes some outputs
    ROW = "row"  # columns (K) in equal shares: each rank computes partial sums
    KV_HEAD = "kv-head"  # rows by KV head; a head is held by several ranks when there are more ranks than heads
    VOCAB = "vocab"  # rows in equal shares of the padded vocabulary
    REPLICATED = "replicated"


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint tensor: canonical name, shape, and its sharding rule.

    `block` is what rows and columns of `shape` one stored element stands for: scales are divided as their weight is.
    """

    name: str
    shape: tuple[int, ...]
    rule: ShardRule
    block: tuple[int, int] = (1, 1)

    @property
    def rows(self) -> int:
        """Length of the first dimension."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Elements per row; 1 for a vector."""
        return self.shape[1] if len(self.shape) == 2 else 1


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A bundle tensor: its sources stacked along rows, stored as `storage`.

    `scale` names the f32 companion that holds its scales ("" where the storage has none): one per row or, with a
    `scale_block`, one for each block of that many rows and columns.
    `compute` gives the `elements` values of a one-dimensional f32 tensor that is not a slice of checkpoint tensors.
    """

    name: str
    sources: tuple[Source, ...]
    storage: str  # a key of layout.DTYPE_BYTES
    scale: str = ""
    compute: Callable[[Checkpoint], Sequence[float]] | None = None
    elements: int = 1
    scale_block: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a source that one rank holds; rows past the end of the source are zeros."""

    row: int
    rows: int
    col: int
    cols: int


def shard(source: Source, rank: int, tp: int, kv_heads: int) -> Slice:
    """Returns the slice of `source` that `rank` of `tp` holds."""
    rows, cols = source.rows, source.cols
    if source.rule is ShardRule.COLUMN:
        return Slice(rank * rows // tp, rows // tp, 0, cols)
    if source.rule is ShardRule.ROW:
        return Slice(0, rows, rank * cols // tp, cols // tp)
    if source.rule is ShardRule.KV_HEAD:
        head = rows // kv_heads
        heads_per_rank = max(1, kv_heads // tp)
        first = rank * kv_heads // tp  # with tp > kv_heads this is rank // (tp / kv_heads)
        return Slice(first * head, heads_per_rank * head, 0, cols)
    if source.rule is ShardRule.VOCAB:
        share = padded_vocab(rows, tp) // tp
        return Slice(rank * share, share, 0, cols)
    return Slice(0, rows, 0, cols)


def padded_vocab(vocab_size: int, tp: int) -> int:
    """Rows of an embedding or lm_head over all ranks, padding included."""
    return align_up(vocab_size, VOCAB_ALIGNMENT * tp)


def valid_tp(config: ModelConfig) -> list[int]:
    """Returns the numbers of ranks that this model can be divided into."""
    return [tp for tp in range(1, MAX_TP + 1) if _divides(config, tp)]


def check_tp(config: ModelConfig, tp: int) -> None:
    """Raises TensorParallelError where `tp` ranks cannot share the model."""
    if tp in (allowed := valid_tp(config)):
        return
    sizes = " and ".join(map(str, sorted(config.intermediate_sizes)))
    facts = f"{config.attention_heads} attention heads, {config.kv_heads} KV heads, intermediate size {sizes}"
    choices = ", ".join(map(str, allowed))
    raise TensorParallelError(f"--tp {tp} does not divide the model ({facts})", hint=f"use --tp with one of {choices}")


def _divides(config: ModelConfig, tp: int) -> bool:
    kv = config.kv_heads
    heads = config.attention_heads % tp == 0 and (kv % tp == 0 or tp % kv == 0)
    return heads and all(size % tp == 0 for size in config.intermediate_sizes)
