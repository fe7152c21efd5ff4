"""Bundles that go to a real S3 server and come back, and what they cost on the way."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pytest

from paiton_artifacts.errors import (
    BundleNotFoundError,
    DigestMismatchError,
    OutputExistsError,
    StoreError,
    TagMovedError,
    UntrustedBundleError,
)
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.store.address import parse_address
from paiton_artifacts.store.client import PART_BYTES, Store
from paiton_artifacts.store.push import Push, Pushed
from paiton_artifacts.store.resolve import Resolver, resolve_bundle
from paiton_artifacts.trust.policy import Policy
from tests.cpu.store import bundles
from tests.cpu.store.proxy import Proxy
from tests.cpu.store.weed import Weed


def push(path: Path, url: str, expected: str | None = None) -> Pushed:
    return Push(path, parse_address(url), expected=expected).run()


def bytes_sent(proxy: Proxy) -> int:
    return sum(one.sent for one in proxy.passed)


def test_a_bundle_comes_back_byte_for_byte(bundle: Path, root: str, resolver: Resolver) -> None:
    push(bundle, f"{root}/tiny:v1")
    found = resolver.cached(parse_address(f"{root}/tiny:v1"))
    assert bundles.contents(found) == bundles.contents(bundle)
    assert open_bundle(found).manifest == open_bundle(bundle).manifest


def test_keys_are_digests_of_what_they_hold(bundle: Path, root: str, weed: Weed) -> None:
    """Read with a client of another make of the same protocol: obstore without our code."""
    pushed = push(bundle, f"{root}/tiny:v1")
    store = weed.store(root.rpartition("/")[2])
    held = {meta["path"]: bytes(store.get(meta["path"]).bytes()) for metas in store.list() for meta in metas}
    tag = held.pop("tags/tiny/v1")
    assert tag == f"sha256:{pushed.digest}\n".encode()
    assert held[f"manifests/sha256/{pushed.digest}"] == (bundle / "manifest.msgpack").read_bytes()
    folders = {key.rpartition("/")[0] for key in held}
    assert folders == {"blobs/sha256", "manifests/sha256"}, "nothing is left behind"
    assert all(hashlib.sha256(data).hexdigest() == key.rpartition("/")[2] for key, data in held.items())
    blob = (bundle / "blobs/rank-1.bin").read_bytes()
    chunks = open_bundle(bundle).manifest.blobs[1].chunks
    assert b"".join(held[f"blobs/sha256/{chunk.sha256}"] for chunk in chunks) == blob


def test_a_push_without_change_moves_next_to_nothing(bundle: Path, proxy: Proxy, root: str) -> None:
    first = push(bundle, f"{root}/tiny:v1")
    assert bytes_sent(proxy) >= first.bytes
    proxy.forget()
    second = push(bundle, f"{root}/tiny:v1")
    assert second.uploaded_bytes == 0
    assert sum(one.sent + one.received for one in proxy.passed) < first.bytes / 1000
    assert not proxy.requests("", "PUT")


def test_a_rebuilt_bundle_moves_only_what_changed(bundle: Path, proxy: Proxy, root: str, tmp_path: Path) -> None:
    push(bundle, f"{root}/tiny:v1")
    rebuilt = bundles.make(tmp_path / "rebuilt", changed=1)
    proxy.forget()
    pushed = push(rebuilt, f"{root}/tiny:v1")
    assert pushed.uploaded == 1
    manifest = (rebuilt / "manifest.msgpack").stat().st_size
    assert bundles.MIB <= bytes_sent(proxy) <= bundles.MIB + 3 * manifest
    assert pushed.replaced == hashlib.sha256((bundle / "manifest.msgpack").read_bytes()).hexdigest()


def test_bundles_for_other_targets_share_every_weight_chunk(
    bundle: Path, proxy: Proxy, root: str, tmp_path: Path
) -> None:
    push(bundle, f"{root}/tiny:v1")
    other = bundles.make(tmp_path / "other", code=b"other code")
    proxy.forget()
    assert push(other, f"{root}/other:v1").uploaded == 1
    assert bytes_sent(proxy) < 10_000


def test_objects_of_several_parts_come_back(root: str, tmp_path: Path, resolver: Resolver) -> None:
    large = bundles.make(tmp_path / "large", mib=20, chunk=18 * bundles.MIB)
    assert large.joinpath("blobs/rank-0.bin").stat().st_size > 2 * PART_BYTES
    push(large, f"{root}/large:v1")
    found = resolver.cached(parse_address(f"{root}/large:v1"))
    assert bundles.contents(found) == bundles.contents(large)


def test_a_damaged_bundle_is_not_published(root: str, tmp_path: Path) -> None:
    damaged = bundles.make(tmp_path / "damaged", mib=10, chunk=10 * bundles.MIB)
    blob = damaged / "blobs/rank-0.bin"
    with blob.open("r+b") as file:
        file.seek(10 * bundles.MIB - 1)
        file.write(b"\0")
    with pytest.raises(DigestMismatchError, match=r"rank-0\.bin"):
        push(damaged, f"{root}/damaged:v1")
    chunk = open_bundle(damaged).manifest.blobs[0].chunks[0].sha256
    store = Store(root)
    assert store.info(f"blobs/sha256/{chunk}") is None, "a key never holds anything but what it says"
    assert store.info("tags/damaged/v1") is None


def test_a_missing_bundle_and_a_missing_blob_are_told_apart(bundle: Path, root: str, resolver: Resolver) -> None:
    with pytest.raises(BundleNotFoundError, match="tiny:v9"):
        resolver.cached(parse_address(f"{root}/tiny:v9"))
    pushed = push(bundle, f"{root}/tiny:v1")
    chunk = open_bundle(bundle).manifest.blobs[0].chunks[0].sha256
    Store(root).delete([f"blobs/sha256/{chunk}"])
    with pytest.raises(StoreError, match=chunk):
        resolver.cached(parse_address(f"{root}/tiny:v1"))
    assert not resolver.cache.find(pushed.digest)
    push(bundle, f"{root}/tiny:v1")  # which puts back what is missing
    assert resolver.cached(parse_address(f"{root}/tiny:v1"))


def test_expected_tags(bundle: Path, root: str, tmp_path: Path) -> None:
    first = push(bundle, f"{root}/tiny:v1", expected="")
    with pytest.raises(TagMovedError, match=first.digest):
        push(bundles.make(tmp_path / "second", changed=2), f"{root}/tiny:v1", expected="")
    third = push(bundles.make(tmp_path / "third", changed=3), f"{root}/tiny:v1", expected=first.digest)
    assert third.replaced == first.digest
    assert Store(root).read("tags/tiny/v1", 100) == f"sha256:{third.digest}\n".encode()


def test_a_pinned_bundle_in_the_cache_needs_no_store(
    bundle: Path, root: str, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = push(bundle, f"{root}/tiny:v1")
    found = resolver.cached(parse_address(f"{root}/tiny:v1"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    strict = Resolver(Policy(), resolver.cache)
    assert strict.cached(parse_address(f"{root}/tiny@sha256:{pushed.digest}")) == found


def test_the_policy_comes_before_any_blob(bundle: Path, proxy: Proxy, root: str, resolver: Resolver) -> None:
    push(bundle, f"{root}/tiny:v1")
    proxy.forget()
    with pytest.raises(UntrustedBundleError):
        resolve_bundle(f"{root}/tiny:v1", Policy, resolver.cache)
    assert proxy.requests("/manifests/")
    assert not proxy.requests("/blobs/")


def test_companions_travel_with_the_bundle(root: str, tmp_path: Path, resolver: Resolver) -> None:
    signed = bundles.make(tmp_path / "signed")
    for name in ("model.sig", "sbom.cdx.json"):
        (signed / name).write_text(f"contents of {name}")
    push(signed, f"{root}/signed:v1")
    found = resolver.cached(parse_address(f"{root}/signed:v1"))
    assert bundles.contents(found) == bundles.contents(signed)
    (signed / "model.sig").write_text("a newer signature")
    assert push(signed, f"{root}/signed:v1").uploaded == 0
    digest = hashlib.sha256((signed / "manifest.msgpack").read_bytes()).hexdigest()
    assert Store(root).read(f"manifests/sha256/{digest}.model.sig", 100) == b"a newer signature"


def test_to_a_directory(bundle: Path, root: str, resolver: Resolver, tmp_path: Path) -> None:
    push(bundle, f"{root}/tiny:v1")
    output = resolver.download(parse_address(f"{root}/tiny:v1"), tmp_path / "output")
    assert bundles.contents(output) == bundles.contents(bundle)
    assert not resolver.cache.entries()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert resolver.download(parse_address(f"{root}/tiny:v1"), output) == output
    push(bundles.make(tmp_path / "rebuilt", changed=1), f"{root}/tiny:v1")
    with pytest.raises(OutputExistsError):
        resolver.download(parse_address(f"{root}/tiny:v1"), output)


@pytest.fixture
def folder_url(bundle: Path, tmp_path: Path) -> str:
    """URL of a store in a folder, with a bundle in it."""
    push(bundle, f"file://{tmp_path}/store/tiny:v1")
    return f"file://{tmp_path}/store"


def test_a_folder_is_a_store(bundle: Path, folder_url: str, resolver: Resolver) -> None:
    found = resolver.cached(parse_address(f"{folder_url}/tiny:v1"))
    assert bundles.contents(found) == bundles.contents(bundle)


@pytest.fixture
def plain_http(tmp_path: Path) -> Iterator[str]:
    """A web server for a folder, which knows nothing of ranges or listings."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "store"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.usefixtures("folder_url")
