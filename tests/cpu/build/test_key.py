"""Build keys: everything that matters changes them, nothing else does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import zstandard

import paiton_kernels
from paiton_aot.checkpoint.inventory import checkpoint_files
from paiton_aot.cli import main
from paiton_aot.identity import build_key, file_digests
from paiton_aot.identity.build_key import BuildKey, make_key
from paiton_aot.identity.file_digests import FileDigests
from paiton_aot.identity.inputs import identify
from paiton_aot.options import BuildOptions
from paiton_aot.progress import Progress
from paiton_artifacts.errors import CheckpointFormatError, UsageError

QUIET = Progress(enabled=False)
OTHER: dict[str, Any] = {
    "targets": ("cuda:sm_90",),
    "profiles": ("h100",),
    "candidates": 3,
    "tp": 2,
    "weights": "bf16",
    "lm_head": "int8",
    "act": "fp8",
    "kv": "fp8",
    "max_model_len": 64,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "name": "other",
    "hub_model": "org/other",
    "commit": "a" * 40,
}


def test_every_option_is_in_the_key(tmp_path: Path) -> None:
    """Those that are not are named here: where things are kept and come from, and tables, whose content counts."""
    pytest.importorskip("triton")
    key = make_key({"config.json": "0" * 64}, BuildOptions())
    left_out = {"cache_dir", "origin", "tuning_tables"}
    assert {field.name for field in dataclasses.fields(BuildOptions)} - OTHER.keys() == left_out
    for name, value in OTHER.items():
        changed = make_key({"config.json": "0" * 64}, dataclasses.replace(BuildOptions(), **{name: value}))
        assert changed.value != key.value
        gpu = {"tool/triton"} if name == "targets" else set()
        assert set(changed.difference(key.components)) == {f"option/{name}", *gpu}
    elsewhere = BuildOptions(cache_dir=tmp_path, origin="s3://bucket/model")
    assert make_key({"config.json": "0" * 64}, elsewhere).value == key.value


def test_tuning_tables_count_by_content_and_order(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text("1")
    other.write_text("2")

    def value(*tables: Path) -> str:
        return make_key({}, BuildOptions(tuning_tables=tables)).value

    assert len({value(), value(one), value(other), value(one, other), value(other, one)}) == 5
    copy = tmp_path / "copy.json"
    shutil.copy(one, copy)
    assert value(copy) == value(one)
    with pytest.raises(UsageError, match=r"tuning table .* cannot be read"):
        value(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sources/kernels", lambda m: m.setattr(paiton_kernels, "__file__", build_key.__file__)),
        ("format", lambda m: m.setattr(build_key, "FORMAT_MINOR", 99)),
        ("runtime abi", lambda m: m.setattr(build_key, "RUNTIME_ABI", 99)),
        ("tool/zstd", lambda m: m.setattr(zstandard, "ZSTD_VERSION", (9, 9, 9))),
        ("tool/ziglang", lambda m: m.setattr(build_key, "_version", lambda name: f"{name} 9")),
    ],
)
def test_sources_formats_and_tools_are_in_the_key(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[pytest.MonkeyPatch], object]
) -> None:
    key = make_key({}, BuildOptions())
    change(monkeypatch)
    changed = make_key({}, BuildOptions())
    assert name in changed.difference(key.components)
    assert changed.value != key.value


def test_a_changed_source_changes_its_component(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.c").write_text("int x;")
    digest = build_key._source_digest.__wrapped__
    before = digest(tmp_path)
    (tmp_path / "inner" / "a.pyc").write_text("compiled")
    assert digest(tmp_path) == before
    (tmp_path / "inner" / "a.c").rename(tmp_path / "inner" / "b.c")
    renamed = digest(tmp_path)
    (tmp_path / "inner" / "b.c").write_text("int y;")
    assert len({before, renamed, digest(tmp_path)}) == 3


def test_the_key_is_its_components_and_their_names() -> None:
    key = BuildKey({"a": "1", "b": "2"})
    assert BuildKey({"b": "2", "a": "1"}).value == key.value
    assert BuildKey({"a": "2", "b": "1"}).value != key.value
    assert key.difference({"a": "1", "c": "3"}) == ["b", "c"]


def test_every_file_of_a_checkpoint_counts_and_its_place_does_not(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = BuildOptions(cache_dir=tmp_path / "cache")
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "another name"))
    (copy / "README.md").write_text("read by nobody")
    (copy / "pytorch_model.bin").write_bytes(b"nor this")
    key = identify(tiny_checkpoint, options, QUIET).key
    assert identify(copy, options, QUIET).key == key
    names = checkpoint_files(copy)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names.keys()
    for name, path in names.items():
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert identify(copy, options, QUIET).key.difference(key.components) == [f"checkpoint/{name}"]
        path.write_bytes(data)
    assert identify(copy, options, QUIET).key == key


def test_the_files_that_count_are_all_that_a_build_reads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint of these files alone gives the same bundle."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name, path in checkpoint_files(tiny_checkpoint).items():
        shutil.copy(path, bare / name)
    for output, source in (("a", tiny_checkpoint), ("b", bare)):
        assert main([str(source), "-o", str(tmp_path / output), "-q"]) == 0
    manifests = [(tmp_path / output / "manifest.msgpack").read_bytes() for output in ("a", "b")]
    assert manifests[0] == manifests[1]


def test_shards_count(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "shards"))
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    names = checkpoint_files(copy)
    assert {"model.safetensors.index.json", "model-00001-of-00001.safetensors"} <= names.keys()
    (copy / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointFormatError, match="holds none of the weights"):
        checkpoint_files(copy)


class Reads(FileDigests):
    """Tells whether it read a file, which it does where it does not remember the digest."""

    def digest(self, path: Path) -> tuple[str, bool]:
        """Returns a file's digest, and whether it was read for that."""
        with patch.object(file_digests, "_sha256", wraps=file_digests._sha256) as read:
            return self.digest_all({"it": path}, lambda _count: None)["it"], read.called


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(tmp_path / "cache")
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 1000)
    wanted = hashlib.sha256(b"x" * 1000).hexdigest()
    assert reads.digest(path) == (wanted, True)
    assert reads.digest(path) == (wanted, True)  # too young: it could still change within a tick of the clock
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**10)
    assert reads.digest(path) == (wanted, True)
    assert reads.digest(path) == (wanted, False)
    # Same size, and a time of change put back: the inode's own time gives it away.
    status = path.stat()
    path.write_bytes(b"y" * 1000)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert reads.digest(path) == (hashlib.sha256(b"y" * 1000).hexdigest(), True)
    # Replaced by another file of the same name.
    other = tmp_path / "other"
    other.write_bytes(b"z" * 1000)
    other.rename(path)
    assert reads.digest(path) == (hashlib.sha256(b"z" * 1000).hexdigest(), True)


