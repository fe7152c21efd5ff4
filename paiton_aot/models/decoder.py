"""The blocks that decoder-only transformers are made of: each adds its ops and the bundle tensors that they name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paiton_aot.checkpoint.base import Checkpoint
from paiton_aot.checkpoint.rope import RopeScaling
from paiton_aot.models.frequencies import inverse_frequencies, score_factor
from paiton_aot.models.storage import SCALED, Storage
from paiton_aot.program import (
    AllReduce,
    Attention,
    Embed,
    ExpertLinear,
    ExpertSum,
    GatedMul,
    Linear,
    Op,
    Program,
    RmsNorm,
    RmsNormAdd,
    RopeKvWrite,
    Route,
)
from paiton_aot.weights import ShardRule, Source, WeightSpec
from paiton_artifacts.errors import UnsupportedQuantizationError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
ROPE = "rope.inv_freq"


@dataclass(frozen=True, slots=True)
class _Projection:
    """One module of a linear layer: its name within the layer, rows, columns and sharding rule."""

    module: str
    rows: int
    cols: int
    rule: ShardRule


class Decoder:
    """A decoder-only transformer under construction: an architecture adds its parts in the order of their execution.

    Attributes:
        config: the model's facts.
        specs: the bundle tensors so far, in blob order.
        norm_offset: what RMSNorms add to their weights; set it before the first part.
    """

    def __init__(self, checkpoint: Checkpoint, storage: Storage) -> None:
        self.config = checkpoint.config
        self.specs: list[WeightSpec] = []
        self.norm_offset = 0.0
        self._checkpoint = checkpoint
        self._storage = storage
        self._ops: list[Op] = []

    @property
    def layers(self) -> range:
        """The numbers of the layers."""
        return range(self.config.layers)

    def program(self) -> Program:
        """Returns the ops of one step."""
        return Program(tuple(self._ops), self._storage.activations, self._storage.kv_cache)

    def frequencies(self, name: str, theta: float, scaling: RopeScaling | None) -> None:
        """Adds a table of rotary inverse frequencies."""
        values = inverse_frequencies(
            self.config.head_dim,
            theta,
            scaling,
            rotary_dim=self.config.rotary_dim,
            context=self._storage.context,
        )
        self.specs.append(WeightSpec(name, (), "f32", compute=lambda _: values, elements=len(values)))

    def embed(self, *, scaled: bool = False) -> None:
        """Adds the embedding and the frequencies of RoPE; `scaled`: rows are multiplied by sqrt(hidden size)."""
        self.frequencies(ROPE, self.config.rope_theta, self.config.rope_scaling)
        scale = self._rounded_like_embedding(self.config.hidden_size**0.5) if scaled else 1.0
        vocabulary = (self.config.vocab_size, self.config.hidden_size)
        self.specs.append(WeightSpec("embed_tokens", (Source(EMBEDDING, vocabulary, ShardRule.VOCAB),), "bf16"))
        self._ops += [
            Embed(None, "embed_tokens", "embedded", scale=scale),
            AllReduce(None, "embedded", "x", add=False),
        ]

    def attention(
        self,
        layer: int,
        *,
        norm: str,
        post_norm: str = "",
        bias: bool = False,
        head_norms: bool = False,
        inv_freq: str = ROPE,
    ) -> None:
        """Adds the attention of a layer, with its residual connection.

        Args:
            layer: its number.
            norm: the module of the norm in front, e.g. "input_layernorm".
            post_norm: the module of a norm between the block and its residual connection, "" where there is none.
            bias: q, k and v have biases.
            head_norms: q and k go through `self_attn.q_norm` and `self_attn.k_norm` before RoPE.
            inv_freq: the frequencies that it rotates by.
        """
        config, prefix = self.config, f"layers.{layer}."
        hidden, q_rows, kv_rows = (
            config.hidden_size,
            config.attention_heads * config.head_dim,
            config.kv_heads * config.head_dim,
        )
        self._norm(layer, "x", "input_norm", norm, "attention_input")
        self._linear(
            layer,
            Linear(layer, "attention_input", prefix + "qkv_proj", "qkv", bias=prefix + "qkv_proj.bias" if bias else ""),
            _Projection("self_attn.q_proj", q_rows, hidden, ShardRule.COLUMN),
            _Projection("self_attn.k_proj", kv_rows, hidden, ShardRule.KV_HEAD),
            _Projection("self_attn.v_proj", kv_rows, hidden, ShardRule.KV_HEAD),
        )
        q_norm, k_norm = (
            (self._norm_weight(layer, f"{which}_norm", f"self_attn.{which}_norm", config.head_dim) for which in "qk")
            if head_norms
            else ("", "")
        )
        self._ops += [
            RopeKvWrite(
                layer, "qkv", "q", inv_freq, q_norm, k_norm, norm_offset=self.norm_offset if head_norms else 0.0
            ),
            Attention(layer, "q", "attended", self._scale(inv_freq), config.window(layer), config.score_softcap),
        ]
        self._kv_scales(layer)
        self._linear(
            layer,
            Linear(layer, "attended", prefix + "o_proj", "attention_output"),
            _Projection("self_attn.o_proj", hidden, q_rows, ShardRule.ROW),
        )
        self._residual(layer, "attention_output", "attention_post_norm", post_norm)

    def mlp(self, layer: int, *, norm: str, post_norm: str = "", activation: str = "silu") -> None:
        """Adds the gated MLP of a layer, with its residual connection; see `attention` and `program.GatedMul`."""
        hidden, inter, prefix = self.config.hidden_size, self.config.intermediate_size, f"layers.{layer}."
        self._norm(layer, "x", "mlp_norm", norm, "mlp_input")
        self._linear(
            layer,
            Linear(layer, "mlp_input", prefix + "gate_up_proj", "gate_up"),
            _Projection("mlp.gate_proj", inter, hidden, ShardRule.COLUMN),
            _Projection("mlp.up_proj", inter, hidden, ShardRule.COLUMN),
        )
        self._ops.append(GatedMul(layer, "gate_up", "activated", activation))
        self._linear(
            layer,
            Linear(layer, "activated", prefix + "down_proj", "mlp_output"),
            _Projection("mlp.down_proj", hidden, inter, ShardRule.ROW),
        )
        self._residual(layer, "mlp_output", "mlp_post_norm", post_norm)

    def moe(self, layer: int, *, norm: str, block: str, experts: tuple[str, str, str]) -> None:
        """Adds the mixture of experts of a layer, with its residual connection.

        Args:
            layer: its number.
            norm: the module of the norm in front.
            block: the module, e.g. "mlp", with a router "gate" and "experts", which are numbered.
            experts: what the gate, up and down projections are called within an expert.
        """
        facts, hidden = self.config.experts, self.config.hidden_size
        if facts is None:
            raise ValueError(f"{self.config.architecture} has no experts")
        count, inter = facts.count, facts.intermediate_size
        prefix, (gate, up, down) = f"layers.{layer}.", experts
        modules = [f"{block}.experts.{index}." for index in range(count)]
        self._norm(layer, "x", "mlp_norm", norm, "mlp_input")
        router = self._router(layer, f"{block}.gate", count)
        self._ops.append(Route(layer, "mlp_input", router, "routes", count, facts.per_token, normalise=facts.normalise))
        self._linear(
            layer,
            ExpertLinear(layer, "mlp_input", "routes", prefix + "experts.gate_up_proj", "gate_up", count),
            *(_Projection(module + name, inter, hidden, ShardRule.COLUMN) for module in modules for name in (gate, up)),
        )
        self._ops.append(GatedMul(layer, "gate_up", "activated"))
        self._linear(
            layer,
            ExpertLinear(layer, "activated", "routes", prefix + "experts.down_proj", "expert_output", count),
            *(_Projection(module + down, hidden, inter, ShardRule.ROW) for module in modules),
        )
        self._ops.append(ExpertSum(layer, "expert_output", "routes", "mlp_output"))
        self._residual(layer, "mlp_output", "", "")

    def head(self) -> None:
        """Adds the last norm and the output head."""
        config, storage = self.config, self._storage
        vocabulary = (config.vocab_size, config.hidden_size)
        norm = (Source("model.norm.weight", (config.hidden_size,), ShardRule.REPLICATED),)
        self.specs.append(WeightSpec("norm", norm, "bf16"))
        # A bf16 embedding that is tied serves as head too.
        name = "embed_tokens" if config.tied_embeddings and storage.of_head == "bf16" else "lm_head"
        if name == "lm_head":
            source = Source(EMBEDDING if config.tied_embeddings else HEAD, vocabulary, ShardRule.VOCAB)
            scale = "lm_head.scale" if storage.of_head in SCALED else ""
            self.specs.append(WeightSpec("lm_head", (source,), storage.of_head, scale))
        self._ops += [
            RmsNorm(None, "x", "norm", "last", gather=True, offset=self.norm_offset),
            Linear(None, "last", name, "logits", softcap=config.logit_softcap),
        ]

    def _scale(self, inv_freq: str) -> float:
        """Returns `Attention.scale` of a layer that rotates by these frequencies."""
        factor = score_factor(self.config.rope_scaling) if inv_freq == ROPE else 1.0
        if factor == 1.0:
            return self.config.score_scale
        return factor * (self.config.score_scale or self.config.head_dim**-0.5)

    def _norm_weight(self, layer: int, name: str, module: str, elements: int) -> str:
        source = Source(f"model.layers.{layer}.{module}.weight", (elements,), ShardRule.REPLICATED)
        self.specs.append(WeightSpec(f"layers.{layer}.{name}", (source,), "bf16"))
        return f"layers.{layer}.{name}"

    def _norm(self, layer: int, x: str, name: str, module: str, out: str) -> None:
        weight = self._norm_weight(layer, name, module, self.config.hidden_size)
        self._ops.append(RmsNorm(layer, x, weight, out, offset=self.norm_offset))

    def _router(self, layer: int, module: str, experts: int) -> str:
        """Adds the weights of a router, which every rank holds."""
        module = f"model.layers.{layer}.{module}"
        if self._checkpoint.quantization and self._checkpoint.quantization.is_quantized(module):
            raise UnsupportedQuantizationError(
                f"checkpoint {self._checkpoint.name} quantises the router {module}", hint="leave routers in bf16"
            )
        source = Source(f"{module}.weight", (experts, self.config.hidden_size), ShardRule.REPLICATED)
        self.specs.append(WeightSpec(f"layers.{layer}.router", (source,), "bf16"))
        return f"layers.{layer}.router"

    def _linear(self, layer: int, op: Linear | ExpertLinear, *parts: _Projection) -> None:
        modules = [f"model.layers.{layer}.{part.module}" for part in parts]
        dtype = self._storage.of_linear(self._checkpoint, modules)
        sources = tuple(
            Source(f"{module}.weight", (part.rows, part.cols), part.rule)
            for module, part in zip(modules, parts, strict=True)
        )
        scale = f"{op.weight}.scale" if dtype in SCALED else ""
        self.specs.append(WeightSpec(op.weight, sources, dtype, scale))
        if self._storage.activations == "fp8-static" and dtype == "fp8_e4m3fn":
            self.specs.append(_input_scale(op.weight, modules))
        if isinstance(op, Linear) and op.bias:
            biases = (
                Source(f"{module}.bias", (part.rows,), part.rule) for module, part in zip(modules, parts, strict=True)
            )
            self.specs.append(WeightSpec(op.bias, tuple(biases), "f32"))
        self._ops.append(op)

    def _residual(self, layer: int, part: str, name: str, post_norm: str) -> None:
        if not post_norm:
            self._ops.append(AllReduce(layer, part, "x", add=True))
            return
        weight = self._norm_weight(layer, name, post_norm, self.config.hidden_size)
        self._ops += [
            AllReduce(layer, part, "block_output", add=False),
            RmsNormAdd(layer, "block_output", weight, "x", offset=self.norm_offset),
        ]

    def _rounded_like_embedding(self, value: float) -> float:
        """Returns a constant in the dtype of the embedding, in which models are run that are trained with it."""
        import numpy as np  # noqa: PLC0415  (the command line must start without it)

        from paiton_aot.checkpoint.base import NUMPY_DTYPES  # noqa: PLC0415  (beside numpy)

        return float(np.asarray(value).astype(NUMPY_DTYPES[self._checkpoint.tensor(EMBEDDING).dtype]))

    def _kv_scales(self, layer: int) -> None:
        if self._storage.kv_cache != "fp8":
            return

        def compute(which: int) -> Callable[[Checkpoint], Sequence[float]]:
            return lambda checkpoint: [checkpoint.kv_scales(layer)[which]]

        self.specs += [
            WeightSpec(f"layers.{layer}.k_scale", (), "f32", compute=compute(0)),
            WeightSpec(f"layers.{layer}.v_scale", (), "f32", compute=compute(1)),
        ]


def _input_scale(name: str, modules: Sequence[str]) -> WeightSpec:
    """Static activation scale of fused modules: the largest of theirs, since they share one input."""

    def compute(checkpoint: Checkpoint) -> Sequence[float]:
        return [max(checkpoint.input_scale(module) for module in modules)]

    return WeightSpec(f"{name}.input_scale", (), "f32", compute=compute)
