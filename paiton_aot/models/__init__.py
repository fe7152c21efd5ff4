"""Architectures: one file each, from a checkpoint's configuration to a program and its weights."""

from __future__ import annotations

from paiton_aot.checkpoint.base import Checkpoint
from paiton_aot.checkpoint.multimodal import TEXT_MODELS
from paiton_aot.models.architecture import Architecture
from paiton_aot.models.gemma import GEMMA
from paiton_aot.models.gemma2 import GEMMA2
from paiton_aot.models.gemma3 import GEMMA3
from paiton_aot.models.llama import LLAMA
from paiton_aot.models.mistral import MISTRAL
from paiton_aot.models.mixtral import MIXTRAL
from paiton_aot.models.phi3 import PHI3
from paiton_aot.models.qwen2 import QWEN2
from paiton_aot.models.qwen3 import QWEN3
from paiton_aot.models.qwen3_moe import QWEN3_MOE
from paiton_artifacts.errors import UnsupportedArchitectureError

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE, PHI3, GEMMA, GEMMA2, GEMMA3)
}
"""Every architecture by its class in transformers."""


def architecture_named(name: str, what: str) -> Architecture:
    """Returns an architecture by its class in transformers, which `what` (a file or a checkpoint) names.

    Raises:
        UnsupportedArchitectureError: there is none of this name.
    """
    if name not in ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"{what} names {f'architecture {name}' if name else 'no architecture'}",
            hint=f"supported: {', '.join(sorted({*ARCHITECTURES, *TEXT_MODELS}))}",
        )
    return ARCHITECTURES[name]


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """Returns the lowering of a checkpoint's architecture.

    Raises:
        UnsupportedArchitectureError: there is none.
    """
    return architecture_named(checkpoint.config.architecture, checkpoint.name)
