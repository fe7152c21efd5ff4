"""Converted weights are kept in a build cache: interrupted builds go on, and builds that differ elsewhere use them."""

from __future__ import annotations

from pathlib import Path

import pytest

from paiton_aot import build as build_module
from paiton_aot.cli import main
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.verify import verify_files
from tests.cpu.build.cached import Cached, contents


def test_an_interrupted_build_goes_on_after_converting(
    in_directory: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "make_goldens", interrupt)
    assert in_directory.attempt()[0] == 130
    monkeypatch.undo()
    monkeypatch.setattr(build_module, "write_tensors", None)  # whoever calls it fails
    told, events = in_directory.run("-o", tmp_path / "resumed")
    assert not told["hit"]
    assert "resumed" in {event["event"] for event in events}
    monkeypatch.undo()
    assert main([str(in_directory.model), "-o", str(tmp_path / "plain"), "-q"]) == 0
    assert contents(tmp_path / "resumed") == contents(tmp_path / "plain")


def test_converted_weights_serve_builds_that_differ_elsewhere(
    in_directory: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_directory.run()
    with monkeypatch.context() as patched:
        patched.setattr(build_module, "write_tensors", None)
        told, _ = in_directory.run("--name", "other", "--max-num-seqs", "16")
        verify_files(open_bundle(Path(told["bundle"])))
    converted, events = in_directory.run("--weights", "bf16")
    assert "resumed" not in {event["event"] for event in events}
    verify_files(open_bundle(Path(converted["bundle"])))


@pytest.mark.parametrize("damage", ["bytes", "size", "missing", "record"])
def test_damaged_converted_weights_are_converted_again(in_directory: Cached, damage: str) -> None:
    first, _ = in_directory.run()
    (stage,) = (Path(in_directory.cache) / "stages").iterdir()
    blob = stage / "rank-0.bin"
    data = blob.read_bytes()
    blob.unlink()
    if damage == "bytes":
        blob.write_bytes(b"\xff" + data[1:])
    elif damage == "size":
        blob.write_bytes(data + bytes(1 << 20))
    elif damage == "record":
        blob.write_bytes(data)
        (stage / "blobs.json").write_text("{")
    again, events = in_directory.run("--name", "other")
    assert "resumed" not in {event["event"] for event in events}
    bundles = [Path(told["bundle"]) / "blobs" / "rank-0.bin" for told in (first, again)]
    assert bundles[0].read_bytes() == bundles[1].read_bytes()
    assert "resumed" in {event["event"] for event in in_directory.run("--name", "third")[1]}
