"""The lease of a build key, on real servers: with conditional writes one builds, without them nothing breaks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paiton_aot.cache import remote as remote_module
from paiton_aot.cache.remote import RemoteCache
from paiton_aot.progress import Progress
from paiton_artifacts.errors import LockTimeoutError
from paiton_artifacts.store.client import Store
from paiton_artifacts.trust.policy import Policy
from tests.cpu.store.azurite import CONTAINER
from tests.cpu.store.proxy import running
from tests.cpu.store.weed import BUCKET, Weed

KEY = "0" * 64


def cache_at(url: str) -> RemoteCache:
    """A build cache, as a runner of its own opens it."""
    return RemoteCache(url, Store(url, create=True), Policy(allow_untrusted=True), Progress(enabled=False))


@pytest.fixture(params=["s3", "az", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty store with conditional writes."""
    monkeypatch.setattr(remote_module, "_POLL_SECONDS", 0.05)
    if request.param == "az":
        for name, value in request.getfixturevalue("azurite").environment().items():
            monkeypatch.setenv(name, value)
        return f"az://{CONTAINER}/{tmp_path.name}"
    return f"file://{tmp_path}/store" if request.param == "file" else str(request.getfixturevalue("root"))


@contextlib.contextmanager
def building(url: str, *, timeout: float = 0.0, built: bool = False) -> Iterator[None]:
    """Holds the lease as a build does."""
    with cache_at(url).lease(KEY, timeout, lambda: built):
        yield


def test_one_builds_and_the_others_wait(url: str) -> None:
    inside, most, lock = 0, 0, threading.Lock()
    failures: list[BaseException] = []

    def build() -> None:
        nonlocal inside, most
        try:
            with building(url, timeout=60):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.1)
                with lock:
                    inside -= 1
        except BaseException as error:  # noqa: BLE001  (shown by the test)
            failures.append(error)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert most == 1
    assert not list(Store(url).objects("leases"))


def test_who_has_waited_long_enough_gives_up(url: str) -> None:
    with building(url), pytest.raises(LockTimeoutError, match=KEY), building(url):
        pytest.fail("two hold the lease")
    with building(url):
        pass


def test_once_it_is_built_nobody_waits(url: str) -> None:
    with building(url), building(url, timeout=60, built=True):
        pass


def test_the_lease_of_a_dead_build_is_taken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead by the store's clock, whatever this machine's says."""
    Store(url, create=True).put(f"leases/{KEY}", b"{}")
    with pytest.raises(LockTimeoutError), building(url):
        pytest.fail("it was alive a moment ago")
    monkeypatch.setattr(remote_module, "LEASE_SECONDS", 2.0)
    with building(url, timeout=30):
        assert not cache_at(url).store.put(f"leases/{KEY}", b"{}", "absent")


def test_a_living_build_renews_its_lease(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(remote_module, "_RENEW_SECONDS", 0.3)
    with building(url), pytest.raises(LockTimeoutError), building(url, timeout=3.5):
        pytest.fail("two hold the lease")


def test_a_gateway_that_ignores_conditions_only_costs_time(
    weed: Weed, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several S3 gateways do: then two build the same thing, and the last one's lease counts."""
    with running(weed.port, drop=("if-none-match", "if-match")) as gateway:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.url)
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")  # the gateway alters what would be signed
        store = Store(root)
        assert store.put("probe", b"1", "absent")
        assert store.put("probe", b"2", "absent"), "it overwrites"
        with building(root), building(root):
            assert list(store.objects("leases"))
    assert BUCKET in root
