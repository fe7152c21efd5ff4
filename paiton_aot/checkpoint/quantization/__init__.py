"""FP8 checkpoint formats: one file each, from configuration and tensors to one description of every module."""
