"""Bad bundles given to `paiton-run`: one line that names the thing, the exit code of its class."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from paiton_artifacts import container
from paiton_runtime.cli import main
from tests.independent_reader import read_bundle

MAJOR_OFFSET = 8


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy.bundle"
    shutil.copytree(tiny_bundle, copy)
    return copy


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def _expect(
    bundle: Path, capsys: pytest.CaptureFixture[str], code: int, *words: str, command: str = "generate"
) -> None:
    arguments = [str(bundle), "Hello"] if command == "generate" else [str(bundle)]
    assert main([command, *arguments]) == code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("paiton-run: error: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    for word in (*words, "hint: "):
        assert word in lines[0]


@pytest.mark.parametrize("offset", [0, 20, 60, -1])
def test_flipped_byte_in_the_manifest(offset: int, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _flip(bundle / "manifest.msgpack", offset)
    _expect(bundle, capsys, 4, "manifest")


@pytest.mark.parametrize("pattern", ["plans/cpu/*.plan", "code/cpu/*.so", "tokenizer/*.bin"])
def test_flipped_byte_in_a_file(pattern: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in bundle.glob(pattern):
        _flip(path, path.stat().st_size // 2)
    _expect(bundle, capsys, 4, pattern.split("*", maxsplit=1)[0])


def test_flipped_byte_in_a_blob_is_found_by_verify(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _flip(bundle / "blobs" / "rank-0.bin", 4096)
    _expect(bundle, capsys, 4, "blobs/rank-0.bin", command="verify")


def test_destroyed_weights_are_found_at_boot(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tensor,) = (t for t in read_bundle(bundle).manifest["tensors"] if t["name"] == "layers.1.down_proj")
    with (bundle / "blobs" / "rank-0.bin").open("r+b") as file:
        os.pwrite(file.fileno(), b"\x7e" * tensor["size"], tensor["offset"])
    _expect(bundle, capsys, 4, "golden")


def test_shorter_blob(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blob = bundle / "blobs" / "rank-0.bin"
    os.truncate(blob, blob.stat().st_size - 1)
    _expect(bundle, capsys, 4, "blobs/rank-0.bin")


def test_newer_major_version(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle / "manifest.msgpack"
    data = bytearray(path.read_bytes())
    data[MAJOR_OFFSET] += 1
    path.write_bytes(data)
    _expect(bundle, capsys, 3, "1", "2")


def _forge(bundle: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Rewrites the manifest with all its digests in order: only what it says is wrong."""
    path = bundle / "manifest.msgpack"
    manifest = container.unpack(container.MANIFEST, path.read_bytes(), "manifest")
    forged = msgpack.unpackb(msgpack.packb(manifest))
    change(forged)
    path.write_bytes(container.pack(container.MANIFEST, forged))


def test_tensor_outside_its_blob(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(manifest: dict[str, object]) -> None:
        manifest["tensors"][-1]["offset"] = 1 << 40  # type: ignore[index]

    _forge(bundle, change)
    _expect(bundle, capsys, 4, "lm_head")


def test_newer_runtime_abi(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _forge(bundle, lambda manifest: manifest.update(runtime_abi=99))
    _expect(bundle, capsys, 3, "99")


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _expect(tmp_path / "nothing", capsys, 5, "nothing")


def test_prompt_longer_than_the_context(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny_bundle), "word " * 2000]) == 2
    error = capsys.readouterr().err
    assert "256" in error
    assert error.count("\n") == 1
