"""Pulls by processes that are killed, run side by side, and run out of disk."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paiton_artifacts.store import cache as cache_module
from paiton_artifacts.store.address import parse_address
from paiton_artifacts.store.cache import Cache
from paiton_artifacts.store.push import Push, Pushed
from tests.cpu.store import bundles
from tests.cpu.store.proxy import Fault, Proxy

KILLS = int(os.environ.get("PAITON_TEST_KILLS", "6"))
"""Times that a pull is killed at a random moment."""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """A function that starts `paiton-run` with some arguments and a cache of its own."""

    def run(*arguments: str | Path, before: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "paiton_runtime.cli", *map(str, arguments)]
        if before:
            command = ["bash", "-c", f'{before}; exec "$@"', "bash", *command]
        environment = {**os.environ, "PAITON_CACHE": str(tmp_path / "shared-cache")}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        )

    return run


@pytest.fixture
def pushed(bundle: Path, proxy: Proxy, root: str) -> Pushed:
    """The bundle in the store, and a proxy in front of it that has seen nothing yet."""
    done = Push(bundle, parse_address(f"{root}/tiny:v1")).run()
    proxy.passed.clear()
    return done


def fetched(proxy: Proxy) -> int:
    return sum(one.received for one in proxy.requests("/blobs/"))


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_killed_pull_resumes(bundle: Path, pushed: Pushed, proxy: Proxy, start: Start, tmp_path: Path) -> None:
    proxy.faults = [Fault("slow", times=1000, delay=0.05)]
    first = start("pull", pushed.address)
    while len(proxy.so_far("/blobs/")) < 7:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    finish(first)
    cache = Cache(tmp_path / "shared-cache" / "bundles")
    (entry,) = cache.entries()
    assert not entry.complete
    assert cache.find(pushed.digest) is None
    before = fetched(proxy)
    proxy.faults = []
    code, out, err = finish(start("pull", pushed.address))
    assert code == 0, err
    assert bundles.contents(Path(out.strip())) == bundles.contents(bundle)
    assert fetched(proxy) - before <= pushed.bytes - 2 * bundles.MIB, "what was complete is not fetched again"


def test_pulls_killed_at_random_moments(
    bundle: Path, pushed: Pushed, proxy: Proxy, start: Start, tmp_path: Path
) -> None:
    dice = random.Random(1)
    cache = Cache(tmp_path / "shared-cache" / "bundles")
    proxy.faults = [Fault("slow", times=10**6, delay=0.01)]
    for _ in range(KILLS):
        process = start("pull", pushed.address)
        time.sleep(dice.uniform(0.15, 0.9))
        process.send_signal(signal.SIGKILL)
        finish(process)
        if (found := cache.find(pushed.digest)) is not None:
            assert bundles.contents(found) == bundles.contents(bundle)
            assert cache.prune(0) == []  # in use by this process
            cache_module._held.pop().release()
            assert [entry.digest for entry in cache.prune(0)] == [pushed.digest]  # and from the start again
    proxy.faults = []
    code, out, err = finish(start("pull", pushed.address, "-q"))
    assert code == 0, err
    assert bundles.contents(Path(out.strip())) == bundles.contents(bundle)


def test_two_pulls_at_once_fetch_once(bundle: Path, pushed: Pushed, proxy: Proxy, start: Start) -> None:
    proxy.faults = [Fault("slow", times=1000, delay=0.02)]
    for code, out, err in map(finish, [start("pull", pushed.address) for _ in range(3)]):
        assert code == 0, err
        assert bundles.contents(Path(out.strip())) == bundles.contents(bundle)
    assert fetched(proxy) == pushed.bytes


def test_an_interrupted_pull_ends_soon_and_resumes(pushed: Pushed, proxy: Proxy, start: Start) -> None:
    proxy.faults = [Fault("slow", times=1000, delay=0.05)]
    process = start("pull", pushed.address)
    while not proxy.so_far("/blobs/"):
        time.sleep(0.01)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130, err
    assert "Traceback" not in err
    assert time.monotonic() - begun < 10
    proxy.faults = []
    assert finish(start("pull", pushed.address))[0] == 0


def test_a_full_disk(bundle: Path, pushed: Pushed, start: Start) -> None:
    """A limit on the size of files stands for it: the system says so at a write, and not before."""
    code, _, err = finish(start("pull", pushed.address, before="ulimit -f 1500"))
    assert code == 7, err
    assert "no space left" in err
    assert "Traceback" not in err
    code, out, err = finish(start("pull", pushed.address))
    assert code == 0, err
    assert bundles.contents(Path(out.strip())) == bundles.contents(bundle)


def test_a_bundle_that_cannot_fit_is_refused_at_once(
    pushed: Pushed, proxy: Proxy, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAITON_CACHE_LIMIT", "5M")
    code, _, err = finish(start("pull", pushed.address))
    assert code == 7
    assert "PAITON_CACHE_LIMIT" in err
    assert not proxy.requests("/blobs/")


def test_commands_take_urls(pushed: Pushed, root: str, start: Start) -> None:
    code, out, err = finish(start("inspect", f"{root}/tiny:v1", "--json", "--allow-untrusted"))
    assert code == 0, err
    assert json.loads(out)["model"]["name"] == "tiny"
    code, out, err = finish(start("inspect", f"{root}/tiny:v1"))
    assert (code, out) == (4, "")
    assert "--allow-untrusted" in err
    code, out, err = finish(start("inspect", f"{root}/none:v1", "--allow-untrusted"))
    assert (code, out) == (5, "")
    code, out, err = finish(start("cache", "verify", "--json"))
    assert code == 0, err
    assert json.loads(out)["bundles"] == [{"digest": f"sha256:{pushed.digest}", "ok": True, "errors": []}]
    code, out, _ = finish(start("cache", "prune", "--to", "0", "--json"))
    assert code == 0
    assert [one["digest"] for one in json.loads(out)["removed"]] == [f"sha256:{pushed.digest}"]
    code, out, _ = finish(start("cache", "ls", "--json"))
    assert code == 0
    assert json.loads(out)["bundles"] == []
