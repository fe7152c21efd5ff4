"""The cache: complete or not there, never damaged, never too large, and shared."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from paiton_artifacts.errors import DiskFullError, LockTimeoutError, UsageError
from paiton_artifacts.store import cache as cache_module
from paiton_artifacts.store.address import Address, parse_address
from paiton_artifacts.store.cache import Cache, parse_size
from paiton_artifacts.store.locks import FileLock
from paiton_artifacts.store.push import Push
from paiton_artifacts.store.resolve import Resolver
from paiton_artifacts.trust.policy import Policy
from tests.cpu.store import bundles


@pytest.fixture
def remarks() -> list[str]:
    """What the cache had to say."""
    return []


@pytest.fixture
def store_cache(tmp_path: Path, remarks: list[str]) -> Cache:
    """An empty store_cache."""
    return Cache(tmp_path / "cache", remark=remarks.append)


@pytest.fixture
def address(bundle: Path, tmp_path: Path) -> Address:
    """A bundle in a store in a folder."""
    return Push(bundle, parse_address(f"file://{tmp_path}/store/tiny:v1")).run().address


def pull(store_cache: Cache, address: Address) -> Path:
    return Resolver(Policy(allow_untrusted=True), store_cache).cached(address)


def release() -> None:
    """Gives up what this process uses, as if it had ended."""
    while cache_module._held:
        cache_module._held.pop().release()


def flip(path: Path, offset: int) -> None:
    """Changes one bit of a file, and not its times: what a bad disk does."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def other(tmp_path: Path, number: int) -> Address:
    made = bundles.make(tmp_path / f"bundle-{number}", seed=number)
    return Push(made, parse_address(f"file://{tmp_path}/store/other-{number}:v1")).run().address


def test_an_altered_file_is_noticed_and_fetched_again(
    bundle: Path, store_cache: Cache, address: Address, remarks: list[str]
) -> None:
    found = pull(store_cache, address)
    flip(found / "blobs/rank-1.bin", 3_000_000)
    os.utime(found / "blobs/rank-1.bin")
    again = pull(store_cache, address)
    assert bundles.contents(again) == bundles.contents(bundle)
    assert any("changed" in text for text in remarks)
    assert any("damaged" in text for text in remarks)
    (aside,) = (store_cache.root / "quarantine").iterdir()
    assert aside.name.startswith(address.digest or "-")


@pytest.mark.parametrize("file", ["manifest.msgpack", "blobs/rank-0.bin", "tokenizer/tokenizer.json"])
def test_a_missing_or_short_file_is_noticed(bundle: Path, store_cache: Cache, address: Address, file: str) -> None:
    found = pull(store_cache, address)
    (found / file).unlink()
    assert bundles.contents(pull(store_cache, address)) == bundles.contents(bundle)
    (found / file).chmod(0o644)
    os.truncate(found / file, 1)
    assert bundles.contents(pull(store_cache, address)) == bundles.contents(bundle)


def test_a_touched_file_is_verified_once(store_cache: Cache, address: Address, remarks: list[str]) -> None:
    found = pull(store_cache, address)
    os.utime(found / "blobs/rank-0.bin")
    for _ in range(2):
        assert pull(store_cache, address) == found
    assert len(remarks) == 1
    assert not (store_cache.root / "quarantine").exists()


def test_silent_damage_is_found_by_verify(bundle: Path, store_cache: Cache, address: Address) -> None:
    digest = address.digest or ""
    found = pull(store_cache, address)
    assert not any(check.error for check in store_cache.verify(digest))
    flip(found / "blobs/rank-1.bin", 3_000_000)
    (failed,) = (check for check in store_cache.verify(digest) if check.error)
    assert failed.path == "blobs/rank-1.bin"
    assert store_cache.find(digest) is None
    assert bundles.contents(pull(store_cache, address)) == bundles.contents(bundle)


def test_an_altered_manifest_is_never_used(store_cache: Cache, address: Address) -> None:
    found = pull(store_cache, address)
    flip(found / "manifest.msgpack", 200)
    digest = address.digest or ""
    assert store_cache.manifest(digest) is None
    assert store_cache.find(digest) is None
    pull(store_cache, address)
    assert store_cache.manifest(digest) is not None


def test_a_wrong_partial_file_does_not_survive(bundle: Path, store_cache: Cache, address: Address) -> None:
    """What a crash left may be anything: a journal that says complete, and blocks that never reached the disk."""
    found = pull(store_cache, address)
    shutil.move(found / "manifest.msgpack", found / ".manifest.partial")
    (found / ".journal").write_bytes(b"\1" * 1000)
    flip(found / "blobs/rank-0.bin", 2_500_000)
    flip(found / "code/cpu/generic.so", 0)
    assert bundles.contents(pull(store_cache, address)) == bundles.contents(bundle)


def test_least_recently_used_goes_first(store_cache: Cache, tmp_path: Path) -> None:
    addresses = [other(tmp_path, number) for number in range(3)]
    paths = [pull(store_cache, address) for address in addresses]
    for age, number in ((300, 1), (200, 0), (100, 2)):
        stamp = store_cache.root / "stamps" / f"{addresses[number].digest}.json"
        os.utime(stamp, (time.time() - age, time.time() - age))
    assert [entry.digest for entry in store_cache.entries()] == [addresses[n].digest for n in (1, 0, 2)]
    assert store_cache.prune(0) == [], "all are in use"
    release()
    one = store_cache.size() // 3
    assert [entry.path for entry in store_cache.prune(2 * one + 1000)] == [paths[1]]
    small = Cache(store_cache.root, limit=2 * one + 100_000)
    fourth = pull(small, other(tmp_path, 4))
    assert not paths[0].exists()
    assert paths[2].exists()
    assert fourth.exists()
    assert small.size() <= 2 * one + 100_000
    with pytest.raises(DiskFullError, match="PAITON_CACHE_LIMIT"):
        pull(Cache(tmp_path / "empty", limit=1000), addresses[0])


def test_what_nobody_resumes_goes(store_cache: Cache, address: Address) -> None:
    found = pull(store_cache, address)
    release()
    shutil.move(found / "manifest.msgpack", found / ".manifest.partial")
    assert store_cache.prune(1 << 40) == []
    os.utime(found, (1, 1))
    assert [entry.complete for entry in store_cache.prune(1 << 40)] == [False]


def test_shared_caches_are_read_and_never_written(
    bundle: Path, store_cache: Cache, address: Address, tmp_path: Path, remarks: list[str]
) -> None:
    shared = pull(store_cache, address)
    release()
    before = {path: path.lstat().st_mtime_ns for path in store_cache.root.rglob("*")}
    own = Cache(tmp_path / "own", shared=(store_cache.root,), remark=remarks.append)
    assert pull(own, address) == shared
    assert {path: path.lstat().st_mtime_ns for path in store_cache.root.rglob("*")} == before
    assert not own.root.exists()
    flip(shared / "blobs/rank-0.bin", 5)
    os.utime(shared / "blobs/rank-0.bin")
    repaired = pull(own, address)
    assert repaired != shared
    assert bundles.contents(repaired) == bundles.contents(bundle)


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAITON_CACHE", str(tmp_path))
    monkeypatch.setenv("PAITON_CACHE_LIMIT", "1.5G")
    monkeypatch.setenv("PAITON_CACHE_SHARED", f"/one{os.pathsep}/two")
    made = Cache.from_environment()
    assert (made.root, made.limit) == (tmp_path / "bundles", 3 << 29)
    assert made.shared == (Path("/one/bundles"), Path("/two/bundles"))


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("10", 10), ("1k", 1024), ("2MiB", 2 << 20), ("1.5 TB", 3 << 39)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1P", "nan", "many"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_locks_time_out_and_end_with_their_holder(tmp_path: Path) -> None:
    waited: list[bool] = []
    with FileLock(tmp_path / "lock"):
        with pytest.raises(LockTimeoutError):
            FileLock(tmp_path / "lock", timeout=0.1, waiting=lambda: waited.append(True))
        with pytest.raises(LockTimeoutError):
            FileLock(tmp_path / "lock", shared=True)
    assert waited == [True]
    with FileLock(tmp_path / "lock", shared=True), FileLock(tmp_path / "lock", shared=True):
        pass
    got: list[bool] = []
    first = FileLock(tmp_path / "lock")

    def wait() -> None:
        with FileLock(tmp_path / "lock", timeout=10):
            got.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    first.release()
    thread.join()
    assert got
