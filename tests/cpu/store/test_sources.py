"""Checkpoints that are read by ranges from an S3 server and from a web server, never as a whole."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.files import CheckpointFile
from paiton_aot.checkpoint.inventory import checkpoint_files
from paiton_aot.cli import main
from paiton_aot.eval_source import open_source
from paiton_aot.identity.file_digests import FileDigests
from paiton_aot.progress import Progress
from paiton_aot.sources.locate import located
from paiton_aot.sources.remote import BLOCK_BYTES, remote_file
from paiton_artifacts.errors import (
    CheckpointFormatError,
    CheckpointNotFoundError,
    DiskFullError,
    PaitonError,
    StoreError,
    StoreUnavailableError,
    UnsupportedError,
)
from tests.conftest import python_environment
from tests.cpu.build.cached import contents
from tests.cpu.checkpoint.gguf_maker import write_gguf
from tests.cpu.store.proxy import Fault, Proxy
from tests.cpu.store.weed import Weed
from tests.make_checkpoints import tiny_llama

QUIET = Progress(enabled=False)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in one file, in shards, and as GGUF; and a file of three blocks and a bit."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_llama(folder / "tiny")
    tiny_llama(folder / "sharded", max_shard_size="200KB")
    write_gguf(folder / "tiny", folder / "tiny.gguf")
    (folder / "large.gguf").write_bytes(random.Random(1).randbytes(3 * BLOCK_BYTES + 1000))
    return folder


@pytest.fixture
def remote(checkpoints: Path, weed: Weed, root: str) -> str:
    """URL of the folder of the checkpoints, on the server."""
    store = weed.store(root.rpartition("/")[2])
    for path in checkpoints.rglob("*"):
        if path.is_file():
            store.put(str(path.relative_to(checkpoints)), path.read_bytes())
    return root


def test_tensors_are_the_same(checkpoints: Path, remote: str) -> None:
    for name in ("tiny", "sharded", "tiny.gguf"):
        with located(f"{remote}/{name}", QUIET) as model, open_checkpoint(model.path) as there:
            assert model.origin == f"{remote}/{name}"
            with open_checkpoint(checkpoints / name) as here:
                assert there.config == here.config
                assert there.tokenizer() == here.tokenizer()
                assert set(there.names()) == set(here.names())
                for tensor in map(here.tensor, here.names()):
                    found = there.tensor(tensor.name).read_rows(0, tensor.rows)
                    assert np.array_equal(found.view(np.uint8), tensor.read_rows(0, tensor.rows).view(np.uint8))
        assert not model.path.exists(), "nothing is left behind"
        assert remote_file(model.path) is None


def test_transformers_loads_it_for_an_evaluation(checkpoints: Path, remote: str) -> None:
    ids = [1, 5, 9]
    for name in ("sharded", "tiny.gguf"):
        there, here = (open_source(text, QUIET).logits(ids) for text in (f"{remote}/{name}", f"{checkpoints}/{name}"))
        assert np.array_equal(there, here)


def test_a_full_disk_is_said(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.open

    def full(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode == "r+b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFullError, match=r"model.safetensors: No space left on device") as caught:
        open_source(f"{remote}/tiny", QUIET)
    assert "TMPDIR" in (caught.value.hint or "")


def test_any_range_of_a_file(checkpoints: Path, remote: str) -> None:
    data = (checkpoints / "large.gguf").read_bytes()
    dice = random.Random(2)
    with located(f"{remote}/large.gguf", QUIET) as model:
        file = CheckpointFile(model.path)
        assert file.size == len(data)
        edges = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 1, len(data) - 1]
        cases = [(a, b) for a in edges for b in edges if a < b]
        cases += [tuple(sorted(dice.sample(range(len(data)), 2))) for _ in range(20)]  # type: ignore[misc]
        for start, end in cases:
            assert file.read(start, end - start).tobytes() == data[start:end]
        with pytest.raises(CheckpointFormatError, match="truncated"):
            file.read(len(data) - 1, 2)


def test_many_threads_read_one_file(checkpoints: Path, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With so few blocks in memory that each thread drives out what the others wait for."""
    monkeypatch.setattr("paiton_aot.sources.remote.KEPT", 2)
    monkeypatch.setattr("paiton_aot.sources.remote.BLOCK_BYTES", 100_000)
    data = (checkpoints / "large.gguf").read_bytes()
    with located(f"{remote}/large.gguf", QUIET) as model, ThreadPoolExecutor(8) as pool:
        file = CheckpointFile(model.path)
        starts = random.Random(3).sample(range(len(data) - 300_000), 40)
        for start, found in zip(starts, pool.map(lambda start: file.read(start, 300_000), starts), strict=True):
            assert found.tobytes() == data[start : start + 300_000]


def test_headers_alone_are_read_for_a_plan(remote: str, proxy: Proxy) -> None:
    with located(f"{remote}/large.gguf", QUIET) as model:
        file = CheckpointFile(model.path)
        proxy.forget()
        file.read(0, 8)
        file.read(100, 50)
        assert len(proxy.requests("/large.gguf")) == 1, "what is in a block that was read is not asked for again"
    assert sum(one.received for one in proxy.requests("/large.gguf")) <= BLOCK_BYTES


