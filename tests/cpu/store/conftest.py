"""One S3 server for all tests of this folder, a prefix of its own for each, and nobody's real credentials."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paiton_artifacts.store.cache import Cache
from paiton_artifacts.store.resolve import Resolver
from paiton_artifacts.trust.policy import Policy
from tests.cpu.store import bundles
from tests.cpu.store.azurite import Azurite
from tests.cpu.store.proxy import Proxy, running
from tests.cpu.store.weed import BUCKET, Weed


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """The server."""
    with Weed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """The server of Azure's protocol, where it is installed."""
    with Azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keeps the user's credentials, endpoints and cache out of tests, and tests out of them."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "PAITON_")) and name != "PAITON_TEST_CACHE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PAITON_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def root(weed: Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty store on the server, with the variables set that lead there."""
    for name, value in weed.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def proxy(weed: Weed, root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy between the variables and the server; `root` leads through it."""
    with running(weed.port) as made:
        assert root
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes: two ranks of 4 chunks of 1 MiB."""
    return bundles.make(tmp_path_factory.mktemp("bundle") / "one")


@pytest.fixture
def bundle_cache(tmp_path: Path) -> Cache:
    """An empty cache."""
    return Cache(tmp_path / "cache")


@pytest.fixture
def resolver(bundle_cache: Cache) -> Resolver:
    """Fetches into the empty cache, whoever vouches for a bundle."""
    return Resolver(Policy(allow_untrusted=True), bundle_cache)


@pytest.fixture
def new_resolver(tmp_path: Path) -> Callable[[str], Resolver]:
    """A function that returns a resolver with a cache of its own."""
    return lambda name: Resolver(Policy(allow_untrusted=True), Cache(tmp_path / name))
