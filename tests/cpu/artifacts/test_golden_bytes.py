"""The bytes of a bundle are pinned: a change of them is a change of the format, or of the compressor.

The pins of uncompressed contents must hold with any version of zstd. If only those of compressed files differ, zstd
was upgraded and compresses differently: bundles stay readable, but are no longer byte-equal to older ones.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgpack
import pytest
import zstandard

from paiton_artifacts.digest import cut_chunks
from tests.cpu.artifacts import tiny
from tests.independent_reader import read_container

ZSTD = (1, 5, 7)
"""Version of zstd that made the compressed pins."""

CONTENTS = {
    "blobs/rank-0.bin": "0a33f6c3e2f7caee91e39f5a57f2feb439af2691fc9d29875cb8dfc3a18410ca",
    "blobs/rank-1.bin": "d1ca2905462a5008819f8df74a06bb744cd8404132485c67f4aee874853930bf",
    "manifest.msgpack": "e1b43f64c09fc27a271f4b114ea8a0ba130646df3053f416cf58ee2b7a41ae9d",
    "plans/cpu/forward-t4-r2.plan": "27bfea3176f48a3b01f02183c91f8bcfa40096a56b6e78f63921d97186da88fc",
    "plans/cpu/sample-t8-r2.plan": "feb53dd0be98dbf855af613b6eae831eced0d9a5a11bda05c4f040d039208353",
}
COMPRESSED = {
    "manifest.msgpack": "64c6a997299f6aa5818ecf588cf5dd31ec9b690a0b8d58b493383a34b00532d5",
    "plans/cpu/forward-t4-r2.plan": "5a0fd776573c00af9d08e762eed5ad312e6c5cc91f78616ce438170fcf93a228",
    "plans/cpu/sample-t8-r2.plan": "9e80e4dfb43456ca4fdde9b89dfeb686be66c4844c57974a35f74cede426077d",
}


def content(bundle: Path, path: str) -> bytes:
    """Returns the uncompressed content of a file; a manifest's without what depends on how plans compress."""
    data = (bundle / path).read_bytes()
    if path.startswith("blobs/"):
        return data
    payload = zstandard.ZstdDecompressor().decompress(data[64:])
    if path == "manifest.msgpack":
        value = read_container(data, b"PAITONMF")
        assert msgpack.packb(value) == payload, "the payload is not in the canonical form of msgpack"
        for plan in value["plans"]:
            plan["file"] |= {"size": 0, "sha256": ""}
        return bytes(msgpack.packb(value))
    return payload


@pytest.mark.parametrize("path", CONTENTS)
def test_contents(tiny_bundle: Path, path: str) -> None:
    assert hashlib.sha256(content(tiny_bundle, path)).hexdigest() == CONTENTS[path]


@pytest.mark.parametrize("path", COMPRESSED)
def test_compressed_files(tiny_bundle: Path, path: str) -> None:
    found = hashlib.sha256((tiny_bundle / path).read_bytes()).hexdigest()
    assert found == COMPRESSED[path], f"made with zstd {ZSTD}, this is {zstandard.ZSTD_VERSION}"


def test_bytes_do_not_depend_on_place_or_umask(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mask = os.umask(0o077)
    try:
        again = tiny.write(Path("deep/down/another name"))
    finally:
        os.umask(mask)
    files = sorted(path.relative_to(tiny_bundle) for path in tiny_bundle.rglob("*"))
    assert files == sorted(path.relative_to(again) for path in again.rglob("*"))
    for path in files:
        if (tiny_bundle / path).is_file():
            assert (again / path).read_bytes() == (tiny_bundle / path).read_bytes(), path


@pytest.mark.parametrize(
    ("size", "boundaries", "expected"),
    [
        (0, [], []),
        (10, [], [(0, 10)]),
        (20, [0, 5, 9], [(0, 9), (9, 10), (19, 1)]),  # at a boundary if one fits, else at the limit
        (20, [0, 10], [(0, 10), (10, 10)]),
        (30, [0, 15], [(0, 10), (10, 5), (15, 10), (25, 5)]),
        (25, [0, 8, 12, 18, 20], [(0, 8), (8, 10), (18, 7)]),
    ],
)
def test_chunks_are_cut_at_tensors(size: int, boundaries: list[int], expected: list[tuple[int, int]]) -> None:
    assert cut_chunks(size, boundaries, limit=10) == expected
