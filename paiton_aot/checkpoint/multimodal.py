"""Checkpoints of multimodal models, of which the text model is built: its configuration, and its tensors' names.

Vision towers and projectors are left out; a bundle takes tokens of text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from paiton_aot.checkpoint.fields import Fields
from paiton_artifacts.errors import DuplicateTensorError

MODULES = {
    "language_model.model": "model",
    "language_model.lm_head": "lm_head",
    "model.language_model": "model",
    "language_model": "model",
}
"""What the text model's parts are called, on the hub and by transformers since; and in a checkpoint of their own."""

LEFT_OUT = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
"""What the names of all other tensors begin with."""


@dataclass(frozen=True, slots=True)
class TextModel:
    """The text model of a multimodal one.

    Attributes:
        architecture: its class in transformers.
        defaults: fields of `text_config` that releases leave out where they are those of transformers' class.
    """

    architecture: str
    defaults: Mapping[str, object]


TEXT_MODELS: Mapping[str, TextModel] = {
    "Gemma3ForConditionalGeneration": TextModel(
        "Gemma3ForCausalLM",
        {
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
            "bos_token_id": 2,
            "eos_token_id": 1,
        },
    )
}
"""By the multimodal model's class in transformers."""


def text_config(config: Mapping[str, object], what: str) -> Mapping[str, object]:
    """Returns the configuration of the text model in a multimodal one's config.json, any other as it is.

    Token ids, quantisation and `tie_word_embeddings` stand outside `text_config` in such files, or in both.

    Args:
        config: the content of config.json.
        what: names it in errors.

    Raises:
        CheckpointFormatError: it has no text_config.
    """
    classes = config.get("architectures")
    named = classes if isinstance(classes, list) else []
    model = next((TEXT_MODELS[name] for name in named if isinstance(name, str) and name in TEXT_MODELS), None)
    if model is None:
        return config
    fields = Fields(config, what)
    section = fields.section("text_config")
    if section is None:
        raise fields.error("no text_config, which holds what the language model is")
    outer = {
        name: config[name]
        for name in ("_name_or_path", "bos_token_id", "eos_token_id", "tie_word_embeddings", "dtype", "torch_dtype")
        if config.get(name) is not None
    }
    quantization = {
        name: _with_text_names(value) if isinstance(value := config[name], dict) else value
        for name in ("quantization_config", "compression_config")
        if config.get(name) is not None
    }
    given = {name: value for name, value in section.values.items() if value is not None}
    return {**model.defaults, **given, **outer, **quantization, "architectures": [model.architecture]}


def _with_text_names(quantization: Mapping[str, object]) -> dict[str, object]:
    """Returns a quantisation whose lists of modules name them as in a checkpoint of the text model."""
    return {
        name: [text_name(item) if isinstance(item, str) else item for item in value]
        if isinstance(value, list)
        else value
        for name, value in quantization.items()
    }


def text_name(name: str) -> str:
    """Returns the name of a tensor or module of the text model in a checkpoint of its own."""
    for module, own in MODULES.items():
        if name == module or name.startswith(f"{module}."):
            return own + name[len(module) :]
    return name


def text_names(names: Iterable[str]) -> dict[str, str]:
    """Returns the tensors of the text model: by their names in a checkpoint of their own, those that they have.

    Raises:
        DuplicateTensorError: two of them have one name there.
    """
    found: dict[str, str] = {}
    for name in names:
        if name.startswith(LEFT_OUT):
            continue
        own = text_name(name)
        if own in found:
            raise DuplicateTensorError(f"tensor {own} is stored as {found[own]} and as {name}", hint="save it again")
        found[own] = name
    return found
