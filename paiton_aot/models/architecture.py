"""What an architecture's file declares, and what such files have in common when they read config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from paiton_aot.checkpoint.base import Checkpoint, Experts, ModelConfig
from paiton_aot.checkpoint.fields import Fields, shown
from paiton_aot.models.decoder import Decoder
from paiton_aot.models.storage import Storage
from paiton_aot.program import Program
from paiton_aot.weights import WeightSpec
from paiton_artifacts.errors import UnsupportedArchitectureError, UnsupportedShapeError
from paiton_kernels.spec import MAX_EXPERTS, MAX_TOP_K

LOCAL, FULL = "sliding_attention", "full_attention"

Fused = Mapping[str, Sequence[tuple[str, int]]]
"""Modules that are one on disk: its name within a layer, then the names and rows of those that it is made of."""


def _nothing_fused(_config: ModelConfig) -> Fused:
    return {}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one architecture is read and lowered.

    Attributes:
        name: its class in transformers, e.g. "LlamaForCausalLM".
        configure: adds what config.json says of this architecture to the facts that all have; refuses variants.
        build: adds its layers to a decoder, which makes ops and weights of them.
        fused: the modules of a layer that are one on disk, which are read as those that they are made of.
    """

    name: str
    configure: Callable[[Fields, ModelConfig], ModelConfig]
    build: Callable[[Decoder], None]
    fused: Callable[[ModelConfig], Fused] = _nothing_fused

    def program(self, checkpoint: Checkpoint, storage: Storage) -> Program:
        """Returns the ops of one step, embedding to logits."""
        return self._decoder(checkpoint, storage).program()

    def weights(self, checkpoint: Checkpoint, storage: Storage) -> list[WeightSpec]:
        """Returns the bundle tensors in blob order: layers are laid out alike, one after the other."""
        return self._decoder(checkpoint, storage).specs

    def _decoder(self, checkpoint: Checkpoint, storage: Storage) -> Decoder:
        decoder = Decoder(checkpoint, storage)
        self.build(decoder)
        return decoder


def expect_activation(fields: Fields, name: str, *expected: str) -> None:
    """Checks the activation of the MLP, which field `name` holds; null is the first of the expected ones.

    Raises:
        UnsupportedArchitectureError: it is another.
    """
    activation = fields.values.get(name)
    if activation is not None and activation not in expected:
        raise UnsupportedArchitectureError(
            f"{fields.what} has {name} {shown(activation)}", hint=f"supported: {', '.join(expected)}"
        )


def expect_false(fields: Fields, *names: str) -> None:
    """Checks that none of the flags `names` is set.

    Raises:
        UnsupportedArchitectureError: one is.
    """
    for name in names:
        if fields.flag(name):
            raise UnsupportedArchitectureError(f"{fields.what} has {name} true", hint="supported: false")


def same_window(config: ModelConfig, window: int) -> tuple[int, ...]:
    """Returns `ModelConfig.windows` of a model whose layers all have this window; one that no context fills is none."""
    return (window if window < config.max_position else 0,) * config.layers


def read_windows(fields: Fields, config: ModelConfig, window: int, is_local: Callable[[int], bool]) -> tuple[int, ...]:
    """Returns `ModelConfig.windows`: layers with a window are those that `layer_types` says, else those of `is_local`.

    Raises:
        CheckpointFormatError: `layer_types` names not one type for every layer.
    """
    kinds = fields.strings("layer_types") or [LOCAL if is_local(layer) else FULL for layer in range(config.layers)]
    if len(kinds) != config.layers or not {*kinds} <= {LOCAL, FULL}:
        raise fields.error(f"layer_types {shown(kinds)}, expected {LOCAL} or {FULL} for each of {config.layers} layers")
    everywhere = same_window(config, window)
    return tuple(size if kind == LOCAL else 0 for kind, size in zip(kinds, everywhere, strict=True))


def read_experts(
    fields: Fields, count_name: str, defaults: tuple[int, int], *, intermediate_size: int, normalise: bool
) -> Experts:
    """Returns `ModelConfig.experts` of a model whose layers all have them.

    Args:
        fields: the content of config.json.
        count_name: what it calls the number of experts.
        defaults: that number, and the experts of a token, where it says nothing.
        intermediate_size: of one expert.
        normalise: see `Experts`.

    Raises:
        UnsupportedShapeError: more experts than kernels can choose from, or more for a token than they can choose.
        CheckpointFormatError: a token goes through more experts than there are.
    """
    count = fields.integer(count_name, defaults[0])
    per_token = fields.integer("num_experts_per_tok", defaults[1])
    for name, value, most in ((count_name, count, MAX_EXPERTS), ("num_experts_per_tok", per_token, MAX_TOP_K)):
        if value > most:
            raise UnsupportedShapeError(f"{fields.what} has {name} {value}", hint=f"supported: at most {most}")
    if per_token > count:
        raise fields.error(f"num_experts_per_tok {per_token}, more than {count_name} {count}")
    return Experts(count, per_token, intermediate_size, normalise)
