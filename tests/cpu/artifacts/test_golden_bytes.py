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
    "blobs/rank-0.bin": "66ea75f313b0fd1f4eadc886648953691b7d6e274e191d575056699e962f27df",
    "blobs/rank-1.bin": "72288a682eb8b282a59782cba8d9f00787fe3afd70242becdfd583b27bdcbf78",
    "manifest.msgpack": "4c11ed03c033eaa847933bc07b27f8d10bf35433472d9c22bb6eb0af824f1c37",
    "plans/cpu/forward-t4-r2.plan": "990d33bf0b09d7c55c5a4ab627874279eef4bde32e28a6103e73921f1650be0d",
    "plans/cpu/sample-t8-r2.plan": "335a6064447bc24210c8ece04656584482182f4c37c0c58d868bea82b49f55af",
}
COMPRESSED = {
    "manifest.msgpack": "540346558ee1acb58ae708c903049377b30fd35b261f01b743f52bf2179effe9",
    "plans/cpu/forward-t4-r2.plan": "e2b1d68c0719b7dad9fbf2197a62c10053fcf99f9c2cf359a24ddf2b301e0a33",
    "plans/cpu/sample-t8-r2.plan": "424b46d2d7d497180881517a56f3369eb91b85ee0be60e4cdb37ab71aa7361b0",
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
