"""The files of a checkpoint that a build reads, without reading weights."""

from __future__ import annotations

from pathlib import Path

from paiton_aot.checkpoint.huggingface import INDEX, SINGLE, shards_of
from paiton_artifacts.errors import CheckpointNotFoundError

GGUF_NAME = "model.gguf"
"""What a GGUF file is called in a key: its own name, like the place where a checkpoint lies, changes nothing."""

SMALL = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)
"""Files beside the weights; none but config.json has to be there."""


def checkpoint_files(path: Path) -> dict[str, Path]:
    """Returns every file that a build from `path` may read, by its name within the checkpoint, sorted.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CheckpointFormatError: the index of its weights is malformed.
    """
    if path.is_file():
        return {GGUF_NAME: path}
    if not path.is_dir():
        raise CheckpointNotFoundError(
            f"no checkpoint at {path}", hint="give a directory, a .gguf file, a URL of either, or ORG/NAME on the hub"
        )
    names = [name for name in SMALL if (path / name).is_file()]
    # As the reader does: a single file wins over an index.
    if (path / SINGLE).is_file():
        names.append(SINGLE)
    elif (path / INDEX).is_file():
        names += [INDEX, *shards_of(path)]
    return {name: path / name for name in sorted(names)}
