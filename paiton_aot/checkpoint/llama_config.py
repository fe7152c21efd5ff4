"""config.json of a Hugging Face checkpoint, read into a `ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping

from paiton_aot.checkpoint.base import Llama3Scaling, ModelConfig
from paiton_aot.checkpoint.fields import MAX_HEAD_DIM, MAX_LAYERS, Fields, shown
from paiton_artifacts.errors import UnsupportedArchitectureError, UnsupportedError

ARCHITECTURES = ("LlamaForCausalLM",)
DEFAULT_ROPE_THETA = 10_000.0


def parse_config(config: Mapping[str, object], generation: Mapping[str, object], what: str) -> ModelConfig:
    """Returns the model's facts.

    Args:
        config: the content of config.json, as transformers 4 or 5 writes it.
        generation: the content of generation_config.json; its end-of-sequence ids have precedence.
        what: names config.json in errors.

    Raises:
        UnsupportedArchitectureError: another architecture than Llama, or a variant of it that we do not lower.
        UnsupportedError: a kind of RoPE scaling that we do not compute.
        CheckpointFormatError: a field is missing or contradicts another.
    """
    fields = Fields(config, what)
    architecture = check_architecture(config.get("architectures"), what)
    _check_variant(fields)
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    vocab_size = fields.integer("vocab_size")
    rope_theta, rope_scaling = _rope(fields)
    eos = Fields(generation, "generation_config.json").token_ids("eos_token_id", vocab_size)
    bos = fields.token_ids("bos_token_id", vocab_size)
    if heads % kv_heads:
        raise fields.error(f"{heads} attention heads for {kv_heads} KV heads, which do not divide them")
    return ModelConfig(
        architecture=architecture,
        layers=fields.integer("num_hidden_layers", limit=MAX_LAYERS),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=fields.integer("head_dim", hidden // heads, limit=MAX_HEAD_DIM),
        vocab_size=vocab_size,
        max_position=fields.integer("max_position_embeddings", 2048),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=eos or fields.token_ids("eos_token_id", vocab_size),
    )


def check_architecture(architectures: object, what: str) -> str:
    """Returns the architecture that config.json names.

    Raises:
        UnsupportedArchitectureError: it names none, or one that we do not lower.
    """
    named = architectures if isinstance(architectures, list) else []
    for architecture in ARCHITECTURES:
        if architecture in named:
            return architecture
    names = shown(named) if named else "no architecture"
    raise UnsupportedArchitectureError(f"{what} names {names}", hint=f"supported: {', '.join(ARCHITECTURES)}")


def _check_variant(fields: Fields) -> None:
    for name in ("attention_bias", "mlp_bias"):
        if fields.flag(name):
            raise UnsupportedArchitectureError(
                f"{fields.what} has {name} true", hint="Llama models without biases are supported"
            )
    activation = fields.values.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedArchitectureError(f"{fields.what} has hidden_act {shown(activation)}", hint="supported: silu")


def _rope(fields: Fields) -> tuple[float, Llama3Scaling | None]:
    """Reads `rope_parameters` (transformers 5), else `rope_theta` and `rope_scaling`."""
    theta = fields.number("rope_theta", DEFAULT_ROPE_THETA)
    rope = fields.section("rope_parameters") or fields.section("rope_scaling")
    if rope is None:
        return theta, None
    theta = rope.number("rope_theta", theta)
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError(f"{rope.what} rotates a part of each head", hint="supported: partial_rotary_factor 1")
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UnsupportedError(f"{rope.what} has rope_type {shown(kind)}", hint="supported: default, llama3")
    return theta, Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position=rope.integer(
            "original_max_position_embeddings", fields.integer("max_position_embeddings", 2048)
        ),
    )
