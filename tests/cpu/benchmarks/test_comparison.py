"""Contenders measured alternately: turns, ratios round by round, and those that cannot run; loaders of others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.comparison import Numbers, compare, print_medians
from benchmarks.load_peers import PeerLoader, start_loaders, write_safetensors
from benchmarks.peers import PeerError

SIZE = 3 << 20


def test_contenders_take_turns_and_are_compared_round_by_round(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def contender(name: str, speeds: list[float]) -> Numbers:
        order.append(name)
        return {"speed": speeds[order.count(name) - 1]}

    def broken() -> Numbers:
        order.append("broken")
        raise PeerError("it is not installed")

    found = compare(
        {
            "paiton": lambda: contender("paiton", [10.0, 30.0, 80.0]),
            "peer": lambda: contender("peer", [10.0, 10.0, 40.0]),
            "broken": broken,
            "slow": lambda: contender("slow", [5.0]),
        },
        3,
        at_most={"slow": 1},
    )
    assert order == ["paiton", "peer", "broken", "slow", "peer", "paiton", "paiton", "peer"]
    told = found.as_json()
    assert told["contenders"]["paiton"]["speed"] == {"min": 10.0, "median": 30.0, "max": 80.0, "runs": 3}
    assert told["ratios"]["peer"]["speed"] == {"min": 1.0, "median": 2.0, "max": 3.0, "runs": 3}
    assert told["ratios"]["slow"]["speed"]["median"] == 6.0  # of medians: it ran once
    assert told["absent"] == {"broken": "it is not installed"}
    print_medians(found)
    shown = capsys.readouterr().out
    assert "10 (2.00x)" in shown
    assert "broken: absent, it is not installed" in shown


def test_loaders_of_others_load_the_bytes_of_the_file_or_say_why_not(tmp_path: Path) -> None:
    program = tmp_path / "loaders" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    path = tmp_path / "file.safetensors"
    write_safetensors(path, SIZE)
    running, absent = start_loaders(tmp_path, path, SIZE)
    (peer,) = running
    with peer:
        assert peer.destination == "given"
        assert peer.load() > 0
        assert peer.load() > 0
        peer._expected += 1
        with pytest.raises(PeerError, match="other bytes"):
            peer.load()
    assert {name: "No module named" in reason for name, reason in absent.items()} == {
        "fastsafetensors": True,
        "runai-model-streamer": True,
        "flashpack": True,
    }
    with pytest.raises(PeerError, match="--install-peers"):
        PeerLoader("safetensors", tmp_path / "nothing", path, 0)
