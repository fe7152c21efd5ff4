"""Weights on their way into blobs: blocks of any size, by several threads, and digests of what is final."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from paiton_aot import convert
from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.files import DIRECT_BYTES, CheckpointFile
from paiton_aot.checkpoint.read_buffers import CAPACITY, ReadBuffers
from paiton_aot.lower import lower
from paiton_aot.options import BuildOptions
from paiton_aot.quantize import Quantizer
from paiton_artifacts import digest as digest_module
from paiton_artifacts.digest import GrowingDigests
from paiton_artifacts.errors import CheckpointFormatError
from tests.fp8_checkpoints import FORMATS, configure, quantized
from tests.make_checkpoints import rewrite, tiny_llama

TP = 2


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a checkpoint with a vocabulary that the ranks pad."""
    return tiny_llama(tmp_path_factory.mktemp("bf16"), hidden=256, intermediate=512)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns one whose weights have scales of blocks."""
    source = tiny_llama(tmp_path_factory.mktemp("fp8"), hidden=256, intermediate=512, head_dim=64)
    rewrite(source, lambda tensors: quantized(tensors, FORMATS["fp8-block"]))
    configure(source, "fp8-block", FORMATS["fp8-block"].config)
    return source


def converted(source: Path, folder: Path, settled: Callable[[list[Path]], Callable[[int, int], object]]) -> list[bytes]:
    """Returns the ranks' blobs, for which `settled` made a listener."""
    folder.mkdir()
    options = BuildOptions(tp=TP)
    paths = [folder / f"rank-{rank}" for rank in range(TP)]
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(source))
        lowered = lower(checkpoint, options)
        files = [stack.enter_context(path.open("w+b")) for path in paths]
        for file in files:
            file.truncate(lowered.blob_bytes)
        table = {tensor.name: tensor for tensor in lowered.tensors}
        quantizer, listener = Quantizer(options.cache_dir), settled(paths)
        convert.write_tensors(checkpoint, lowered.specs, table, files, quantizer, lambda _: None, listener)
    return [path.read_bytes() for path in paths]


@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_what_is_settled_is_final(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source: Path = request.getfixturevalue(kind)
    whole = converted(source, tmp_path / "whole", lambda _paths: lambda _rank, _end: None)
    seen: list[tuple[int, int, bytes]] = []

    def listen(paths: list[Path]) -> Callable[[int, int], None]:
        return lambda rank, end: seen.append((rank, end, hashlib.sha256(paths[rank].read_bytes()[:end]).digest()))

    monkeypatch.setattr(convert, "BLOCK_BYTES", 40_000)
    blobs = converted(source, tmp_path / "blocks", listen)
    assert blobs == whole
    for rank in range(TP):
        ends = [end for number, end, _ in seen if number == rank]
        assert ends == sorted(ends)
        assert len(set(ends)) > 30
        assert ends[-1] > 0.9 * len(blobs[rank].rstrip(b"\0"))
    for rank, end, digest in seen:
        assert digest == hashlib.sha256(blobs[rank][:end]).digest(), (rank, end)


def test_digests_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_module, "_BUFFER_BYTES", 64)
    draw = np.random.default_rng(2)
    content = draw.bytes(5000)
    ranges = [(0, 1000), (1000, 2500), (3500, 1500), (5000, 10)]
    with (tmp_path / "blob").open("w+b", buffering=0) as file, ThreadPoolExecutor(2) as pool:
        digests = GrowingDigests(file.fileno(), ranges, pool)
        for end in (999, 1000, *sorted(draw.integers(1000, 5000, 50).tolist()), 5000):
            file.write(content[file.tell() : end])
            digests.settle(end)
            os.pwrite(file.fileno(), bytes(5000 - end), end)  # what comes later is not looked at
        wanted = [hashlib.sha256(content[at : at + size]).hexdigest() for at, size in ranges[:3]]
        assert digests.finish() == [*wanted, None]


def test_digests_do_not_wait_for_the_end_of_their_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(digest_module, "_BUFFER_BYTES", 64)
    preadv = os.preadv

    def read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        taken.append(offset)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", read)
    with (tmp_path / "blob").open("w+b", buffering=0) as file:
        file.write(bytes(1000))
        with ThreadPoolExecutor(1) as pool:
            digests = GrowingDigests(file.fileno(), [(0, 1000)], pool)
            digests.settle(100)
            digests.settle(127)
            pool.submit(int).result()  # what came before is done
            assert taken == [0], "63 bytes are too few to go on for"
            digests.settle(700)
            pool.submit(int).result()
            assert taken == list(range(0, 577, 64))
            assert digests.finish() == [hashlib.sha256(bytes(1000)).hexdigest()]


def test_a_digest_that_fails_is_told(tmp_path: Path) -> None:
    with (tmp_path / "blob").open("wb", buffering=0) as unreadable, ThreadPoolExecutor(1) as pool:
        digests = GrowingDigests(unreadable.fileno(), [(0, 1000)], pool)
        with pytest.raises(OSError, match="Bad file descriptor"):
            digests.finish()


@pytest.mark.parametrize("offset", [0, 8, 4096, 5001])
def test_reads_around_the_page_cache(offset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paiton_aot.checkpoint.files.residency", lambda _descriptor, _size: 0.0)
    path = tmp_path / "file"
    content = np.random.default_rng(3).bytes(offset + DIRECT_BYTES + 4097)
    path.write_bytes(content)
    file = CheckpointFile(path)
    try:
        for size in (DIRECT_BYTES - 1, DIRECT_BYTES, DIRECT_BYTES + 1, DIRECT_BYTES + 4097):
            assert file.read(offset, size).tobytes() == content[offset : offset + size]
        path.write_bytes(content[: offset + 4096])
        with pytest.raises(CheckpointFormatError, match="truncated"):
            file.read(offset, DIRECT_BYTES)
    finally:
        file.close()


def test_buffers_are_used_again_once_nothing_refers_to_them() -> None:
    buffers = ReadBuffers()
    first = buffers.take(1000)
    first[:] = 1
    address, row = first.ctypes.data, first[:800].view(np.uint16).reshape(20, 20)[7]
    del first
    second = buffers.take(CAPACITY)
    second[:] = 2
    assert address % mmap.PAGESIZE == second.ctypes.data % mmap.PAGESIZE == 0
    assert (row == 0x0101).all()
    del row
    assert buffers.take(5000).ctypes.data == address
    assert len(buffers.take(CAPACITY + 1)) == CAPACITY + 1


def test_reads_of_several_threads_keep_to_themselves(tmp_path: Path) -> None:
    path, size = tmp_path / "file", DIRECT_BYTES + 12
    path.write_bytes(b"".join(bytes([index]) * size for index in range(32)))
    file = CheckpointFile(path)
    try:
        with ThreadPoolExecutor(4) as pool:
            for index, block in enumerate(pool.map(lambda index: file.read(index * size, size), range(32))):
                assert block.tobytes() == bytes([index]) * size
    finally:
        file.close()
