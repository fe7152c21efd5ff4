"""Kernels for GPUs in Triton, one file per family: spec, source, reference and cases. Needs the `gpu` extra."""
