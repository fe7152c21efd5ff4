"""gc, ls and diff."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from paiton_artifacts.errors import DigestMismatchError, LockTimeoutError, VerificationError
from paiton_artifacts.store import push as push_module
from paiton_artifacts.store.address import parse_address
from paiton_artifacts.store.client import Store
from paiton_artifacts.store.collect import collect_garbage
from paiton_artifacts.store.push import Push, Pushed
from paiton_artifacts.store.resolve import Resolver
from paiton_artifacts.trust.policy import Policy
from tests.cpu.store import bundles
from tests.cpu.store.proxy import running
from tests.cpu.store.weed import Weed

NOW = timedelta(seconds=-5)
"""Everything is old enough: times of S3 are whole seconds."""


def keys(root: str) -> set[str]:
    folders = ("blobs", "manifests", "tags", "pending", "gc")
    return {info.key for folder in folders for info in Store(root).objects(folder)}


def push(path: Path, url: str) -> Pushed:
    return Push(path, parse_address(url)).run()


def build(command: str, *arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "paiton_aot.cli", command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    return done.returncode, done.stdout, done.stderr


def test_only_what_nothing_refers_to_goes(bundle: Path, root: str, resolver: Resolver, tmp_path: Path) -> None:
    kept = push(bundle, f"{root}/tiny:v1")
    before = keys(root)
    assert not collect_garbage(Store(root), NOW).objects
    store = Store(root)
    rebuilt = push(bundles.make(tmp_path / "rebuilt", changed=1), f"{root}/tiny:v2")
    store.delete([f"manifests/sha256/{rebuilt.digest}", "tags/tiny/v2"])
    assert not collect_garbage(store, timedelta(hours=1)).objects, "young things stay"
    found = collect_garbage(store, NOW, dry_run=True)
    assert len(found.objects) == 1
    assert found.bytes == bundles.MIB
    assert keys(root) != before
    assert collect_garbage(store, NOW).objects == found.objects
    assert keys(root) == before
    assert bundles.contents(resolver.cached(kept.address)) == bundles.contents(bundle)


def test_untagged_manifests_go_only_if_asked(bundle: Path, root: str, tmp_path: Path) -> None:
    store = Store(root)
    old = push(bundle, f"{root}/tiny:v1")
    push(bundles.make(tmp_path / "rebuilt", changed=1), f"{root}/tiny:v1")
    (bundle / "model.sig").write_text("x")
    try:
        push(bundle, f"{root}/tiny:old")
    finally:
        (bundle / "model.sig").unlink()
    store.delete(["tags/tiny/old"])
    assert not collect_garbage(store, NOW).objects
    gone = {info.key for info in collect_garbage(store, NOW, untagged=True).objects}
    manifest = f"manifests/sha256/{old.digest}"
    assert {manifest, f"{manifest}.model.sig"} <= gone
    assert len(gone) == 3, "and the one chunk that only it had"


def test_a_push_that_goes_on_is_safe(bundle: Path, root: str) -> None:
    """All blobs are there, the manifest is not: what a gc sees in the middle of a push."""
    store = Store(root)
    done = push(bundle, f"{root}/tiny:v1")
    data = (bundle / "manifest.msgpack").read_bytes()
    store.put(f"pending/sha256/{done.digest}", data)
    store.delete([f"manifests/sha256/{done.digest}", "tags/tiny/v1"])
    assert not collect_garbage(store, timedelta(minutes=5)).objects
    everything = collect_garbage(store, NOW)
    assert len(everything.objects) == done.objects + 1
    assert keys(root) == set()


def test_a_push_waits_for_a_gc(bundle: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(root)
    store.put("gc/under-way", b"somebody else's")
    remarks: list[str] = []
    ended: list[float] = []

    def run() -> None:
        Push(bundle, parse_address(f"{root}/tiny:v1"), remark=remarks.append).run()
        ended.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.5)
    assert not ended
    with pytest.raises(LockTimeoutError, match="another gc"):
        collect_garbage(store, NOW)
    assert store.info("blobs/sha256/" + "0" * 64) is None
    assert not list(store.objects("blobs")), "nothing is uploaded or relied on before the gc ends"
    store.delete(["gc/under-way"])
    thread.join()
    assert remarks == ["waiting for a gc of the store to end"]
    store.put("gc/under-way", b"one that died")
    monkeypatch.setattr(push_module, "COLLECTOR_ALIVE", -1.0)
    push(bundle, f"{root}/tiny:v2")


def test_a_damaged_manifest_stops_a_gc(bundle: Path, root: str) -> None:
    store = Store(root)
    done = push(bundle, f"{root}/tiny:v1")
    before = keys(root)
    store.put(f"manifests/sha256/{done.digest}", b"damaged")
    with pytest.raises(VerificationError):
        collect_garbage(store, NOW)
    assert keys(root) == before


def test_the_stores_clock_decides(bundle: Path, tmp_path: Path) -> None:
    """A folder whose files are a day ahead of this machine's clock, then a day behind."""
    folder = tmp_path / "store"
    root = f"file://{folder}"
    done = push(bundle, f"{root}/tiny:v1")
    store = Store(root)
    store.delete([f"manifests/sha256/{done.digest}"])
    for path in (folder / "blobs/sha256").iterdir():
        os.utime(path, (time.time() + 86400, time.time() + 86400))
    assert not collect_garbage(store, NOW).objects
    for path in (folder / "blobs/sha256").iterdir():
        os.utime(path, (time.time() - 86400, time.time() - 86400))
    assert len(collect_garbage(store, timedelta(hours=23)).objects) == done.objects


