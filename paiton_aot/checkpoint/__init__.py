"""Checkpoints: Hugging Face directories and GGUF files behind one interface."""

from __future__ import annotations

from pathlib import Path

from paiton_aot.checkpoint.base import Checkpoint
from paiton_artifacts.errors import CheckpointNotFoundError

__all__ = ["Checkpoint", "open_checkpoint"]


def open_checkpoint(path: Path, *, outline: bool = False) -> Checkpoint:
    """Opens a checkpoint: a directory is a Hugging Face checkpoint, a file a GGUF file.

    Nothing but headers and metadata is read. What is wrong with those is said here; what is wrong with tensors, when
    they are read.

    Args:
        path: where it is.
        outline: a directory without any of the weights that its index names will do, as long as nothing reads them.

    Raises:
        CheckpointNotFoundError: there is neither a directory nor a file at `path`.
        CheckpointError: the checkpoint is incomplete or malformed.
        UnsupportedError: its architecture, quantisation or tensor types are not supported.
    """
    if path.is_dir():
        from paiton_aot.checkpoint.huggingface import HuggingFaceCheckpoint  # noqa: PLC0415  (one format is needed)

        return HuggingFaceCheckpoint(path, outline=outline)
    if path.is_file():
        from paiton_aot.checkpoint.gguf_checkpoint import GgufCheckpoint  # noqa: PLC0415  (gguf imports for 150 ms)

        return GgufCheckpoint(path)
    raise CheckpointNotFoundError(
        f"no checkpoint at {path}", hint="give a directory, a .gguf file, a URL of either, or ORG/NAME on the hub"
    )
