"""How each weight of a model is stored: decided once from the checkpoint's format and the build's flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paiton_aot.checkpoint.base import Checkpoint
from paiton_aot.options import BuildOptions
from paiton_artifacts.errors import UnsupportedQuantizationError, UsageError

SCALED = ("fp8_e4m3fn", "int8")
_STORED_AS = {"fp8": "fp8_e4m3fn", "int8": "int8", "bf16": "bf16"}


@dataclass(frozen=True, slots=True)
class Storage:
    """Storage of linear layers and head, activation mode and KV precision, with every default settled."""

    weights: str  # "fp8" or "bf16"
    lm_head: str  # "bf16", "int8" or "fp8"
    activations: str  # "bf16", "fp8-static" or "fp8-dynamic"
    kv_cache: str  # "bf16" or "fp8"
    context: int = 0  # tokens that the plans allow, by which longrope chooses one of its tables

    @classmethod
    def settle(cls, checkpoint: Checkpoint, options: BuildOptions) -> Storage:
        """Settles the defaults.

        Raises:
            UsageError: the checkpoint is FP8 already and bf16 weights were asked for, or the context is not so long.
        """
        fp8 = checkpoint.quantization
        if fp8 and options.weights == "bf16":
            raise UsageError(
                f"--weights bf16 does not fit checkpoint {checkpoint.name}, whose weights are FP8",
                hint="drop --weights, or build from the bf16 checkpoint",
            )
        head = options.lm_head or ("fp8" if fp8 and fp8.is_quantized("lm_head") else "bf16")
        activations = "bf16"
        if options.act == "fp8":
            activations = "fp8-static" if fp8 and fp8.static_activations else "fp8-dynamic"
        return cls(options.weights or "fp8", head, activations, options.kv, _context(checkpoint, options))

    def of_linear(self, checkpoint: Checkpoint, modules: Sequence[str]) -> str:
        """Returns the storage dtype of a linear layer made of `modules`, which share one input.

        Raises:
            UnsupportedQuantizationError: some of the modules are quantised and some are not.
        """
        if not checkpoint.quantization:
            return _STORED_AS[self.weights]
        quantized = {checkpoint.quantization.is_quantized(module): module for module in modules}
        if len(quantized) > 1:
            some, other = quantized[True], quantized[False]
            raise UnsupportedQuantizationError(
                f"checkpoint {checkpoint.name} quantises {some} but not {other}, which are fused here",
                hint="quantise all of them or none",
            )
        return "fp8_e4m3fn" if True in quantized else "bf16"

    @property
    def of_head(self) -> str:
        """Storage dtype of the output head."""
        return _STORED_AS[self.lm_head]


def _context(checkpoint: Checkpoint, options: BuildOptions) -> int:
    longest = checkpoint.config.max_position
    wanted = longest if options.max_model_len is None else options.max_model_len
    if not 0 < wanted <= longest:
        raise UsageError(
            f"--max-model-len {wanted} is outside the context of {checkpoint.name}", hint=f"use 1 to {longest}"
        )
    return wanted