def test_commands(bundle: Path, root: str, tmp_path: Path) -> None:
    rebuilt = bundles.make(tmp_path / "rebuilt", changed=1, code=b"new code")
    code, out, err = build("push", bundle, f"{root}/tiny:v1", "--json")
    assert code == 0, err
    first = json.loads(out)
    assert first["uploaded_bytes"] >= first["bytes"]
    assert build("push", bundle, f"{root}/tiny:v1", "--expect", "none")[0] == 0, "what is there is what is wanted"
    assert build("push", rebuilt, f"{root}/tiny:v1", "--expect", "none")[0] == 5
    code, out, err = build("push", rebuilt, f"{root}/tiny:v2", "-q")
    assert (code, err) == (0, "")
    code, out, _ = build("ls", root, "--json")
    assert [(one["name"], one["tag"]) for one in json.loads(out)["bundles"]] == [("tiny", "v1"), ("tiny", "v2")]
    code, out, _ = build("ls", f"{root}/tiny")
    assert out.count("tiny:v") == 2
    code, out, _ = build("diff", f"{root}/tiny:v1", rebuilt, "--json")
    found = json.loads(out)
    assert found["changed"].keys() == {"blobs/rank-0.bin", "code/cpu/generic.so"}
    assert found["new_bytes"] == bundles.MIB + len(b"new code")
    code, out, _ = build("gc", root, "--older-than", "0s", "--dry-run", "--json")
    assert (code, json.loads(out)["deleted"]) == (0, [])
    assert build("gc", root, "--older-than", "soon")[0] == 2


def test_ls_says_what_is_damaged(bundle: Path, root: str) -> None:
    done = push(bundle, f"{root}/tiny:v1")
    Store(root).put(f"manifests/sha256/{done.digest}", b"damaged")
    code, out, _ = build("ls", root)
    assert code == 0
    assert "DAMAGED" in out
    with pytest.raises(DigestMismatchError):
        Resolver(Policy(allow_untrusted=True)).approve(done.address)


def test_a_store_without_conditional_writes(
    bundle: Path,
    weed: Weed,
    root: str,
    monkeypatch: pytest.MonkeyPatch,
    new_resolver: Callable[[str], Resolver],
) -> None:
    """A gateway that ignores the conditions of requests, as several do; unsigned, for it alters them."""
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with running(weed.port, drop=("if-none-match", "if-match")) as gateway:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.url)
        store = Store(root)
        assert store.put("probe", b"1", "absent")
        assert store.put("probe", b"2", "absent"), "it overwrites, as such gateways do"
        done = push(bundle, f"{root}/tiny:v1")
        assert Push(bundle, parse_address(f"{root}/tiny:v2"), expected="").run().digest == done.digest
        assert not collect_garbage(store, NOW).objects
        found = new_resolver("a").cached(done.address)
        assert bundles.contents(found) == bundles.contents(bundle)
