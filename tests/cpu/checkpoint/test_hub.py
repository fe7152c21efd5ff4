"""Models of the Hugging Face hub, through its own client, from a server of the API that it calls."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from paiton_aot.attest.provenance import provenance
from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.eval_source import open_source
from paiton_aot.identity.build_key import BuildKey
from paiton_aot.progress import Progress
from paiton_aot.sources.hub import HubModel, fetch_model, is_hub_id
from paiton_aot.sources.locate import located
from paiton_artifacts.errors import (
    CheckpointNotFoundError,
    StoreAccessError,
    StoreError,
    UnsupportedQuantizationError,
    UsageError,
)
from tests.conftest import python_environment
from tests.cpu.checkpoint.hub_server import COMMIT, OLDER, TOKEN, HubServer, running

QUIET = Progress(enabled=False)


@pytest.fixture
def hub(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with two models, and an empty cache."""
    with running() as server:
        sharded = Path(shutil.copytree(originals / "sharded", tmp_path / "served"))
        for name in ("README.md", "pytorch_model.bin", "other.safetensors"):
            (sharded / name).write_bytes(b"not needed")
        server.models["org/tiny"] = {COMMIT: originals / "tiny", OLDER: originals / "fp8"}
        server.models["org/sharded"] = {COMMIT: sharded}
        # The client reads these variables once, when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "")
        yield server


def names(model: HubModel) -> set[str]:
    return {path.name for path in model.path.iterdir()}


def test_a_model_is_fetched_once_and_pinned(hub: HubServer, originals: Path) -> None:
    model = fetch_model("org/tiny", QUIET)
    assert model == (model.path, "org/tiny", f"{hub.url}/org/tiny", COMMIT)
    for file in model.path.iterdir():
        assert file.read_bytes() == (originals / "tiny" / file.name).read_bytes()
    with open_checkpoint(model.path) as checkpoint:
        assert checkpoint.tensor("model.norm.weight").rows == checkpoint.config.hidden_size
    hub.paths.clear()
    assert fetch_model("org/tiny@main", QUIET).path == model.path
    assert not any("/resolve/" in path for path in hub.paths), "the cache has its files"


def test_revisions(hub: HubServer) -> None:
    assert fetch_model("org/tiny@v1.0", QUIET).commit == OLDER
    assert fetch_model(f"org/tiny@{OLDER}", QUIET).commit == OLDER
    with pytest.raises(CheckpointNotFoundError, match="no revision v2"):
        fetch_model("org/tiny@v2", QUIET)
    assert hub.paths


def test_only_what_a_build_reads_is_fetched(hub: HubServer, originals: Path) -> None:
    found = names(fetch_model("org/sharded", QUIET))
    shards = {path.name for path in (originals / "sharded").glob("model-*.safetensors")}
    assert len(shards) > 1
    assert shards < found
    assert not found & {"README.md", "pytorch_model.bin", "other.safetensors"}
    assert not any("README" in path for path in hub.paths)


def test_offline_takes_what_the_cache_has(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fetch_model("org/tiny", QUIET)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.paths.clear()
    assert fetch_model("org/tiny", QUIET) == model
    with pytest.raises(CheckpointNotFoundError, match="not in the hub's cache") as caught:
        fetch_model("org/sharded", QUIET)
    assert "HF_HUB_OFFLINE" in caught.value.hint
    assert not hub.paths


def test_a_pinned_commit_needs_no_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fetch_model("org/tiny", QUIET)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fetch_model(f"org/tiny@{COMMIT}", QUIET).path == model.path
    with pytest.raises(StoreError, match="fetching org/tiny"):
        fetch_model("org/tiny", QUIET)
    assert hub.models


def test_gated_models(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add("org/tiny")
    with pytest.raises(StoreAccessError, match="gated") as caught:
        fetch_model("org/tiny", QUIET)
    assert "HF_TOKEN" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch_model("org/tiny", QUIET).commit == COMMIT


def test_what_is_not_there(hub: HubServer, originals: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="neither a directory org/none nor a model") as caught:
        fetch_model("org/none", QUIET)
    assert "./org/none" in caught.value.hint
    folder = tmp_path / "gguf"
    folder.mkdir()
    shutil.copy(originals / "tiny.gguf", folder / "tiny.Q8_0.gguf")
    hub.models["org/gguf"] = {COMMIT: folder}
    with pytest.raises(CheckpointNotFoundError) as caught:
        fetch_model("org/gguf", QUIET)
    assert f"{hub.url}/org/gguf/resolve/{COMMIT}/tiny.Q8_0.gguf" in caught.value.hint


@pytest.mark.parametrize("text", ["", "name", "/a/b", "./a/b", "../a", "a/b/c", "a/b@", "a b/c", "-a/b", "a/b@../c d"])
def test_what_is_no_id(text: str) -> None:
    assert not is_hub_id(text)
    with pytest.raises(UsageError):
        fetch_model(text, QUIET)


def test_a_directory_comes_first(
    hub: HubServer, originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(originals / "fp8", tmp_path / "here/org/tiny")
    monkeypatch.chdir(tmp_path / "here")
    for text in ("org/tiny", "./org/tiny"):
        with located(text, QUIET) as model:
            assert model == (Path(text), "", "", "")
    assert not hub.paths
    with located("org/sharded", QUIET) as model:
        assert model[1:] == (f"{hub.url}/org/sharded", "org/sharded", COMMIT)


def test_transformers_loads_it_for_an_evaluation(hub: HubServer, originals: Path) -> None:
    ids = [1, 5, 9]
    fetched, local = (open_source(text, QUIET).logits(ids) for text in ("org/tiny", str(originals / "tiny")))
    assert np.array_equal(fetched, local)
    with pytest.raises(UnsupportedQuantizationError, match="is quantised"):
        open_source("org/tiny@v1.0", QUIET)
    with pytest.raises(CheckpointNotFoundError, match="nor a model of that id"):
        open_source("org/absent", QUIET)
    assert hub.paths


def test_the_command_plans_a_model_of_the_hub(hub: HubServer, tmp_path: Path, originals: Path) -> None:
    """With the variables that everybody knows, in a process of its own."""
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PAITON_CACHE": str(tmp_path / "cache")}
    command = [
        sys.executable,
        "-m",
        "paiton_aot.cli",
        "plan",
        "org/tiny@v1.0",
        "--json",
        "--max-num-batched-tokens",
        "1",
    ]
    environment = python_environment() | {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert f"org/tiny: commit {OLDER}" in done.stderr
    here = subprocess.run(
        [*command[:4], str(originals / "fp8"), *command[5:]],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert json.loads(done.stdout)["key"] != json.loads(here.stdout)["key"], "the manifest names the commit"


def test_provenance_names_the_commit() -> None:
    data = provenance(BuildKey({}), "0" * 64, origin="https://huggingface.co/org/tiny", commit=COMMIT)
    (first,) = json.loads(data)["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert first == {
        "name": "checkpoint",
        "uri": "https://huggingface.co/org/tiny",
        "digest": {"gitCommit": COMMIT},
    }
    assert b"uri" not in provenance(BuildKey({}), "0" * 64)


def test_the_client_is_the_real_one() -> None:
    assert huggingface_hub.__version__.split(".")[0] in ("1", "2")
