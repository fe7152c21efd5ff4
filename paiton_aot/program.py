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
    """out[t] = weight[token_ids[t]] * scale, zeros where the row belongs to another rank."""

    weight: str
    out: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class RmsNorm(Op):
    """out = x / rms(x) * (weight + offset). With `gather`, only the rows that need logits, in their order."""

    x: str
    weight: str
    out: str
    gather: bool = False
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class RmsNormAdd(Op):
    """out += part / rms(part) * (weight + offset): a norm between a block and its residual connection."""

    part: str
    weight: str
    out: str
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Linear(Op):
    """out = x @ weight.T + bias, with the activation mode of the program; "" is no bias.

    With a `softcap`, out = softcap * tanh(out / softcap).
    """

    x: str
    weight: str
    out: str
    bias: str = ""
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class RopeKvWrite(Op):
    """Splits fused qkv, rotates q and k, writes k and v to the paged cache; out = q.

    With `q_norm` and `k_norm`, every head of q and k goes through an RMSNorm of that weight, of head_dim elements, plus
    `norm_offset`, before it is rotated. `inv_freq` names the inverse frequencies.
    """

    qkv: str
    out: str
    inv_freq: str = "rope.inv_freq"
    q_norm: str = ""
    k_norm: str = ""
    norm_offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Attention(Op):
    """out = causal grouped-query attention of q over the paged cache.

    Attributes:
        scale: of the scores; 0 is head_dim ** -0.5.
        window: tokens that a token sees, itself included; 0 is all before it.
        softcap: scores become softcap * tanh(score / softcap); 0 is none.
    """

    q: str
    out: str
    scale: float = 0.0
    window: int = 0
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class GatedMul(Op):
    """out = activation(gate) * up, for x = [gate, up]."""

    x: str
    out: str
    activation: str = "silu"  # or "gelu_tanh"


@dataclass(frozen=True, slots=True)
class Route(Op):
    """Chooses the experts of every token: probabilities = softmax over experts of x @ weight.T, in f32.

    out[t] = the `top_k` largest probabilities and their experts, the largest first, of equal ones the lower expert;
    with `normalise`, they are divided by their sum. Every rank chooses the same.
    """

    x: str
    weight: str
    out: str
    experts: int
    top_k: int
    normalise: bool


@dataclass(frozen=True, slots=True)
class ExpertLinear(Op):
    """out[t, j] = x[t] (or x[t, j]) @ W.T, W being the rows of `weight` that belong to the j-th expert of token t.

    `weight` holds the matrices of all experts below one another. Ranks share each expert's matrix as they share a
    `Linear`'s.
    """

    x: str
    routes: str
    weight: str
    out: str
    experts: int


@dataclass(frozen=True, slots=True)
class ExpertSum(Op):
    """out[t] = sum over j of probability[t, j] * x[t, j], in the order of j."""

    x: str
    routes: str
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

    @property
    def rope_tables(self) -> dict[str, str]:
        """Inverse frequencies that heads are rotated by, and the value that holds their cosines and sines."""
        names = (op.inv_freq for op in self.ops if isinstance(op, RopeKvWrite))
        return {name: name.removesuffix(".inv_freq") for name in names}
