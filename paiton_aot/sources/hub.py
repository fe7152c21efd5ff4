"""Models of the Hugging Face hub: fetches the files that a build reads, of one commit, into the hub's own cache.

`huggingface_hub` does the work, and with it HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean
everywhere.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from paiton_aot.checkpoint.huggingface import INDEX, SINGLE, named_shards
from paiton_aot.checkpoint.inventory import SMALL, checkpoint_files
from paiton_aot.progress import Progress
from paiton_artifacts.errors import (
    CheckpointNotFoundError,
    PaitonError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)

_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w.][\w./-]{0,255}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_INSTALL = "pip install 'paiton-aot[build]'"


class HubModel(NamedTuple):
    """A model on the hub that was fetched.

    Attributes:
        path: the directory of its files.
        name: its id, `ORG/NAME`.
        url: of the model.
        commit: that the files are of.
    """

    path: Path
    name: str
    url: str
    commit: str


def is_hub_id(text: str) -> bool:
    """Says whether a text may be the id of a model, with or without a revision."""
    return _ID.fullmatch(text) is not None


def fetch_model(text: str, progress: Progress) -> HubModel:
    """Fetches what a build reads of a model, unless the hub's cache has it.

    Args:
        text: `ORG/NAME`, or `ORG/NAME@REVISION` with a branch, a tag or a commit.
        progress: whether to show any.

    Raises:
        CheckpointNotFoundError: there is no such model or revision, or the cache has not got it and may not ask.
        StoreAccessError: the model is not for everybody.
        StoreError: the hub fails.
        UsageError: `huggingface_hub` is not installed.
    """
    found = _ID.fullmatch(text)
    if found is None:
        raise UsageError(f"{text} is no id of a model", hint="write ORG/NAME or ORG/NAME@REVISION")
    name, revision = found[1], found[2] or "main"
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.constants")  # else hub.constants need not be there
        errors: Any = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise UsageError(
            f"no checkpoint at {text}, and to look for it on the hub the Python package huggingface_hub is missing",
            hint=_INSTALL,
        ) from error
    if progress.events or not progress.enabled:
        importlib.import_module("huggingface_hub.utils").disable_progress_bars()
    try:
        path = Path(_download(hub, errors, name, revision))
    except PaitonError:
        raise
    except Exception as error:
        raise _explain(errors, error, name, revision) from error
    progress.event("fetched", f"{name}: commit {path.name}", model=name, commit=path.name)
    return HubModel(path, name, f"{hub.constants.ENDPOINT}/{name}", path.name)


def _download(hub: Any, errors: Any, name: str, revision: str) -> str:  # noqa: ANN401  (imported late)
    """Returns the directory of a commit's files in the hub's cache."""
    if hub.constants.HF_HUB_OFFLINE:
        return _cached(hub, name, revision)
    try:
        info = hub.HfApi().model_info(name, revision=revision)
    except errors.HfHubHTTPError:
        raise
    except Exception:
        # Out of reach: a commit that is in the cache is the same wherever it comes from. A branch may have moved on.
        if not _COMMIT.fullmatch(revision):
            raise
        return _cached(hub, name, revision)
    names = {file.rfilename for file in info.siblings}
    weights = next((file for file in (SINGLE, INDEX) if file in names), None)
    if "config.json" not in names or weights is None:
        raise CheckpointNotFoundError(
            f"{name} on the hub holds no config.json with safetensors", hint=_other_files(hub, name, info.sha, names)
        )
    wanted = [*(file for file in SMALL if file in names), weights]
    path = _snapshot(hub, name, revision, allow_patterns=wanted)  # which notes the branch's commit for later
    if weights == INDEX:
        _snapshot(hub, name, Path(path).name, allow_patterns=named_shards(Path(path)))
    return path


def _cached(hub: Any, name: str, revision: str) -> str:  # noqa: ANN401
    path = _snapshot(hub, name, revision, local_files_only=True)
    checkpoint_files(Path(path))  # whoever fetched it may have left out the weights
    return path


def _snapshot(hub: Any, name: str, revision: str, **arguments: object) -> str:  # noqa: ANN401
    return str(hub.snapshot_download(name, revision=revision, **arguments))


def _other_files(hub: Any, name: str, commit: str, names: set[str]) -> str:  # noqa: ANN401
    gguf = sorted(file for file in names if file.endswith(".gguf"))
    if not gguf:
        return "convert its weights to safetensors first"
    return f"give the URL of one of its files, such as {hub.constants.ENDPOINT}/{name}/resolve/{commit}/{gguf[0]}"


def _explain(errors: Any, error: Exception, name: str, revision: str) -> PaitonError:  # noqa: ANN401
    """Returns an error of ours that says what one of the hub's client means."""
    url_hint = f"check the id; a directory of this name would be written ./{name}"
    if isinstance(error, errors.GatedRepoError):
        return StoreAccessError(
            f"{name} on the hub is gated", hint="accept its terms there, and set HF_TOKEN to a token of that account"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointNotFoundError(
            f"{name} on the hub has no revision {revision}", hint="check its branches and tags"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointNotFoundError(
            f"neither a directory {name} nor a model of that id on the hub",
            hint=f"{url_hint}; for a private one set HF_TOKEN",
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return CheckpointNotFoundError(
            f"{name} at {revision} is not in the hub's cache, and the hub may not be asked",
            hint=f"unset HF_HUB_OFFLINE, or fetch it where there is a network; {url_hint}",
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(getattr(error, "response", None), "status_code", 0)
        kind = (
            StoreAccessError if status in (401, 403) else StoreError if 400 <= status < 500 else StoreUnavailableError
        )
        return kind(f"fetching {name} from the hub: {reason}", hint="check HF_TOKEN and HF_ENDPOINT, then run it again")
    if isinstance(error, (ValueError, TypeError)):
        return UsageError(f"fetching {name} from the hub: {reason}", hint=url_hint)
    return StoreUnavailableError(
        f"fetching {name} from the hub: {reason}", hint=f"check the network, then run it again: it resumes; {url_hint}"
    )
