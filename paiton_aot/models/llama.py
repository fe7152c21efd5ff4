"""Llama: RMSNorm, rotary grouped-query attention, SwiGLU; projections without bias.

Source: the architecture as published with Llama 2/3 and implemented by transformers' `LlamaForCausalLM`; llama3 RoPE
scaling after Meta's reference code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from paiton_aot.checkpoint.base import Checkpoint, Llama3Scaling, ModelConfig, read_scale
from paiton_aot.models.storage import SCALED, Storage
from paiton_aot.program import AllReduce, Attention, Embed, GatedMul, Linear, Op, Program, RmsNorm, RopeKvWrite
from paiton_aot.weights import ShardRule, Source, WeightSpec

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def program(checkpoint: Checkpoint, storage: Storage) -> Program:
    """Returns the ops of one step, embedding to logits."""
    ops: list[Op] = [Embed(None, "embed_tokens", "embedded"), AllReduce(None, "embedded", "x", add=False)]
    for layer in range(checkpoint.config.layers):
        ops += _layer_ops(layer)
    ops += [
        RmsNorm(None, "x", "norm", "last", gather=True),
        Linear(None, "last", head_name(checkpoint, storage), "logits"),
    ]
    return Program(tuple(ops), storage.activations, storage.kv_cache)


def _layer_ops(layer: int) -> list[Op]:
    prefix = f"layers.{layer}."
    return [
        RmsNorm(layer, "x", prefix + "input_norm", "attention_input"),
        Linear(layer, "attention_input", prefix + "qkv_proj", "qkv"),
        RopeKvWrite(layer, "qkv", "q"),
        Attention(layer, "q", "attended"),
        Linear(layer, "attended", prefix + "o_proj", "attention_output"),
        AllReduce(layer, "attention_output", "x", add=True),
        RmsNorm(layer, "x", prefix + "mlp_norm", "mlp_input"),
        Linear(layer, "mlp_input", prefix + "gate_up_proj", "gate_up"),
        GatedMul(layer, "gate_up", "activated"),
        Linear(layer, "activated", prefix + "down_proj", "mlp_output"),
        AllReduce(layer, "mlp_output", "x", add=True),
    ]


def head_name(checkpoint: Checkpoint, storage: Storage) -> str:
    """Returns the bundle tensor that serves as output head: a bf16 tied embedding serves as both."""
    shared = checkpoint.config.tied_embeddings and storage.of_head == "bf16"
    return "embed_tokens" if shared else "lm_head"


def weights(checkpoint: Checkpoint, storage: Storage) -> list[WeightSpec]:
    """Returns the bundle tensors in blob order: layers are laid out alike, one after the other."""
    config = checkpoint.config
    hidden = config.hidden_size
    vocabulary = (config.vocab_size, hidden)
    specs = [
        WeightSpec(
            "rope.inv_freq", (), "f32", compute=lambda _: inverse_frequencies(config), elements=config.head_dim // 2
        ),
        WeightSpec("embed_tokens", (Source(EMBEDDING, vocabulary, ShardRule.VOCAB),), "bf16"),
    ]
    for layer in range(config.layers):
        specs += _layer_weights(checkpoint, storage, layer)
    specs.append(WeightSpec("norm", (Source("model.norm.weight", (hidden,), ShardRule.REPLICATED),), "bf16"))
    if head_name(checkpoint, storage) == "lm_head":
        name = EMBEDDING if config.tied_embeddings else HEAD
        scale = "lm_head.scale" if storage.of_head in SCALED else ""
        specs.append(WeightSpec("lm_head", (Source(name, vocabulary, ShardRule.VOCAB),), storage.of_head, scale))
    return specs


def _layer_weights(checkpoint: Checkpoint, storage: Storage, layer: int) -> list[WeightSpec]:
    config = checkpoint.config
    hidden, inter = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.attention_heads * config.head_dim, config.kv_heads * config.head_dim
    source, bundle = f"model.layers.{layer}.", f"layers.{layer}."

    def norm(name: str, stored: str) -> WeightSpec:
        return WeightSpec(bundle + name, (Source(f"{source}{stored}.weight", (hidden,), ShardRule.REPLICATED),), "bf16")

    def linear(name: str, *parts: tuple[str, int, int, ShardRule]) -> list[WeightSpec]:
        modules = [source + module for module, *_ in parts]
        dtype = storage.of_linear(checkpoint, modules)
        sources = tuple(Source(f"{source}{m}.weight", (rows, cols), rule) for m, rows, cols, rule in parts)
        scale = f"{bundle}{name}.scale" if dtype in SCALED else ""
        specs = [WeightSpec(bundle + name, sources, dtype, scale)]
        if storage.activations == "fp8-static" and dtype == "fp8_e4m3fn":
            specs.append(_input_scale(bundle + name, modules))
        return specs

    return [
        norm("input_norm", "input_layernorm"),
        *linear(
            "qkv_proj",
            ("self_attn.q_proj", q_rows, hidden, ShardRule.COLUMN),
            ("self_attn.k_proj", kv_rows, hidden, ShardRule.KV_HEAD),
            ("self_attn.v_proj", kv_rows, hidden, ShardRule.KV_HEAD),
        ),
        *_kv_scales(storage, layer),
        *linear("o_proj", ("self_attn.o_proj", hidden, q_rows, ShardRule.ROW)),
        norm("mlp_norm", "post_attention_layernorm"),
        *linear(
            "gate_up_proj",
            ("mlp.gate_proj", inter, hidden, ShardRule.COLUMN),
            ("mlp.up_proj", inter, hidden, ShardRule.COLUMN),
        ),
        *linear("down_proj", ("mlp.down_proj", hidden, inter, ShardRule.ROW)),
    ]


def _input_scale(name: str, modules: Sequence[str]) -> WeightSpec:
    """Static activation scale of fused modules: the largest of theirs, since they share one input."""

    def compute(checkpoint: Checkpoint) -> Sequence[float]:
        names = [f"{module}.input_scale" for module in modules]
        return [max(read_scale({name: checkpoint.tensor(name)}, name) for name in names)]

    return WeightSpec(f"{name}.input_scale", (), "f32", compute=compute)


def _kv_scales(storage: Storage, layer: int) -> list[WeightSpec]:
    if storage.kv_cache != "fp8":
        return []

    def compute(which: int) -> Callable[[Checkpoint], Sequence[float]]:
        return lambda checkpoint: [checkpoint.kv_scales(layer)[which]]

    return [
        WeightSpec(f"layers.{layer}.k_scale", (), "f32", compute=compute(0)),
        WeightSpec(f"layers.{layer}.v_scale", (), "f32", compute=compute(1)),
    ]


def inverse_frequencies(config: ModelConfig) -> list[float]:
    """Returns the head_dim / 2 rotary inverse frequencies (f32 values), llama3 scaling applied.

    The powers are taken in f32, as transformers takes them.
    """
    import numpy as np  # noqa: PLC0415  (the command line must start without it)

    exponents = np.arange(0, config.head_dim, 2, dtype=np.int64).astype(np.float32) / np.float32(config.head_dim)
    base = (np.float32(1.0) / np.power(np.float32(config.rope_theta), exponents)).astype(np.float32)
    if config.rope_scaling is None:
        return [float(value) for value in base]
    return [float(np.float32(_llama3(float(value), config.rope_scaling))) for value in base]


def _llama3(frequency: float, scaling: Llama3Scaling) -> float:
    """Scales one inverse frequency: long wavelengths by 1/factor, short ones not, a linear blend between."""
    wavelength = 2 * math.pi / frequency
    context = scaling.original_max_position
    if wavelength < context / scaling.high_freq_factor:
        return frequency
    if wavelength > context / scaling.low_freq_factor:
        return frequency / scaling.factor
    smooth = (context / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency
