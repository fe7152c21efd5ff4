"""Boots from a store: the weights arrive while the model is made ready, and stay in the cache."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from paiton_artifacts.errors import DigestMismatchError, StoreError
from paiton_artifacts.store.address import parse_address
from paiton_artifacts.store.arrival import Arrival
from paiton_artifacts.store.client import Store
from paiton_artifacts.store.push import Push, Pushed
from paiton_artifacts.store.resolve import Resolver
from paiton_runtime.arriving import ArrivingBundle
from paiton_runtime.boot import BootOptions, boot_bundle
from paiton_runtime.ledger import Ledger
from paiton_runtime.loader import FileLoad, HostDestination, load
from tests.cpu.store import bundles
from tests.cpu.store.proxy import Fault, Proxy

SIZE = 3 * bundles.MIB


@pytest.fixture
def pushed(tiny_bundle: Path, proxy: Proxy, root: str) -> Pushed:
    """A bundle that boots, in a store behind a proxy."""
    done = Push(tiny_bundle, parse_address(f"{root}/tiny:v1")).run()
    proxy.passed.clear()
    return done


@pytest.fixture
def parts(bundle: Path, proxy: Proxy, root: str) -> Pushed:
    """A bundle of several chunks, likewise; it has no code to boot."""
    done = Push(bundle, parse_address(f"{root}/parts:v1")).run()
    proxy.passed.clear()
    return done


def largest_blob(pushed: Pushed) -> str:
    """Returns its digest."""
    infos = Store(pushed.address.root).objects("blobs")
    return max(infos, key=lambda info: info.size).key.rpartition("/")[2]


def generate(where: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "paiton_runtime.cli",
        "generate",
        str(where),
        "hello",
        "--max-tokens",
        "4",
        "--json",
    ]
    environment = {**os.environ, "PAITON_CACHE": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def arrive(resolver: Resolver, pushed: Pushed) -> Arrival:
    found = resolver.arrive(pushed.address)
    assert isinstance(found, Arrival)
    return found


def test_a_boot_from_a_store_equals_one_from_disk(
    tiny_bundle: Path, pushed: Pushed, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.faults = [Fault("slow", times=100, delay=0.01)]
    cache = tmp_path / "cache"
    first, local = generate(str(pushed.address), cache), generate(tiny_bundle, cache)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["text"] == json.loads(local.stdout)["text"]
    entry = cache / "bundles" / "sha256" / pushed.digest
    assert bundles.contents(entry) == bundles.contents(tiny_bundle)
    proxy.passed.clear()
    again = generate(str(pushed.address), cache)
    assert again.returncode == 0, again.stderr
    assert not proxy.passed, "pinned and cached: no request at all"


def test_damage_on_the_way_is_never_booted(pushed: Pushed, proxy: Proxy, tmp_path: Path) -> None:
    blob = largest_blob(pushed)
    proxy.faults = [Fault("corrupt", path=blob, times=1000)]
    done = generate(str(pushed.address), tmp_path / "cache")
    assert done.returncode == 4, done.stderr
    assert blob in done.stderr
    assert "Traceback" not in done.stderr
    proxy.faults = []
    assert generate(str(pushed.address), tmp_path / "cache").returncode == 0


def test_a_store_that_dies_during_a_boot(
    pushed: Pushed, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAITON_STORE_ATTEMPTS", "2")
    blob = largest_blob(pushed)
    proxy.faults = [Fault("reset", path=blob, times=1000)]
    done = generate(str(pushed.address), tmp_path / "cache")
    assert done.returncode == 5, done.stderr
    assert "resumes" in done.stderr
    proxy.faults = []
    proxy.passed.clear()
    assert generate(str(pushed.address), tmp_path / "cache").returncode == 0
    assert [one.path.rpartition("/")[2] for one in proxy.requests("/blobs/")] == [blob], "the rest was there"


def test_batches_hold_every_byte_once_and_only_what_is_verified(
    bundle: Path, parts: Pushed, proxy: Proxy, resolver: Resolver
) -> None:
    proxy.faults = [Fault("slow", times=1000, delay=0.01), Fault("corrupt", times=2)]
    arrival = arrive(resolver, parts)
    assert (arrival.path / "tokenizer/tokenizer.json").read_bytes() == b"{}"
    seen: dict[tuple[int, int], int] = {}
    for batch in arrival.batches():
        for rank, offset, size in batch:
            assert (rank, offset) not in seen
            seen[rank, offset] = size
            path = f"blobs/rank-{rank}.bin"
            with (arrival.path / path).open("rb") as here, (bundle / path).open("rb") as there:
                here.seek(offset)
                there.seek(offset)
                assert here.read(size) == there.read(size)
    chunks = {(blob.rank, chunk.offset): chunk.size for blob in arrival.manifest.blobs for chunk in blob.chunks}
    assert seen == chunks
    assert not (arrival.path / "manifest.msgpack").exists(), "no bundle before it is durable"
    arrival.finish()
    assert bundles.contents(resolver.cache.path(parts.digest)) == bundles.contents(bundle)


def test_an_abandoned_arrival_ends_at_once_and_is_resumed(
    bundle: Path, parts: Pushed, proxy: Proxy, resolver: Resolver
) -> None:
    proxy.faults = [Fault("slow", path="/blobs/", times=1000, delay=0.02)]
    arrival = arrive(resolver, parts)
    errors: list[Exception] = []

    def consume() -> None:
        try:
            for _ in arrival.batches():
                pass
        except StoreError as error:
            errors.append(error)

    thread = threading.Thread(target=consume)
    thread.start()
    arrival.abandon()
    arrival.abandon()
    thread.join(10)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert not any(thread.name.startswith("paiton-fetch") for thread in threading.enumerate())
    proxy.faults = []
    assert bundles.contents(resolver.cached(parts.address)) == bundles.contents(bundle)


def test_a_failed_boot_leaves_no_lock(
    parts: Pushed, resolver: Resolver, new_resolver: Callable[[str], Resolver]
) -> None:
    """The bundle has no code that would load, so the boot fails while its weights arrive."""
    arrival = arrive(resolver, parts)
    with pytest.raises(Exception, match=r"generic|code"):
        boot_bundle(ArrivingBundle(arrival.path, arrival.manifest, arrival), BootOptions(target="cpu"), Ledger())
    assert new_resolver("other").cached(parts.address)
    assert resolver.cached(parts.address), "the lock is free"


def test_what_never_verifies_stops_the_batches(parts: Pushed, proxy: Proxy, resolver: Resolver) -> None:
    digest = largest_blob(parts)
    proxy.faults = [Fault("corrupt", path=digest, times=1000)]
    arrival = arrive(resolver, parts)
    with pytest.raises(DigestMismatchError, match=digest):
        for _ in arrival.batches():
            pass
    arrival.abandon()
    assert resolver.cache.find(parts.digest) is None


def test_the_loader_loads_parts_of_files(tmp_path: Path) -> None:
    """What the devices' drivers do with each batch, into memory of this process."""
    data = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(data)
    buffer = (ctypes.c_ubyte * SIZE)()
    with (tmp_path / "file").open("rb") as file:
        ranges = [(bundles.MIB, 700_000), (2 * bundles.MIB + 4096, 100)]
        report = load(
            [FileLoad(file.fileno(), SIZE, "file", parts=ranges)], [HostDestination(ctypes.addressof(buffer))]
        )
    expected = bytearray(SIZE)
    for offset, size in ranges:
        expected[offset : offset + size] = data[offset : offset + size]
    assert report.bytes == 700_100
    assert hashlib.sha256(buffer).digest() == hashlib.sha256(expected).digest()
