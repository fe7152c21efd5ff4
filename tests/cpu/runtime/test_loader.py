"""Loads into host memory: every byte or an error, cached or not, around the page cache or through it."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import random
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from paiton_artifacts.errors import DigestMismatchError, FileSizeError, PaitonError, StoreError
from paiton_artifacts.schema import Chunk
from paiton_runtime import loader
from paiton_runtime.host import Stop, library
from paiton_runtime.loader import FileLoad, HostDestination, LoadStoppedError, ReadSettings, load, residency
from tests.cpu.runtime.weights import make_weights

PAGE = 4096
SLOT = 64 << 10
SIZES = [1, PAGE - 1, PAGE, SLOT, SLOT + 1, 11 * SLOT + 3 * PAGE + 5]
PROBE_WINDOWS, WINDOW = 128, 1 << 20


class HostMemory:
    """Memory for a load, with guard bytes around it."""

    def __init__(self, size: int, shift: int = 0) -> None:
        self._pages = mmap.mmap(-1, size + 2 * PAGE)
        self._pages[:] = b"\xaa" * len(self._pages)
        self._first = PAGE + shift
        self._size = size
        self.destination = HostDestination(ctypes.addressof(ctypes.c_char.from_buffer(self._pages)) + self._first)

    def content(self) -> bytes:
        """Returns what was loaded; nothing else may have changed."""
        end = self._first + self._size
        assert set(self._pages[: self._first] + self._pages[end:]) <= {0xAA}
        return self._pages[self._first : end]


@pytest.mark.parametrize("direct", [None, False, True])
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_every_byte_arrives(tmp_path: Path, size: int, direct: bool | None, verify: bool) -> None:
    settings = ReadSettings(threads=3, slot_bytes=SLOT, direct=direct)
    with make_weights(tmp_path / "blob", size) as weights:
        memory = HostMemory(size)
        report = load([weights.file], [memory.destination], verify=verify, settings=settings)
    assert memory.content() == weights.content
    assert report.bytes == size
    assert report.direct_bytes <= (size if direct is not False else 0)


@pytest.mark.parametrize("shift", [1, 512, PAGE // 2])
def test_an_unaligned_destination_is_read_through_the_page_cache(tmp_path: Path, shift: int) -> None:
    with make_weights(tmp_path / "blob", 3 * SLOT) as weights:
        memory = HostMemory(3 * SLOT, shift)
        report = load([weights.file], [memory.destination], settings=ReadSettings(direct=True))
    assert memory.content() == weights.content
    assert report.direct_bytes == 0


def test_several_files_of_any_size(tmp_path: Path) -> None:
    sizes = [0, 5 * SLOT, 7, 0, 2 * SLOT + 1]
    with ExitStack() as stack:
        weights = [stack.enter_context(make_weights(tmp_path / f"{n}", size)) for n, size in enumerate(sizes)]
        memories = [HostMemory(size) for size in sizes]
        files, destinations = [item.file for item in weights], [memory.destination for memory in memories]
        settings = ReadSettings(threads=4, slot_bytes=SLOT)
        report = load(files, destinations, verify=True, settings=settings)
    assert [memory.content() for memory in memories] == [item.content for item in weights]
    assert report.bytes == sum(sizes)
    assert load([], []).bytes == 0


def test_only_the_declared_bytes_of_a_longer_file(tmp_path: Path) -> None:
    with make_weights(tmp_path / "blob", 4 * SLOT) as weights:
        size = 2 * SLOT + 100
        memory = HostMemory(size)
        load([FileLoad(weights.file.descriptor, size, "blob")], [memory.destination])
    assert memory.content() == weights.content[:size]


# Digests


@pytest.mark.parametrize("position", ["first", "middle", "last"])
def test_a_changed_byte_is_found_with_its_chunk(tmp_path: Path, position: str) -> None:
    path = tmp_path / "blob"
    with make_weights(path, 9 * SLOT + 77) as weights:
        chunk = {"first": weights.file.chunks[0], "middle": weights.file.chunks[2], "last": weights.file.chunks[-1]}[
            position
        ]
        with path.open("r+b") as file:
            file.seek(chunk.offset + chunk.size - 1)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        memory = HostMemory(weights.file.size)
        settings = ReadSettings(slot_bytes=SLOT)
        with pytest.raises(DigestMismatchError) as caught:
            load([weights.file], [memory.destination], verify=True, settings=settings)
        found = hashlib.sha256(path.read_bytes()[chunk.offset : chunk.offset + chunk.size]).hexdigest()
        assert str(path) in caught.value.message
        assert f"{chunk.size} bytes at offset {chunk.offset} is {found}" in caught.value.message
        assert chunk.sha256 in caught.value.message
        assert "fetch it again" in caught.value.hint
        load([weights.file], [memory.destination], settings=settings)  # nobody asked


@pytest.mark.parametrize("damage", ["absent", "gap", "short"])
def test_digests_that_do_not_cover_a_file_are_refused(tmp_path: Path, damage: str) -> None:
    with make_weights(tmp_path / "blob", 9 * SLOT) as weights:
        chunks = weights.file.chunks
        wrong: Sequence[Chunk] = {"absent": (), "gap": (*chunks[:1], *chunks[2:]), "short": chunks[:-1]}[damage]
        file = FileLoad(weights.file.descriptor, weights.file.size, "blob", wrong)
        memory = HostMemory(file.size)
        with pytest.raises(PaitonError, match="blob: digests cover"):
            load([file], [memory.destination], verify=True)
    assert set(memory.content()) == {0xAA}


@pytest.mark.parametrize("portable", [0, 1])
def test_sha256_is_sha256(portable: int) -> None:
    content = random.Random(5).randbytes(5000)
    digest = ctypes.create_string_buffer(32)
    for size in [*range(200), 1023, 4096, 5000]:
        library().paiton_sha256(content, size, portable, digest)
        assert digest.raw == hashlib.sha256(content[:size]).digest(), size


# Errors


def test_a_file_that_is_too_short_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with make_weights(tmp_path / "blob", SLOT) as weights:
        memory = HostMemory(SLOT)
        file = FileLoad(weights.file.descriptor, SLOT + 1, "the blob")
        with pytest.raises(FileSizeError, match=f"the blob has {SLOT} bytes instead of {SLOT + 1}"):
            load([file], [memory.destination])
    assert set(memory.content()) == {0xAA}


@pytest.mark.parametrize("direct", [False, True])
def test_a_failed_read_names_file_offset_and_reason(tmp_path: Path, direct: bool) -> None:
    """The destination's third slot is no memory: the kernel refuses to write there, wherever the file comes from."""
    memory = HostMemory(4 * SLOT)
    destination = memory.destination
    hole = destination.address + 2 * SLOT
    settings = ReadSettings(threads=2, slot_bytes=SLOT, direct=direct)
    with make_weights(tmp_path / "blob", 4 * SLOT) as weights:
        assert ctypes.CDLL(None).munmap(ctypes.c_void_p(hole), ctypes.c_size_t(SLOT)) == 0
        try:
            with pytest.raises(StoreError) as caught:
                load([weights.file], [destination], settings=settings)
        finally:
            refill(hole, SLOT)
    assert caught.value.message == (
        f"{weights.file.name}: reading at offset {2 * SLOT} failed: {os.strerror(errno.EFAULT)}"
    )


