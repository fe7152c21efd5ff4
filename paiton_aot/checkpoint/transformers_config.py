"""What config.json of a Hugging Face checkpoint says of every decoder-only transformer, read into a `ModelConfig`.

What is particular to an architecture is read by its file in paiton_aot/models.
"""

from __future__ import annotations

from collections.abc import Mapping

from paiton_aot.checkpoint.base import ModelConfig
from paiton_aot.checkpoint.fields import MAX_HEAD_DIM, MAX_LAYERS, Fields
from paiton_aot.checkpoint.rope import expect_whole_heads, read_rope

DEFAULT_MAX_POSITION = 2048


def parse_config(config: Mapping[str, object], generation: Mapping[str, object], what: str) -> ModelConfig:
    """Returns the model's facts.

    Args:
        config: the content of config.json, as transformers 4 or 5 writes it.
        generation: the content of generation_config.json; its end-of-sequence ids have precedence.
        what: names config.json in errors.

    Raises:
        UnsupportedArchitectureError: an architecture, or a variant of one, that we do not lower.
        UnsupportedError: a kind of RoPE scaling that we do not compute.
        CheckpointFormatError: a field is missing or contradicts another.
    """
    from paiton_aot.models import ARCHITECTURES, architecture_named  # noqa: PLC0415  (they are made of checkpoints)

    fields = Fields(config, what)
    architecture = architecture_named(_named(config.get("architectures"), tuple(ARCHITECTURES)), what)
    facts = architecture.configure(fields, _common(fields, generation, architecture.name))
    if not facts.rotary_dim:
        expect_whole_heads(fields)
    return facts


def _named(architectures: object, known: tuple[str, ...]) -> str:
    """Returns the architecture that config.json names: one that we know, else as it stands there."""
    named = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    return next((name for name in named if name in known), ", ".join(named))


def _common(fields: Fields, generation: Mapping[str, object], architecture: str) -> ModelConfig:
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    vocab_size = fields.integer("vocab_size")
    rope_theta, rope_scaling = read_rope(fields)
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
        max_position=fields.integer("max_position_embeddings", DEFAULT_MAX_POSITION),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=eos or fields.token_ids("eos_token_id", vocab_size),
    )
