"""What a store, or what lies between, can do to a transfer: no wrong byte enters, retries end, errors are clear."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paiton_artifacts.errors import (
    DigestMismatchError,
    FileSizeError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)
from paiton_artifacts.store.address import parse_address
from paiton_artifacts.store.push import Push, Pushed
from paiton_artifacts.store.resolve import Resolver
from paiton_artifacts.store.retry import RetryPolicy, describe
from paiton_artifacts.store.retry_after import parse_retry_after
from tests.cpu.store import bundles
from tests.cpu.store.proxy import Fault, Proxy
from tests.cpu.store.weed import Weed


@pytest.fixture
def pushed(bundle: Path, proxy: Proxy, root: str) -> Pushed:
    """The bundle in the store, and a proxy in front of it that has seen nothing yet."""
    done = Push(bundle, parse_address(f"{root}/tiny:v1")).run()
    proxy.forget()
    return done


def pull(resolver: Resolver, pushed: Pushed) -> Path:
    return resolver.cached(pushed.address)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("status", times=3, status=500), Fault("status", path="/manifests/", status=503)],
        [Fault("reset", times=3), Fault("reset", path="/tags/")],
        [Fault("truncate", times=4)],
        [Fault("corrupt", times=2)],
        [Fault("status", status=429), Fault("truncate"), Fault("corrupt"), Fault("reset")],
    ],
    ids=["errors", "resets", "truncated", "corrupted", "mixed"],
)
def test_a_pull_gets_through(
    bundle: Path, pushed: Pushed, proxy: Proxy, resolver: Resolver, faults: list[Fault]
) -> None:
    proxy.faults = faults
    found = pull(resolver, pushed)
    assert bundles.contents(found) == bundles.contents(bundle)
    blob_faults = [fault for fault in faults if fault.path == "/blobs/"]
    assert not any(fault.times for fault in blob_faults), "every fault has happened"


def test_a_truncated_body_is_taken_up_where_it_broke(pushed: Pushed, proxy: Proxy, resolver: Resolver) -> None:
    """Through S3, which has ranges: what was there is not sent again."""
    proxy.faults = [Fault("truncate", times=8)]
    pull(resolver, pushed)
    chunks = sum(one.received for one in proxy.requests("/blobs/") if one.received >= bundles.MIB // 4)
    assert chunks <= pushed.bytes * 1.1


def test_a_store_that_always_damages_is_not_believed(pushed: Pushed, proxy: Proxy, resolver: Resolver) -> None:
    proxy.faults = [Fault("corrupt", times=1000)]
    with pytest.raises(DigestMismatchError, match="3 times in a row"):
        pull(resolver, pushed)
    assert resolver.cache.find(pushed.digest) is None
    proxy.faults = [Fault("corrupt", path="/manifests/", times=1000)]
    with pytest.raises(DigestMismatchError, match="manifests/sha256"):
        pull(resolver, pushed)


def test_retries_are_bounded(pushed: Pushed, proxy: Proxy, resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAITON_STORE_ATTEMPTS", "3")
    proxy.faults = [Fault("status", times=10**6)]
    with pytest.raises(StoreUnavailableError, match=r"failed 3 times.*500") as caught:
        pull(resolver, pushed)
    assert "resumes" in caught.value.hint
    counts: dict[str, int] = {}
    for one in proxy.requests("/blobs/"):
        counts[one.path] = counts.get(one.path, 0) + 1
    assert max(counts.values()) == 3


def test_retry_after_is_honoured(pushed: Pushed, proxy: Proxy, resolver: Resolver) -> None:
    busy = {"Retry-After": "2"}
    proxy.faults = [
        Fault("status", path="/manifests/", method=method, status=429, headers=busy) for method in ("GET", "HEAD")
    ]
    pull(resolver, pushed)
    first, second = proxy.requests(f"/manifests/sha256/{pushed.digest}")[:2]
    assert second.at - first.at >= 2


def test_a_server_that_wants_too_much_patience(pushed: Pushed, proxy: Proxy, resolver: Resolver) -> None:
    busy = {"Retry-After": "3600"}
    proxy.faults = [
        Fault("status", path="/manifests/", method=method, times=9, status=503, headers=busy)
        for method in ("GET", "HEAD")
    ]
    start = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="3600 s"):
        pull(resolver, pushed)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("120", "", 120.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:30 GMT", 0.0),
        ("", "", None),
        ("-1", "", None),
        ("soon", "", None),
    ],
)
def test_retry_after_values(value: str, date: str, seconds: float | None) -> None:
    assert parse_retry_after(value, date) == seconds


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "ExpiredToken", "credentials have expired"),
        (400, "ExpiredToken", "credentials have expired"),
        (403, "AccessDenied", "access denied"),
        (403, "RequestTimeTooSkewed", "clocks differ"),
    ],
)
def test_refusals_are_told_at_once(
    pushed: Pushed, proxy: Proxy, resolver: Resolver, status: int, code: str, words: str
) -> None:
    body = f"<Error><Code>{code}</Code></Error>".encode()
    proxy.faults = [Fault("status", times=100, status=status, body=body)]
    with pytest.raises(StoreAccessError, match=words):
        pull(resolver, pushed)
    paths = [one.path for one in proxy.requests("/blobs/")]
    assert len(paths) == len(set(paths)), "nothing is asked for twice"


def test_an_object_of_another_size(pushed: Pushed, bundle: Path, root: str, weed: Weed, resolver: Resolver) -> None:
    store = weed.store(root.rpartition("/")[2])
    (key, *_) = (meta["path"] for metas in store.list("blobs/") for meta in metas if meta["size"] == bundles.MIB)
    store.put(key, b"short")
    with pytest.raises(FileSizeError, match="5 bytes instead of 1048576"):
        pull(resolver, pushed)
    Push(bundle, parse_address(f"{root}/tiny:v1")).run()  # sees the size, and mends it
    assert bundles.contents(pull(resolver, pushed)) == bundles.contents(bundle)


def test_a_slow_server_is_waited_for(bundle: Path, pushed: Pushed, proxy: Proxy, resolver: Resolver) -> None:
    proxy.faults = [Fault("slow", times=2, delay=0.1)]
    assert bundles.contents(pull(resolver, pushed)) == bundles.contents(bundle)
    assert len(proxy.requests("/blobs/")) == pushed.objects - 1, "the empty file is not asked for"


@pytest.mark.parametrize("kind", ["status", "reset", "lose-answer"])
def test_a_push_gets_through(bundle: Path, proxy: Proxy, root: str, resolver: Resolver, kind: str) -> None:
    proxy.faults = [
        Fault(kind, path=path, method="PUT", times=times)  # type: ignore[arg-type]
        for path, times in (("/blobs/", 3), ("/manifests/", 1), ("/tags/", 1), ("/pending/", 1))
    ]
    done = Push(bundle, parse_address(f"{root}/tiny:v1"), expected="").run()
    assert not any(fault.times for fault in proxy.faults)
    assert bundles.contents(pull(resolver, done)) == bundles.contents(bundle)


def test_two_pushes_at_once(bundle: Path, root: str, resolver: Resolver) -> None:
    done: list[Pushed] = []
    address = parse_address(f"{root}/tiny:v1")
    threads = [threading.Thread(target=lambda: done.append(Push(bundle, address).run())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    assert bundles.contents(pull(resolver, done[0])) == bundles.contents(bundle)


def test_a_server_that_is_killed_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_resolver: Callable[[str], Resolver]
) -> None:
    large = bundles.make(tmp_path / "large", mib=16)
    with Weed(tmp_path / "weed") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        address = parse_address("s3://paiton-test/large:v1")
        seen = threading.Event()

        def outage() -> None:
            seen.wait(30)
            server.kill()
            server.start()

        def watch(done: int, _total: int) -> None:
            if done > 4 * bundles.MIB:
                seen.set()

        for work in (
            lambda: Push(large, address, progress=watch).run(),
            lambda: Resolver(new_resolver("x").policy, new_resolver("x").cache, watch).cached(address),
        ):
            seen.clear()
            thread = threading.Thread(target=outage)
            thread.start()
            work()
            thread.join()
        found = new_resolver("x").cached(address)
        assert bundles.contents(found) == bundles.contents(large)


def test_what_nobody_listens_to(bundle: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PAITON_STORE_ATTEMPTS", "2")
    with pytest.raises(StoreUnavailableError, match="failed 2 times"):
        Push(bundle, parse_address(f"{root}/tiny:v1")).run()
    monkeypatch.setenv("PAITON_STORE_ATTEMPTS", "many")
    with pytest.raises(Exception, match="no number of attempts"):
        Push(bundle, parse_address(f"{root}/tiny:v1")).run()


def test_errors_do_not_repeat_whole_bodies() -> None:
    failure = describe(Exception(f"status code: 502 Bad Gateway: {'<html>' * 1000}\n\nDebug source:\nx"))
    assert failure.status == 502
    assert len(failure.reason) <= 300
    assert failure.passing


def test_delays_grow_but_not_for_ever() -> None:
    policy = RetryPolicy()
    assert sum(min(policy.first_delay * 2**n, policy.longest_delay) for n in range(policy.attempts - 1)) < 90
    assert isinstance(StoreUnavailableError("x"), StoreError)