def test_a_build_gives_the_same_bundle(
    checkpoints: Path, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paiton_aot.options.user_cache_dir", lambda: tmp_path / "unused")
    flags = ["-q", "--max-num-batched-tokens", "16", "--cache-dir", str(tmp_path / "cache")]
    assert main([str(checkpoints / "sharded"), "-o", str(tmp_path / "here"), *flags]) == 0
    assert main([f"{remote}/sharded", "-o", str(tmp_path / "there"), *flags]) == 0
    here, there = contents(tmp_path / "here"), contents(tmp_path / "there")
    assert {name for name in here if here[name] != there[name]} == {"provenance.json"}
    assert f'"uri": "{remote}/sharded"' in (tmp_path / "there/provenance.json").read_text()


def test_digests_are_remembered_by_etag(checkpoints: Path, remote: str, proxy: Proxy, tmp_path: Path) -> None:
    told: list[int] = []
    expected = FileDigests(tmp_path / "a").digest_all(checkpoint_files(checkpoints / "large.gguf"), told.append)
    for number in range(2):
        with located(f"{remote}/large.gguf", QUIET) as model:
            proxy.forget()
            told.clear()
            digests = FileDigests(tmp_path / "b")
            assert digests.digest_all(checkpoint_files(model.path), told.append) == expected
            assert sum(told) == 3 * BLOCK_BYTES + 1000
            digests.check_unchanged()
            assert bool(proxy.requests("/large.gguf")) == (number == 0)


def test_a_replaced_object_is_noticed(remote: str, weed: Weed, tmp_path: Path) -> None:
    with located(f"{remote}/large.gguf", QUIET) as model:
        file = CheckpointFile(model.path)
        digests = FileDigests(tmp_path)
        digests.digest_all(checkpoint_files(model.path), lambda _: None)
        file.read(0, 10)
        size = file.size
        weed.store(remote.rpartition("/")[2]).put("large.gguf", bytes(size))
        with pytest.raises(StoreError, match="replaced"):
            file.read(2 * BLOCK_BYTES, 10)
        with pytest.raises(CheckpointFormatError, match="changed"):
            digests.check_unchanged()


def test_faults_are_retried_within_bounds(
    checkpoints: Path, remote: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAITON_STORE_ATTEMPTS", "3")
    data = (checkpoints / "large.gguf").read_bytes()
    with located(f"{remote}/large.gguf", QUIET) as model:
        file = CheckpointFile(model.path)
        proxy.faults = [
            Fault("status", "/large.gguf", status=503),
            Fault("reset", "/large.gguf"),
            Fault("truncate", "/large.gguf"),
        ]
        assert file.read(0, len(data)).tobytes() == data
        assert not any(fault.times for fault in proxy.faults)
    with located(f"{remote}/large.gguf", QUIET) as model:
        file = CheckpointFile(model.path)
        proxy.faults = [Fault("status", "/large.gguf", times=10**6)]
        with pytest.raises(StoreUnavailableError, match="failed 3 times"):
            file.read(0, 8)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("{}/nothing", CheckpointNotFoundError),
        ("{}/nothing.gguf", CheckpointNotFoundError),
        ("oci://host/model", UnsupportedError),
        ("ftp://host/model", UnsupportedError),
    ],
)
def test_what_is_not_there(url: str, error: type[PaitonError], remote: str) -> None:
    with pytest.raises(error), located(url.format(remote), QUIET):
        pytest.fail("nothing is there")


def test_a_web_server_with_ranges(checkpoints: Path, remote: str, weed: Weed) -> None:
    """SeaweedFS without signatures is a plain web server."""
    bucket = remote.removeprefix("s3://")
    url = f"{weed.endpoint}/{bucket}/sharded"
    with located(url, QUIET) as model, open_checkpoint(model.path) as there:
        found = there.tensor("model.embed_tokens.weight").read_rows(3, 300)
    with open_checkpoint(checkpoints / "sharded") as here:
        expected = here.tensor("model.embed_tokens.weight").read_rows(3, 300)
    assert np.array_equal(found.view(np.uint8), expected.view(np.uint8))


def test_a_gguf_file_on_a_web_server(checkpoints: Path, remote: str, weed: Weed) -> None:
    url = f"{weed.endpoint}/{remote.removeprefix('s3://')}/tiny.gguf"
    with located(url, QUIET) as model, open_checkpoint(model.path) as there:
        found = there.tensor("model.norm.weight").read_rows(0, 10)
    with open_checkpoint(checkpoints / "tiny.gguf") as here:
        assert np.array_equal(found, here.tensor("model.norm.weight").read_rows(0, 10))


def test_memory_stays_small(remote: str, weed: Weed) -> None:
    """Of a file of 250 MB, read in order: what the blocks in memory may hold, and the interpreter's own."""
    weed.store(remote.rpartition("/")[2]).put("huge.gguf", bytes(240 << 20), use_multipart=True)
    script = """
import resource, sys
from paiton_aot.checkpoint.files import CheckpointFile
from paiton_aot.progress import Progress
from paiton_aot.sources.locate import located
with located(sys.argv[1], Progress(enabled=False)) as model:
    file = CheckpointFile(model.path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for offset in range(0, file.size, 8 << 20):
        assert not file.read(offset, 8 << 20).any()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    command = [sys.executable, "-c", script, f"{remote}/huge.gguf"]
    done = subprocess.run(command, capture_output=True, text=True, env=python_environment(), check=True)
    assert int(done.stdout) < 200