@pytest.mark.parametrize("entry", [b"", b"[]", b"{", b'{"state": 1}', b'{"state": null, "sha256": "00"}'])
def test_a_damaged_memory_costs_time_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: bytes
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x")
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**10)
    reads = Reads(tmp_path / "cache")
    reads.digest(path)
    (remembered,) = (tmp_path / "cache" / "digests").iterdir()
    remembered.write_bytes(entry)
    assert reads.digest(path) == (hashlib.sha256(b"x").hexdigest(), True)
    assert reads.digest(path)[1] is False


def test_a_memory_that_cannot_be_written_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x")
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**10)
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert Reads(tmp_path / "cache").digest(path)[0] == hashlib.sha256(b"x").hexdigest()


def test_a_checkpoint_that_changes_during_a_build_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    inputs = identify(copy, BuildOptions(cache_dir=tmp_path / "cache"), QUIET)
    inputs.check_unchanged()
    (copy / "config.json").touch()
    with pytest.raises(CheckpointFormatError, match=r"config\.json changed while it was read"):
        inputs.check_unchanged()
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointFormatError, match=r"config\.json changed while it was read"):
        inputs.check_unchanged()


def test_plan_prints_the_key_and_what_it_is_made_of(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(tiny_checkpoint), "--json", "--tp", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert BuildKey(told["components"]).value == told["key"]
    assert told["components"]["option/tp"] == "2"
    digest = hashlib.sha256((tiny_checkpoint / "config.json").read_bytes()).hexdigest()
    assert told["components"]["checkpoint/config.json"] == digest
    assert main(["plan", str(tiny_checkpoint), "--tp", "2"]) == 0
    text = capsys.readouterr().out
    assert f"build key        {told['key']}\n" in text
    assert f"  checkpoint/config.json {digest}" in text
    # What it says is what a build then has.
    assert main([str(tiny_checkpoint), "-o", str(tmp_path / "b"), "--json", "--tp", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == told["key"]
