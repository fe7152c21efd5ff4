"""The flag protocol of collective kernels, in a model: every order of events of small groups, many of large ones."""

from __future__ import annotations

import os
from random import Random

import pytest

from tests.cpu.kernels.flag_protocol import Protocol, ProtocolError, Rules

CALLS = int(os.environ.get("PAITON_ALL_REDUCES", "100"))
"""Exchanges in random orders, of each size of a group; 10000 take two minutes."""


@pytest.mark.parametrize(("ranks", "exchanges"), [(2, 1), (2, 5), (3, 1), (3, 3)])
def test_no_order_of_events_is_wrong_or_hangs(ranks: int, exchanges: int) -> None:
    assert Protocol(ranks, exchanges).explore() > 10


@pytest.mark.parametrize(
    ("rules", "what"),
    [
        (Rules(halves=1), "reads"),
        (Rules(waits_for_stores=False), "reads"),
        (Rules(exact=True), "for ever"),
        (Rules(replay=3, baked="half"), "reads"),
        (Rules(replay=3, baked="number"), "reads"),
    ],
    ids=["one-half", "no-wait", "exact-flags", "baked-half", "baked-numbers"],
)
def test_the_model_finds_mistakes(rules: Rules, what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        Protocol(2, 5, rules).explore()


def test_an_even_graph_hides_a_baked_half() -> None:
    """Why an odd number of exchanges is among the cases above: an even one alternates by luck."""
    assert Protocol(2, 4, Rules(replay=2, baked="half")).explore() > 10


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_random_orders_of_large_groups(ranks: int) -> None:
    exchanges = 25
    for seed in range(max(1, CALLS // exchanges)):
        Protocol(ranks, exchanges).wander(Random(seed))
