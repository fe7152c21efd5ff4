"""The source checkpoint of a bundle as transformers computes it in float32: what quantisation is judged by."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paiton_aot.eval_measure import Logits
from paiton_aot.progress import Progress
from paiton_aot.sources.locate import located
from paiton_aot.sources.view import copy_here
from paiton_artifacts.errors import CheckpointNotFoundError, UnsupportedQuantizationError, UsageError


def open_source(text: str, progress: Progress) -> TransformersSource:
    """Returns the checkpoint that a text names, as for a build; that of a URL is copied to a temporary directory first.

    Args:
        text: a path, a URL, or the id of a model on the Hugging Face hub.
        progress: where to tell how it gets on.

    Raises:
        PaitonError: as `located`, `copy_here` and `TransformersSource`.
    """
    with located(text, progress) as model:
        copy_here(model.path, progress)
        return TransformersSource(model.path)


class TransformersSource:
    """A Hugging Face directory or a GGUF file, loaded by transformers.

    Args:
        path: of the checkpoint.

    Raises:
        UsageError: torch and transformers are not installed, or transformers cannot load the checkpoint.
        UnsupportedQuantizationError: its weights are quantised in a way that transformers needs a GPU for.
        CheckpointNotFoundError: there is nothing at the path.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise CheckpointNotFoundError(f"no checkpoint at {path}", hint="give what the bundle was built from")
        _refuse_quantized(path)
        try:
            self._torch: Any = importlib.import_module("torch")
            transformers: Any = importlib.import_module("transformers")
        except ModuleNotFoundError as error:
            raise UsageError(
                f"the source's logits need the Python package {error.name}",
                hint="pip install 'paiton-aot[dev]', or leave --checkpoint away",
            ) from error
        transformers.utils.logging.disable_progress_bar()
        where: dict[str, Any] = {"pretrained_model_name_or_path": path}
        if path.is_file():
            where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                **where, dtype=self._torch.float32, local_files_only=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(f"transformers cannot load {path}: {reason}", hint="leave --checkpoint away") from error
        self._model = model.eval()

    def logits(self, ids: Sequence[int]) -> Logits:
        """See `Source`."""
        with self._torch.inference_mode():
            result = self._model(self._torch.tensor([list(ids)]), use_cache=False).logits[0]
        return np.asarray(result.float().numpy(), np.float32)


def _refuse_quantized(path: Path) -> None:
    config = path / "config.json"
    if config.is_file():
        try:
            quantized = json.loads(config.read_bytes()).get("quantization_config")
        except (ValueError, AttributeError):
            return  # transformers says what is wrong with it
        if quantized is not None:
            raise UnsupportedQuantizationError(
                f"{path} is quantised, and transformers is no reference for that",
                hint="give the bf16 checkpoint that it was made from",
            )
