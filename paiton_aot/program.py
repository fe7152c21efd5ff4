"""A program: what a model computes in one step, as typed ops over named values and weights.

The vocabulary is one for all targets. A value is named once per layer and described by the op that produces it; `x`
is the residual stream. Ops say nothing about ranks but one thing: the output of a `Linear` whose weight is split along
its columns is a partial sum until an `AllReduce` consumes it. Targets fuse neighbouring ops where they have a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Op:
    """Base of all ops; `layer` is None outside the decoder layers."""

    layer: int | None


@dataclass(frozen=True, slots=True)
class Embed(Op):
    """out[t] = weight[token_ids[t]], zeros where the row belongs to another rank."""

    weight: str
    out: str


@dataclass(frozen=True, slots=True)
class RmsNorm(Op):
    """out = x / rms(x) * weight. With `gather`, only the rows that need logits, in their order."""

    x: str
    weight: str
    out: str
    gather: bool = False


@dataclass(frozen=True, slots=True)
class Linear(Op):
    """out = x @ weight.T, with the activation mode of the program."""

    x: str
    weight: str
    out: str


@dataclass(frozen=True, slots=True)
class RopeKvWrite(Op):
    """Splits fused qkv, rotates q and k, writes k and v to the paged cache; out = q."""

    qkv: str
    out: str


@dataclass(frozen=True, slots=True)
class Attention(Op):
    """out = causal grouped-query attention of q over the paged cache."""

    q: str
    out: str


@dataclass(frozen=True, slots=True)
class SiluMul(Op):
    """out = silu(gate) * up, for x = [gate, up]."""

    x: str
    out: str


@dataclass(frozen=True, slots=True)
class AllReduce(Op):
    """out = sum of `part` over ranks; with `add`, out += that sum (the residual connection)."""

    part: str
    out: str
    add: bool


@dataclass(frozen=True, slots=True)
class Program:
    """The forward pass of a model; sampling is a family of its own (DESIGN: plans)."""

    ops: tuple[Op, ...]
    activations: str  # "bf16", "fp8-static" or "fp8-dynamic"
    kv_cache: str  # "bf16" or "fp8"