@pytest.mark.parametrize("direct", [True, False])
def test_a_descriptor_that_cannot_be_read(tmp_path: Path, direct: bool) -> None:
    path = tmp_path / "blob"
    path.write_bytes(bytes(SLOT))
    descriptor = os.open(path, os.O_WRONLY)
    try:
        memory = HostMemory(SLOT, shift=1)  # what is not aligned is read through the descriptor itself
        file, settings = FileLoad(descriptor, SLOT, "blob"), ReadSettings(direct=direct)
        with pytest.raises(StoreError, match=os.strerror(errno.EBADF)):
            load([file], [memory.destination], settings=settings)
    finally:
        os.close(descriptor)


def test_a_stopped_load_raises_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    stop = Stop()
    stop.set()
    with make_weights(tmp_path / "blob", 4 * SLOT) as weights:
        memory = HostMemory(4 * SLOT)
        with pytest.raises(LoadStoppedError):
            load([weights.file], [memory.destination], stop=stop)
    assert set(memory.content()) == {0xAA}


def test_descriptors_are_closed(tmp_path: Path) -> None:
    with make_weights(tmp_path / "blob", SLOT) as weights:
        memory = HostMemory(SLOT)
        before = open_descriptors()
        load([weights.file], [memory.destination], settings=ReadSettings(direct=True))
        assert open_descriptors() == before