def test_a_plain_web_server_can_be_read(bundle: Path, plain_http: str, resolver: Resolver) -> None:
    found = resolver.cached(parse_address(f"{plain_http}/tiny:v1"))
    assert bundles.contents(found) == bundles.contents(bundle)
    with pytest.raises(StoreError, match="read only"):
        push(bundle, f"{plain_http}/tiny:v2")


def test_chunks_of_cached_bundles_are_not_fetched_again(
    bundle: Path, proxy: Proxy, root: str, resolver: Resolver, tmp_path: Path
) -> None:
    push(bundle, f"{root}/tiny:v1")
    push(bundles.make(tmp_path / "rebuilt", changed=1), f"{root}/tiny:v2")
    push(bundles.make(tmp_path / "other", code=b"other code"), f"{root}/tiny:v3")
    resolver.cached(parse_address(f"{root}/tiny:v1"))
    proxy.forget()
    second = resolver.cached(parse_address(f"{root}/tiny:v2"))
    assert [one.received for one in proxy.requests("/blobs/")] == [bundles.MIB]
    assert bundles.contents(second) == bundles.contents(tmp_path / "rebuilt")
    third = resolver.cached(parse_address(f"{root}/tiny:v3"))
    assert bundles.contents(third) == bundles.contents(tmp_path / "other")
    assert (third / "blobs/rank-0.bin").stat().st_nlink == 2, "equal blobs take their space once"


def test_memory_urls_last_as_long_as_the_process(bundle: Path, new_resolver: Callable[[str], Resolver]) -> None:
    push(bundle, "memory://shelf/tiny:v1")
    found = new_resolver("a").cached(parse_address("memory://shelf/tiny:v1"))
    assert bundles.contents(found) == bundles.contents(bundle)
    assert obstore.__version__.startswith("0.12.")
