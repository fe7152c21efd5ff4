"""Kernel families: specs, float64 references, C sources for the CPU (`cpu/`), Triton sources for GPUs (`gpu/`).

Nothing is imported here: what names targets and devices must load without numpy or Triton.
"""
