"""Azure Blob Storage: bundles through a real server of its protocol."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from paiton_aot.cli import main
from paiton_artifacts.errors import StoreAccessError, TagMovedError
from paiton_artifacts.store.address import parse_address
from paiton_artifacts.store.client import Store
from paiton_artifacts.store.collect import collect_garbage
from paiton_artifacts.store.push import Push
from paiton_artifacts.store.resolve import Resolver
from tests.cpu.store import bundles
from tests.cpu.store.azurite import CONTAINER, Azurite


@pytest.fixture
def az(azurite: Azurite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty store on the server, with the variables set that lead there."""
    for name, value in azurite.environment().items():
        monkeypatch.setenv(name, value)
    return f"az://{CONTAINER}/{tmp_path.name}"


def test_a_bundle_comes_back_byte_for_byte(az: str, tmp_path: Path, resolver: Resolver) -> None:
    large = bundles.make(tmp_path / "large", mib=20, chunk=18 * bundles.MIB)  # chunks of several parts
    pushed = Push(large, parse_address(f"{az}/large:v1")).run()
    assert bundles.contents(resolver.cached(pushed.address)) == bundles.contents(large)
    assert Push(large, parse_address(f"{az}/large:v1")).run().uploaded_bytes == 0


def test_conditional_writes_hold(bundle: Path, az: str, tmp_path: Path) -> None:
    store = Store(az)
    assert store.put("probe", b"1", "absent")
    assert not store.put("probe", b"2", "absent")
    first = store.info("probe")
    assert first is not None
    assert store.put("probe", b"3", first.etag)
    assert not store.put("probe", b"4", first.etag)
    assert store.read("probe", 10) == b"3"
    pushed = Push(bundle, parse_address(f"{az}/tiny:v1"), expected="").run()
    with pytest.raises(TagMovedError, match=pushed.digest):
        Push(bundles.make(tmp_path / "second", changed=2), parse_address(f"{az}/tiny:v1"), expected="").run()


def test_ls_diff_and_gc(bundle: Path, az: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Push(bundle, parse_address(f"{az}/tiny:v1")).run()
    second = bundles.make(tmp_path / "second", changed=2)
    Push(second, parse_address(f"{az}/tiny:v1")).run()
    assert main(["ls", az]) == 0
    assert "tiny:v1" in capsys.readouterr().out
    assert main(["diff", f"{az}/tiny:v1", str(bundle)]) == 0
    garbage = collect_garbage(Store(az), timedelta(seconds=-60), untagged=True)  # whatever its age
    assert sum(info.size > 1000 and "/blobs/" in f"/{info.key}" for info in garbage.objects) == 1


def test_wrong_credentials(az: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    with pytest.raises(StoreAccessError):
        Store(az).read("tags/tiny/v1", 100)