@pytest.mark.parametrize(("threads", "slot_bytes", "slots"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_settings_without_substance_are_refused(threads: int, slot_bytes: int, slots: int) -> None:
    with pytest.raises(PaitonError, match="readers need"):
        ReadSettings(threads, slot_bytes, slots)


# Which way


@pytest.mark.parametrize("size", [SLOT, 7 * SLOT + 5 * PAGE + 17])
def test_all_but_an_unaligned_end_is_read_directly(tmp_path: Path, size: int) -> None:
    with make_weights(tmp_path / "blob", size) as weights:
        try:
            os.close(os.open(weights.file.name, os.O_RDONLY | os.O_DIRECT))
        except OSError as error:
            pytest.skip(f"{tmp_path} has no O_DIRECT: {error.strerror}")
        memory = HostMemory(size)
        settings = ReadSettings(threads=2, slot_bytes=SLOT, direct=True)
        report = load([weights.file], [memory.destination], settings=settings)
    assert memory.content() == weights.content
    assert report.direct_bytes == size - size % PAGE


def test_a_file_system_that_refuses_to_open_directly_is_read_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: str, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    with make_weights(tmp_path / "blob", 3 * SLOT) as weights:
        memory = HostMemory(3 * SLOT)
        report = load([weights.file], [memory.destination], settings=ReadSettings(direct=True))
    assert memory.content() == weights.content
    assert report.direct_bytes == 0


def test_a_file_system_that_refuses_to_read_directly_is_read_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def unreadable(_path: str, _flags: int) -> int:
        return real("/proc/self/ns/net", os.O_RDONLY)  # reading it is EINVAL

    with make_weights(tmp_path / "blob", 3 * SLOT) as weights:
        monkeypatch.setattr(os, "open", unreadable)
        memory = HostMemory(3 * SLOT)
        report = load([weights.file], [memory.destination], settings=ReadSettings(direct=True, slot_bytes=SLOT))
    assert memory.content() == weights.content
    assert report.direct_bytes == 0


@pytest.mark.parametrize(("share", "direct"), [(0.0, True), (0.49, True), (0.5, False), (1.0, False)])
def test_what_is_cached_is_not_read_around_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, direct: bool
) -> None:
    opened: list[int] = []
    real = os.open

    def record(path: str, flags: int) -> int:
        opened.append(flags)
        return real(path, flags)

    monkeypatch.setattr(loader, "residency", lambda _descriptor, _size: share)
    with make_weights(tmp_path / "blob", SLOT) as weights:
        monkeypatch.setattr(os, "open", record)
        memory = HostMemory(SLOT)
        load([weights.file], [memory.destination])
    assert memory.content() == weights.content
    assert [bool(flags & os.O_DIRECT) for flags in opened] == [True] * direct


@pytest.mark.parametrize("portable", [False, True])
def test_residency_tells_cached_from_cold(tmp_path: Path, portable: bool) -> None:
    size = 8 * WINDOW + 5
    with make_weights(tmp_path / "blob", size) as weights:
        descriptor = weights.file.descriptor
        assert residency(descriptor, size, portable=portable) == 1
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if file_system(tmp_path) == "tmpfs":
            pytest.skip("a tmpfs is nothing but page cache")
        assert residency(descriptor, size, portable=portable) == 0
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        os.pread(descriptor, 3 * WINDOW, 0)
        assert residency(descriptor, size, portable=portable) == pytest.approx(3 / 8, abs=0.01)
        assert residency(descriptor, 3 * WINDOW, portable=portable) == 1
        assert residency(descriptor, 0, portable=portable) == 1


@pytest.mark.parametrize("portable", [False, True])
def test_residency_of_a_large_file_is_sampled_all_over_it(tmp_path: Path, portable: bool) -> None:
    path = tmp_path / "sparse"
    size = 16 * PROBE_WINDOWS * WINDOW
    with path.open("w+b") as file:
        file.truncate(size)
        assert residency(file.fileno(), size, portable=portable) == 0
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for sample in range(0, PROBE_WINDOWS, 2):
            os.pread(file.fileno(), WINDOW, sample * 16 * WINDOW)
        assert residency(file.fileno(), size, portable=portable) == pytest.approx(0.5, abs=0.01)


def test_residency_of_what_is_no_file() -> None:
    with pytest.raises(StoreError, match=os.strerror(errno.EBADF)):
        residency(-1, PAGE)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def refill(address: int, size: int) -> None:
    """Maps pages where there are none, so that their owner can unmap them."""
    fixed, private_anonymous, read_write = 0x10, 0x22, 3
    mmap_function = ctypes.CDLL(None).mmap
    mmap_function.restype = ctypes.c_void_p
    arguments = ctypes.c_void_p(address), ctypes.c_size_t(size), read_write, fixed | private_anonymous, -1
    assert mmap_function(*arguments, ctypes.c_long(0)) == address


def file_system(path: Path) -> str:
    command = ["stat", "--file-system", "--format=%T", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
