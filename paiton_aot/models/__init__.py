"""Architectures: one file each, from a checkpoint's configuration to a program and its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paiton_aot.checkpoint.base import Checkpoint
from paiton_aot.models import llama
from paiton_aot.models.storage import Storage
from paiton_aot.program import Program
from paiton_aot.weights import WeightSpec
from paiton_artifacts.errors import UnsupportedArchitectureError


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one architecture is lowered."""

    program: Callable[[Checkpoint, Storage], Program]
    weights: Callable[[Checkpoint, Storage], list[WeightSpec]]


ARCHITECTURES = {"LlamaForCausalLM": Architecture(llama.program, llama.weights)}


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """Returns the lowering of a checkpoint's architecture.

    Raises:
        UnsupportedArchitectureError: there is none.
    """
    name = checkpoint.config.architecture
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedArchitectureError(f"architecture {name} is not supported", hint=f"supported: {known}")
    return ARCHITECTURES[name]
