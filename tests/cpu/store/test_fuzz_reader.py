"""The fuzzer of what reads a manifest (`python -m benchmarks fuzz`), for a moment and always the same way."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from benchmarks import fuzz
from paiton_artifacts import validate


def inputs(count: int) -> list[bytes]:
    """Returns inputs of every kind, each a few mutations away from a good one."""
    dice = random.Random(7)
    good = fuzz.seeds()
    made = []
    for index in range(count):
        data = good[index % len(good)]
        for _ in range(dice.randrange(1, 4)):
            data = fuzz.mutate(data, dice)
        made.append(data)
    return made


def test_nothing_but_our_errors_and_little_memory() -> None:
    for data in fuzz.seeds():
        fuzz.read(data)
    made = inputs(3000)
    tracemalloc.start()
    for data in made:
        fuzz.read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def test_mutations_reach_what_checks_a_manifest() -> None:
    reached = fuzz.covered(inputs(400))
    for module in ("rules", "consistency"):
        hit, lines = reached[f"paiton_artifacts.{module}"]
        assert hit > lines / 2


def test_another_error_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("name")

    monkeypatch.setattr(validate, "parse_manifest", broken)
    with pytest.raises(KeyError):
        fuzz.read(fuzz.seeds()[0])
