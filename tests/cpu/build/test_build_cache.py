"""`paiton-build --cache` with a directory and with a store, through the command, as CI uses it."""

from __future__ import annotations

import fcntl
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paiton_aot import build as build_module
from paiton_aot.cli import main
from paiton_artifacts.layout import MANIFEST_NAME, PROVENANCE_NAME
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.verify import verify_files
from tests.conftest import python_environment
from tests.cpu.build.cached import Cached, contents


def test_a_second_build_is_a_hit_with_the_same_bytes(
    cached: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, events = cached.run("-o", tmp_path / "a")
    assert (first["hit"], first["differs"]) == (False, None)
    assert [event["event"] for event in events].count("miss") == 1
    assert first["verified_levels"]
    monkeypatch.setattr(build_module, "build", None)  # whoever calls it fails
    second, events = cached.run("-o", tmp_path / "b")
    assert second["hit"]
    assert {event["event"] for event in events} <= {"begin", "progress", "end"}
    assert second["key"] == first["key"]
    assert second["manifest_sha256"] == first["manifest_sha256"]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    verify_files(open_bundle(tmp_path / "b"))
    third, _ = cached.run()
    assert third["hit"]
    assert third["bundle"].startswith(cached.cache)
    # A plain build, without any cache, gives the same.
    monkeypatch.undo()
    assert main([str(cached.model), "-o", str(tmp_path / "c"), "-q"]) == 0
    assert contents(tmp_path / "c") == contents(tmp_path / "a")


def test_without_an_output_the_result_says_where_the_bundle_is(cached: Cached) -> None:
    first, _ = cached.run()
    assert not first["hit"]
    assert first["bundle"].startswith(cached.cache)
    if cached.cache.startswith("file:"):
        assert first["bundle"].endswith(f"@sha256:{first['manifest_sha256']}")
    else:
        assert open_bundle(Path(first["bundle"])).manifest.tp == 1
    assert cached.run()[0]["hit"]


def test_a_miss_says_why(cached: Cached, tmp_path: Path) -> None:
    model = Path(shutil.copytree(cached.model, tmp_path / "model"))
    cached.model = model
    assert cached.run()[0]["differs"] is None
    config = model / "generation_config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    told, events = cached.run("--tp", "2")
    assert told["differs"] == ["checkpoint/generation_config.json", "option/tp"]
    (miss,) = (event for event in events if event["event"] == "miss")
    assert miss["differs"] == told["differs"]
    cached.capture.readouterr()
    assert main([str(model), "--cache", cached.cache, "--tp", "2", "--kv", "fp8"]) == 0
    assert "changed since the last build of this model: option/kv\n" in cached.capture.readouterr().err


def test_plan_says_what_the_cache_has(cached: Cached) -> None:
    def plan(*flags: str) -> dict[str, Any]:
        command = ["plan", str(cached.model), "--cache", cached.cache, "-q", *flags]
        cached.capture.readouterr()
        assert main([*command, "--json"]) == 0
        told: dict[str, Any] = json.loads(cached.capture.readouterr().out)["cache"]
        assert main(command) == 0
        assert f"cache            has {'it' if told['hit'] else ''}" in cached.capture.readouterr().out
        return told

    assert plan() == {"hit": False, "bundle": None, "differs": None}
    bundle = cached.run()[0]["bundle"]
    assert plan() == {"hit": True, "bundle": bundle, "differs": None}
    assert plan("--tp", "2") == {"hit": False, "bundle": None, "differs": ["option/tp"]}


def test_an_output_that_exists_is_refused_or_replaced(cached: Cached, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "precious").write_text("x")
    code, _, err = cached.attempt("-o", output)
    assert code == 2
    assert f"{output} exists" in err
    assert cached.attempt("-o", output, "--force")[0] == 2  # not a bundle
    assert not Path(cached.cache.removeprefix("file://")).exists()  # nothing was built for that
    cached.run("-o", tmp_path / "bundle")
    assert cached.attempt("-o", tmp_path / "bundle")[0] == 2
    (tmp_path / "bundle" / MANIFEST_NAME).unlink()
    (tmp_path / "bundle" / MANIFEST_NAME).write_text("broken")
    assert cached.run("-o", tmp_path / "bundle", "--force")[0]["hit"]
    verify_files(open_bundle(tmp_path / "bundle"))


@pytest.mark.parametrize("damage", ["bytes", "size", "missing", "manifest", "record", "provenance"])
def test_a_damaged_entry_is_built_anew(in_directory: Cached, damage: str) -> None:
    first, _ = in_directory.run()
    entry = Path(first["bundle"])
    good = contents(entry)
    blob = next((entry / "blobs").iterdir())
    if damage == "bytes":  # through a hard link, say: the size stays
        blob.chmod(0o644)
        with blob.open("r+b") as file:
            file.write(b"\xff")
    elif damage == "size":
        os.truncate(blob, 5)
    elif damage == "missing":
        blob.unlink()
    elif damage == "record":
        next((Path(in_directory.cache) / "records").iterdir()).write_text("[]")
    else:
        name = MANIFEST_NAME if damage == "manifest" else PROVENANCE_NAME
        (entry / name).unlink()
        (entry / name).write_text("{}")
    again, events = in_directory.run()
    assert not again["hit"]
    assert "damaged" in {event["event"] for event in events}
    assert contents(entry) == good
    assert in_directory.run()[0]["hit"]


def test_outputs_share_the_bytes_of_the_cache_and_survive_it(in_directory: Cached, tmp_path: Path) -> None:
    told, _ = in_directory.run("-o", tmp_path / "out")
    blob = "blobs/rank-0.bin"
    entry = Path(in_directory.cache) / "builds" / told["key"]
    one, other = (tmp_path / "out" / blob).stat(), (entry / blob).stat()
    assert one.st_ino == other.st_ino or one.st_nlink == other.st_nlink == 1  # linked, or cloned
    shutil.rmtree(in_directory.cache)
    verify_files(open_bundle(tmp_path / "out"))


def test_of_two_builds_at_once_one_works(in_directory: Cached) -> None:
    command = [sys.executable, "-m", "paiton_aot.cli", str(in_directory.model), "--cache", in_directory.cache, "--json"]
    environment = python_environment()
    children = [
        subprocess.Popen([*command, "-q"], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    told = [json.loads(child.communicate()[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert sorted(result["hit"] for result in told) == [False, True, True]
    assert len({result["manifest_sha256"] for result in told}) == 1


def test_a_lock_that_is_not_given_up_ends_with_75(in_directory: Cached) -> None:
    key = _key(in_directory)
    lock = Path(in_directory.cache) / "locks" / f"{key}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        start = time.monotonic()
        code, out, err = in_directory.attempt("--lock-timeout", "0.3")
        assert code == 75
        assert not out
        assert '"event": "waiting"' in err
        assert str(lock) in err
        assert 0.3 <= time.monotonic() - start < 5
    assert not in_directory.run("--lock-timeout", "0")[0]["hit"]


def _key(cached: Cached) -> str:
    assert main(["plan", str(cached.model), "--json", "-q"]) == 0
    key: str = json.loads(cached.capture.readouterr().out)["key"]
    return key


def test_a_remote_lease_of_somebody_alive_is_waited_for(in_store: Cached, tmp_path: Path) -> None:
    lease = tmp_path / "cache" / "leases" / _key(in_store)
    lease.parent.mkdir(parents=True)
    lease.write_text("{}")
    assert in_store.attempt("--lock-timeout", "0")[0] == 75
    hour_ago = time.time() - 3600
    os.utime(lease, (hour_ago, hour_ago))
    assert not in_store.run("--lock-timeout", "0")[0]["hit"]  # of somebody dead: taken over
    assert not list(lease.parent.iterdir())
    lease.write_text("{}")
    assert in_store.run("--lock-timeout", "0")[0]["hit"]  # a hit asks for no lease


def test_a_store_whose_bundle_is_gone_is_filled_again(in_store: Cached, tmp_path: Path) -> None:
    in_store.run()
    shutil.rmtree(tmp_path / "cache" / "manifests")
    again, events = in_store.run()
    assert not again["hit"]
    assert "refused" in {event["event"] for event in events}
    assert in_store.run()[0]["hit"]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A plain web server on the folder of a store; yields its URL."""
    (tmp_path / "cache").mkdir()
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without telling."""

    def log_message(self, *_: object) -> None:
        """Tells nothing."""


def test_a_cache_that_is_read_only_gives_hits_and_no_more(in_store: Cached, web: str, tmp_path: Path) -> None:
    published = in_store.run()[0]
    reader = Cached(in_store.model, web, in_store.capture)
    told, _ = reader.run("-o", tmp_path / "hit")
    assert told["hit"]
    assert told["manifest_sha256"] == published["manifest_sha256"]
    verify_files(open_bundle(tmp_path / "hit"))
    code, _, err = reader.attempt("--name", "other")
    assert code == 2
    assert "is read only" in err
    before = contents(tmp_path / "cache")
    assert not reader.run("--name", "other", "-o", tmp_path / "miss")[0]["hit"]
    assert contents(tmp_path / "cache") == before


def test_hits_may_have_to_be_signed(in_store: Cached, tmp_path: Path) -> None:
    """With a key to go by, what somebody put into the store unsigned, or signed otherwise, is built again."""
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    openssl = ("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private)
    subprocess.run(openssl, check=True)
    subprocess.run(("openssl", "ec", "-in", private, "-pubout", "-out", public), check=True, capture_output=True)
    flags = ("--trusted-key", public)
    in_store.run("-o", tmp_path / "a")
    again, events = in_store.run("-o", tmp_path / "b", *flags)
    assert not again["hit"]
    (refused,) = (event for event in events if event["event"] == "refused")
    assert "is not signed" in refused["reason"]
    assert main(["sign", str(tmp_path / "b"), "--key", str(private), "-q"]) == 0
    signature = tmp_path / "cache" / "manifests" / "sha256" / f"{again['manifest_sha256']}.model.sig"
    shutil.copy(tmp_path / "b" / "model.sig", signature)
    assert in_store.run(*flags)[0]["hit"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--check",), "--check compares with the bundle at -o"),
        (("--cache", "x", "--check", "-o", "y"), "--check compares with the bundle at -o"),
        (("-o", "y", "--trusted-key", "k.pem"), "--trusted-key is for what comes out of a --cache"),
        (("--cache", "x", "--lock-timeout", "-1"), "--lock-timeout -1 is negative"),
        (("--cache", "ftp://host/x"), "no stores of scheme"),
    ],
)
def test_flags_that_do_not_go_together(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert main([str(tiny_checkpoint), "-q", *flags]) in (2, 3)
    assert message in capsys.readouterr().err
