"""From what a person writes for a checkpoint to a path that `open_checkpoint` opens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from paiton_aot.progress import Progress
from paiton_artifacts.store.address import is_url


class Located(NamedTuple):
    """A checkpoint that can be opened.

    Attributes:
        path: of a directory or a GGUF file.
        origin: URL that it came from; empty for a path.
        hub_model: ORG/NAME of a model on the hub; empty otherwise.
        commit: that its files are of, likewise.
    """

    path: Path
    origin: str = ""
    hub_model: str = ""
    commit: str = ""


@contextlib.contextmanager
def located(text: str, progress: Progress) -> Iterator[Located]:
    """Yields the checkpoint that a text names: a path, a URL, or the id of a model on the Hugging Face hub.

    What exists as a path is that path. A URL is read by ranges, from where it is, until this ends.

    Args:
        text: as a person writes it.
        progress: whether to show any.

    Raises:
        CheckpointNotFoundError: it names nothing that is there.
        PaitonError: as `view.view` and `hub.fetch_model`.
    """
    if is_url(text):
        from paiton_aot.sources.view import view  # noqa: PLC0415  (paths need no client)

        with view(text) as path:
            yield Located(path, text.rstrip("/"))
        return
    path = Path(text)
    if not path.exists():
        from paiton_aot.sources.hub import fetch_model, is_hub_id  # noqa: PLC0415

        if is_hub_id(text):
            model = fetch_model(text, progress)
            yield Located(model.path, model.url, model.name, model.commit)
            return
    yield Located(path)
