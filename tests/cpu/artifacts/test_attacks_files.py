"""Bundles whose files are missing, altered or not what they seem."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from paiton_artifacts.errors import (
    BundleNotFoundError,
    DigestMismatchError,
    FileSizeError,
    PaitonError,
    StoreError,
    VerificationError,
)
from paiton_artifacts.files import open_inside, read_bounded
from paiton_artifacts.reader import Bundle, open_bundle
from paiton_artifacts.verify import verify_files

BLOB = "blobs/rank-1.bin"
EVERY_FILE = ["code/cpu/generic.so", "plans/cpu/forward-t4-r2.plan", "tokenizer/tokenizer.json", BLOB]


def as_link(path: Path) -> None:
    """Leaves a link to the file in its place; where it leads does not matter."""
    outside = path.with_name("outside").resolve()
    shutil.move(path, outside)
    path.symlink_to(outside)


def as_fifo(path: Path) -> None:
    """Replaces a file by a FIFO that nobody writes to."""
    path.unlink()
    os.mkfifo(path)


def as_directory(path: Path) -> None:
    """Replaces a file by a directory."""
    path.unlink()
    path.mkdir()


def behind_link(path: Path) -> None:
    """Moves a file's directory out of the bundle and leaves a link to it."""
    outside = path.parent.with_name("elsewhere")
    shutil.move(path.parent, outside)
    path.parent.symlink_to(outside)


def shorter(path: Path) -> None:
    """Cuts the last byte off."""
    os.truncate(path, path.stat().st_size - 1)


def longer(path: Path) -> None:
    """Appends a byte."""
    os.truncate(path, path.stat().st_size + 1)


DAMAGE: dict[str, tuple[Callable[[Path], None], type[PaitonError], str]] = {
    "missing": (Path.unlink, FileSizeError, "the file is missing"),
    "shorter": (shorter, FileSizeError, "bytes, the manifest declares"),
    "longer": (longer, FileSizeError, "bytes, the manifest declares"),
    "a link": (as_link, VerificationError, "a symbolic link, or not a regular file"),
    "behind a link": (behind_link, VerificationError, "a symbolic link, or not a regular file"),
    "a FIFO": (as_fifo, VerificationError, "not a regular file"),
    "a directory": (as_directory, VerificationError, "not a regular file"),
}


@pytest.mark.parametrize("path", EVERY_FILE)
@pytest.mark.parametrize("name", DAMAGE)
def test_opening_checks_every_file(victim: Path, path: str, name: str) -> None:
    damage, error, words = DAMAGE[name]
    damage(victim / path)
    with pytest.raises(PaitonError, match=words) as caught:
        open_bundle(victim)
    assert type(caught.value) is error
    assert caught.value.exit_code == 4
    named = victim / path if name != "behind a link" else (victim / path).parent  # then its siblings are, too
    assert caught.value.message.startswith(str(named))


@pytest.mark.parametrize("path", EVERY_FILE)
def test_a_flipped_byte_is_found_and_named(victim: Path, path: str) -> None:
    data = bytearray((victim / path).read_bytes())
    data[len(data) // 2] ^= 1
    (victim / path).write_bytes(data)
    bundle = open_bundle(victim)
    with pytest.raises(DigestMismatchError, match="SHA-256") as caught:
        verify_files(bundle)
    assert str(victim / path) in caught.value.message
    assert path != BLOB or "2097152 bytes at offset 0" in caught.value.message
    assert caught.value.exit_code == 4
    checks = verify_files(bundle, strict=False)
    assert [check.path for check in checks if check.error is not None] == [path]


def test_a_blob_that_shrinks_after_opening(victim: Path) -> None:
    bundle = open_bundle(victim)
    os.truncate(victim / BLOB, 4096)
    with pytest.raises(FileSizeError, match="ends inside the chunk at offset 0"):
        verify_files(bundle)


@pytest.mark.parametrize("damage", [shorter, longer])
def test_a_file_that_changes_after_opening(victim: Path, damage: Callable[[Path], None]) -> None:
    bundle = open_bundle(victim)
    damage(victim / "tokenizer/tokenizer.json")
    with pytest.raises(FileSizeError, match=r"tokenizer\.json"):
        bundle.read_file(bundle.manifest.tokenizer.file)


def test_no_bundle(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(BundleNotFoundError, match=str(path)) as caught:
            open_bundle(path)
        assert caught.value.exit_code == 5


def test_the_manifest_itself_may_not_be_a_link(victim: Path) -> None:
    (victim / "manifest.msgpack").rename(victim / "other")
    (victim / "manifest.msgpack").symlink_to("other")
    with pytest.raises(VerificationError, match="a symbolic link"):
        open_bundle(victim)


def test_the_bundle_may_be_reached_through_a_link(victim: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(victim)
    assert isinstance(open_bundle(tmp_path / "link"), Bundle)


def test_unlisted_files_are_never_touched(victim: Path) -> None:
    os.mkfifo(victim / "blobs" / "surprise")
    assert all(check.error is None for check in verify_files(open_bundle(victim)))


def test_a_file_that_may_not_be_read(victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may read everything, so permissions alone would not do
    with pytest.raises(StoreError, match=r"tokenizer\.json: Permission denied"):
        read_bounded(victim, "tokenizer/tokenizer.json", 100)


def test_descriptors_are_closed(victim: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    verify_files(open_bundle(victim))
    for path in ("tokenizer/nothing", "nothing/x", "tokenizer"):
        with pytest.raises(VerificationError), open_inside(victim, path):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before
