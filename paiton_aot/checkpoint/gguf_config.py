"""Metadata of a GGUF file, read into a `ModelConfig`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import MAX_HEAD_DIM, MAX_LAYERS, Fields, shown
from paiton_aot.checkpoint.gguf_variants import Found, with_variant
from paiton_aot.checkpoint.rope import DEFAULT_ROPE_THETA, Llama3Scaling
from paiton_artifacts.errors import UnsupportedArchitectureError, UnsupportedError

ARCHITECTURES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""llama.cpp's names, and the classes in transformers. Its `llama` is Mistral, too."""

ROPE_FACTORS = "rope_freqs.weight"
SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
SCALINGS = {"gemma3": ("none", "linear"), "phi3": ("none", "longrope")}
"""Kinds of RoPE scaling by architecture; only "none" elsewhere."""

LLAMA3 = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192)
EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def parse_config(
    metadata: Mapping[str, object], what: str, *, tied: bool, rope_factors: Mapping[str, Sequence[float]]
) -> ModelConfig:
    """Returns the model's facts.

    Args:
        metadata: of the file.
        what: names the file in errors.
        tied: the file has no output matrix of its own.
        rope_factors: what llama.cpp divides the rotary frequencies by, by the names of the tensors that say so.

    Raises:
        UnsupportedArchitectureError: an architecture, or a variant of one, that we do not read.
        UnsupportedError: a kind of RoPE scaling that we do not compute, or a file that is one of several parts.
        CheckpointFormatError: a field is missing or of the wrong type.
    """
    fields = Fields(metadata, what)
    kind = _check_variant(fields)
    hidden = fields.integer(f"{kind}.embedding_length")
    heads = fields.integer(f"{kind}.attention.head_count")
    kv_heads = fields.integer(f"{kind}.attention.head_count_kv", heads)
    head_dim = fields.integer(f"{kind}.attention.key_length", hidden // heads, limit=MAX_HEAD_DIM)
    if heads % kv_heads:
        raise fields.error(f"{heads} attention heads for {kv_heads} KV heads, which do not divide them")
    whole = () if kind == "phi3" else (f"{kind}.rope.dimension_count",)
    for name in (*whole, f"{kind}.attention.value_length"):
        if fields.integer(name, head_dim) != head_dim:
            raise UnsupportedError(f"{what} has {name} {metadata[name]}", hint=f"supported: the head size, {head_dim}")
    tokens = metadata.get("tokenizer.ggml.tokens")
    vocab_size = fields.integer(f"{kind}.vocab_size", len(tokens) if isinstance(tokens, list) else None)
    theta = fields.number(f"{kind}.rope.freq_base", DEFAULT_ROPE_THETA)
    bos = fields.token_ids("tokenizer.ggml.bos_token_id", vocab_size)
    eos = [id_ for key in EOS_KEYS for id_ in fields.token_ids(f"tokenizer.ggml.{key}", vocab_size)]
    config = ModelConfig(
        architecture=ARCHITECTURES[kind],
        layers=fields.integer(f"{kind}.block_count", limit=MAX_LAYERS),
        hidden_size=hidden,
        intermediate_size=fields.integer(f"{kind}.feed_forward_length"),
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_position=fields.integer(f"{kind}.context_length"),
        rms_norm_eps=fields.number(f"{kind}.attention.layer_norm_rms_epsilon"),
        rope_theta=theta,
        rope_scaling=_scaling(rope_factors.get(ROPE_FACTORS), theta, head_dim, what),
        tied_embeddings=tied,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=tuple(dict.fromkeys(eos)),
    )
    rotary_dim = fields.integer(f"{kind}.rope.dimension_count", head_dim)
    short, long = (rope_factors.get(name, ()) for name in (SHORT_FACTORS, LONG_FACTORS))
    return with_variant(kind, Found(fields, config, rotary_dim, short, long))


def _check_variant(fields: Fields) -> str:
    """Returns llama.cpp's name of the architecture, unless the file holds a variant that we do not lower."""
    metadata, what = fields.values, fields.what
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"{what} has architecture {shown(architecture)}", hint=f"supported: {', '.join(ARCHITECTURES)}"
        )
    if metadata.get(f"{architecture}.expert_count", 0) != 0:
        raise UnsupportedArchitectureError(
            f"{what} has {shown(metadata[f'{architecture}.expert_count'])} experts",
            hint="supported: models without experts",
        )
    if metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedError(
            f"{what} is one of {shown(metadata['split.count'])} parts", hint="join them with llama-gguf-split --merge"
        )
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    linear = metadata.get(f"{architecture}.rope.scale_linear", 1.0)
    if scaling not in SCALINGS.get(architecture, ("none",)) or linear != 1.0:
        facts = f"rope.scaling.type {shown(scaling)}" if scaling != "none" else f"rope.scale_linear {shown(linear)}"
        raise UnsupportedError(
            f"{what} has {facts}", hint="supported: none, Llama 3's rope_freqs, linear in Gemma 3, longrope in Phi-3"
        )
    return architecture


def _scaling(factors: Sequence[float] | None, theta: float, head_dim: int, what: str) -> Llama3Scaling | None:
    """Recovers Llama 3's scaling from the factors that llama.cpp's converter made of it.

    The converter keeps the factors and drops the parameters. All published models share all but the largest factor.
    """
    if factors is None or all(factor == 1.0 for factor in factors):
        return None
    scaling = Llama3Scaling(max(factors), LLAMA3.low_freq_factor, LLAMA3.high_freq_factor, LLAMA3.original_max_position)
    expected = [_divisor(theta ** (-2 * i / head_dim), scaling) for i in range(head_dim // 2)]
    if len(factors) != len(expected) or not all(map(_close, factors, expected)):
        raise UnsupportedError(
            f"{what} has rotary factors ({ROPE_FACTORS}) other than Llama 3's",
            hint="build from the original checkpoint",
        )
    return scaling


def _divisor(frequency: float, scaling: Llama3Scaling) -> float:
    """Returns what Llama 3's scaling divides a rotary frequency by."""
    turns = scaling.original_max_position * frequency / (2 * math.pi)
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = min(1.0, max(0.0, smooth))
    return 1 / ((1 - smooth) / scaling.factor + smooth)


def _close(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=1e-4)
