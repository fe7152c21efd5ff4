"""What a checkpoint's generation_config.json advises is what a request gets that says nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cpu.server.conftest import StartServer
from tests.cpu.server.server_process import Server


@pytest.fixture(scope="module")
def advised_bundle(
    build_bundle: Callable[..., Path], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny Llama, whose makers advise to take the best token."""
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("advised") / "hf"))
    (source / "generation_config.json").write_text(json.dumps({"top_k": 1, "temperature": 0.9}))
    return build_bundle("tiny-advised", source, "--max-num-batched-tokens", "16")


def texts(server: Server, **fields: Any) -> set[str]:
    """Returns what three seeds give."""
    body = {"prompt": "Once", "max_tokens": 6, "ignore_eos": True, **fields}
    return {server.post("/v1/completions", {**body, "seed": i}).json()["choices"][0]["text"] for i in range(3)}


def test_the_bundles_advice_counts_until_a_request_says_otherwise(
    advised_bundle: Path, start_server: StartServer
) -> None:
    server = start_server(advised_bundle).wait_until_ready()
    greedy = texts(server, temperature=0)
    assert texts(server) == greedy
    assert len(texts(server, top_k=0)) > 1


def test_vllms_own_defaults(advised_bundle: Path, start_server: StartServer) -> None:
    server = start_server(advised_bundle, "--generation-config", "vllm").wait_until_ready()
    assert len(texts(server)) > 1
    assert len(texts(server, top_k=1)) == 1
