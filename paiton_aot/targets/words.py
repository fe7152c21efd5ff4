"""What the kernels of every target call what programs and tensor tables name otherwise."""

from __future__ import annotations

GATES = {"silu": "SILU", "gelu_tanh": "GELU"}
"""Epilogues that compute a gated activation, by `GatedMul.activation`."""

STORAGE = {"fp8_e4m3fn": "FP8", "int8": "INT8", "bf16": "BF16"}
"""How weights are stored, by dtype of the tensor table."""
