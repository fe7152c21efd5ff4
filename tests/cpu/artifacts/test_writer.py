"""A writer leaves a complete bundle or nothing: on errors, on a full disk, when killed, and beside other writers."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from paiton_artifacts import writer as writer_module
from paiton_artifacts.errors import (
    BoundsError,
    DiskFullError,
    FileSizeError,
    ManifestError,
    OutputExistsError,
    StoreError,
    UsageError,
)
from paiton_artifacts.layout import EXTENT_ALIGNMENT
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.temporary import remove_tree
from paiton_artifacts.verify import verify_files
from paiton_artifacts.writer import BundleWriter
from tests.cpu.artifacts import tiny

ROOT = Path(__file__).parents[3]

# Every fsync takes 5 ms, so that kills spread over the whole build and its commit.
BUILD = """
import os, sys, time
from pathlib import Path
from tests.cpu.artifacts import tiny
os.fsync = lambda descriptor: time.sleep(0.005)
print("ready", flush=True)
tiny.write(Path(sys.argv[1]), force=True)
"""


def build_process(output: Path) -> subprocess.Popen[str]:
    """Starts a build in another process; returns it when it is about to begin."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(output)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_killed_at_any_moment(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with build_process(tmp_path / "whole") as whole:
        begin = time.monotonic()
        assert whole.wait() == 0
        duration = time.monotonic() - begin
    remove_tree(tmp_path / "whole")
    interrupted = 0
    for moment in range(10):
        with build_process(output) as process:
            time.sleep(duration * moment / 10)
            process.send_signal(signal.SIGKILL)
        if output.exists():  # then it is complete: all of it appeared at once
            assert all(check.error is None for check in verify_files(open_bundle(output)))
            shutil.rmtree(output)
        else:
            interrupted += 1
    assert interrupted
    tiny.write(output)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_killed_while_replacing_keeps_a_bundle(tmp_path: Path) -> None:
    output = tiny.write(tmp_path / "bundle")
    for moment in range(4):
        with build_process(output) as process:
            time.sleep(0.03 * moment)
            process.send_signal(signal.SIGKILL)
        assert all(check.error is None for check in verify_files(open_bundle(output)))
    tiny.write(output, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_live_builds_are_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with BundleWriter(output) as first:
        tiny.fill(first)
        with BundleWriter(output) as second:
            tiny.fill(second)
            assert first.directory.exists()
            assert first.directory != second.directory
            first.commit()
            with pytest.raises(OutputExistsError, match="exists"):
                second.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert isinstance(open_bundle(output).manifest.tp, int)


def test_only_stale_temporaries_of_this_output_are_removed(tmp_path: Path) -> None:
    stale = [tmp_path / ".bundle.tmp-1-aaaa", tmp_path / ".bundle.tmp-1-bbbb"]
    kept = [tmp_path / ".bundle2.tmp-1-aaaa", tmp_path / "bundle.tmp-1-aaaa", tmp_path / "precious"]
    for path in [*stale, *kept]:
        path.mkdir()
    (stale[0] / ".lock").touch()
    link = tmp_path / ".bundle.tmp-link"
    link.symlink_to("precious")
    tiny.write(tmp_path / "bundle")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, link, tmp_path / "bundle"])


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with BundleWriter(tmp_path / "bundle") as writer:
            tiny.fill(writer)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())


def test_no_commit_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        tiny.fill(writer)
    assert not list(tmp_path.iterdir())


def test_commit_needs_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="commit without a manifest"), BundleWriter(tmp_path / "bundle") as writer:
        writer.commit()
    with pytest.raises(UsageError, match="only inside its with block"):
        writer.add_file("x", b"")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", path], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield path
    subprocess.run(["umount", path], check=True)


def full_build(output: Path) -> None:
    """Writes two blobs without holes."""
    with BundleWriter(output) as writer:
        for rank in range(2):
            with writer.create_blob(rank) as file:
                done = 0
                while done < EXTENT_ALIGNMENT:
                    done += os.pwrite(file.fileno(), bytes(EXTENT_ALIGNMENT - done), done)
            writer.finish_blob(rank, EXTENT_ALIGNMENT, ())


def test_a_full_disk_while_a_blob_is_written(small_disk: Path) -> None:
    with pytest.raises(DiskFullError, match=f"no space left while writing {small_disk}/bundle") as caught:
        full_build(small_disk / "bundle")
    assert caught.value.exit_code == 7
    assert caught.value.hint
    assert not list(small_disk.iterdir())


def test_a_full_disk_while_a_file_is_written(small_disk: Path) -> None:
    with pytest.raises(DiskFullError), BundleWriter(small_disk / "bundle") as writer:
        writer.add_file("tokenizer/tokenizer.json", bytes(4 << 20))
    assert not list(small_disk.iterdir())


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(DiskFullError, match="File too large"):
            full_build(tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with BundleWriter(tmp_path / "bundle") as writer:
        tiny.fill(writer)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError):
            writer.commit()
    assert not list(tmp_path.iterdir())


def test_other_system_errors_name_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StoreError, match="file failed: File exists") as caught,
        BundleWriter(tmp_path / "file" / "bundle"),
    ):
        pass
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("atomic", [True, False])
def test_force_replaces_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, atomic: bool) -> None:
    if not atomic:
        monkeypatch.setattr(writer_module, "_exchange", lambda *_: False)
    output = tiny.write(tmp_path / "bundle")
    (output / "old").touch()
    tiny.write(output, force=True)
    assert not (output / "old").exists()
    assert not (output / ".lock").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert all(check.error is None for check in verify_files(open_bundle(output)))


def test_force_spares_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "home" / "letters").mkdir(parents=True)
    (tmp_path / "file").touch()
    tiny.write(tmp_path / "bundle")
    (tmp_path / "link").symlink_to("bundle")
    for name in ("home", "file", "link"):
        with pytest.raises(OutputExistsError, match=f"{name} exists and is not a bundle"):
            BundleWriter(tmp_path / name, force=True)
    (tmp_path / "empty").mkdir()
    tiny.write(tmp_path / "empty", force=True)


def test_paths_stay_inside(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        for path in ("../escape", "/escape", "a/../../escape"):
            with pytest.raises(ManifestError, match="not a relative path"):
                writer.add_file(path, b"")
        writer.add_file("once", b"")
        with pytest.raises(UsageError, match="'once' is written twice"):
            writer.add_file("once", b"")
    assert not (tmp_path / "escape").exists()


def test_blob_sizes_are_checked(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        with writer.create_blob(0) as file:
            os.pwrite(file.fileno(), b"x", EXTENT_ALIGNMENT)
        with pytest.raises(ManifestError, match="of 1000 bytes is not padded"):
            writer.finish_blob(0, 1000, ())
        with pytest.raises(FileSizeError, match="2097153 bytes written of 2097152"):
            writer.finish_blob(0, EXTENT_ALIGNMENT, ())


def test_a_manifest_that_no_reader_accepts_is_not_written(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    last = manifest.tensors[-1]
    outside = replace(manifest, tensors=(*manifest.tensors[:-1], replace(last, offset=EXTENT_ALIGNMENT)))
    with BundleWriter(tmp_path / "bundle") as writer:
        with pytest.raises(ManifestError, match=r"goldens\[0\].tolerance is an integer"):
            writer.write_manifest(replace(manifest, goldens=(replace(manifest.goldens[0], tolerance=1),)))
        with pytest.raises(BoundsError, match=r"'blocks\.scale' ends at"):
            writer.write_manifest(outside)
        writer.write_manifest(manifest)
