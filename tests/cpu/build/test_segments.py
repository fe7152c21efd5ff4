"""Folding equal layers into templates loses nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paiton_aot.targets.segments import fold, unroll
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Access, Launch, LaunchFlag, Relocation, RelocationKind


def _layer(symbols: str, weight: int, peer: int = 0) -> tuple[Launch, ...]:
    return tuple(
        Launch(
            symbol,
            LaunchFlag.NONE,
            bytes(24),
            (
                Relocation(0, RelocationKind.LOCAL, Region.WEIGHTS, Access.READ, 0, weight + 256 * index, 0, 64),
                Relocation(8, RelocationKind.PEER, Region.COMM, Access.READ, peer, 0, 0, 64),
                Relocation(16, RelocationKind.RANK, Region.WEIGHTS, Access.NONE, 0, 7, 0, 0),
            ),
        )
        for index, symbol in enumerate(symbols)
    )


def test_equal_layers_become_one_template() -> None:
    layers = [_layer("abc", 4096 * index) for index in range(30)]
    (segment,) = fold(layers)
    assert (segment.repeat, len(segment.launches)) == (30, 3)
    assert segment.launches[1].relocations[0].offset == 256
    assert segment.launches[1].relocations[0].stride == 4096
    assert segment.launches[1].relocations[2].stride == 0


def test_a_layer_of_another_kind_breaks_the_run() -> None:
    layers = [_layer("ab", 0), _layer("ab", 512), _layer("cb", 1024), _layer("ab", 1536), _layer("ab", 9999)]
    assert [segment.repeat for segment in fold(layers)] == [2, 1, 2]


def test_strides_never_run_backwards() -> None:
    assert [segment.repeat for segment in fold([_layer("a", 512), _layer("a", 0)])] == [1, 1]


@given(st.lists(st.tuples(st.sampled_from(["a", "ab", "b"]), st.integers(0, 3), st.integers(0, 1)), max_size=12))
def test_unrolling_gives_back_what_was_folded(choices: list[tuple[str, int, int]]) -> None:
    layers = [_layer(symbols, 64 * weight, peer) for symbols, weight, peer in choices]
    unrolled = [launch for segment in fold(layers) for launch in unroll(segment)]
    assert unrolled == [launch for layer in layers for launch in layer]
