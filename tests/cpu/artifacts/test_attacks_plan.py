"""Plans whose digests are right and whose contents are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from paiton_artifacts.errors import BoundsError, PaitonError, PlanError
from paiton_artifacts.reader import open_bundle
from tests.cpu.artifacts import tiny
from tests.cpu.artifacts.forge import DELETE, Edit, edit_plan, record

BODY = ("segments", 1, "launches", 0)
"""The launch that is repeated; it has 40 bytes of arguments."""

EXTENT = 2 << 20
HUGE = 1 << 63


def relocations(*records: bytes) -> Edit:
    """Returns the edit that gives the repeated launch these relocations."""
    return {(*BODY, "relocations"): b"".join(records)}


MALFORMED: dict[str, tuple[Edit, str]] = {
    "unknown field": ({("loops",): 1}, "has the unknown field 'loops'"),
    "missing field": ({("tokens",): DELETE}, "tokens is missing"),
    "unknown family": ({("family",): "train"}, "family is 'train', not one of 'forward', 'sample', 'greedy', "),
    "other plan": ({("tokens",): 8}, r"holds the plan .* the manifest declares \('cpu', 'default', 'forward', 4, 2\)"),
    "unknown flag": ({(*BODY, "flags"): 4}, r"segments\[1\].launches\[0\].flags is 4, outside 0 .. 3"),
    "negative flag": ({(*BODY, "flags"): -1}, "flags is -1"),
    "arguments as text": ({(*BODY, "args"): "a" * 40}, "args is a string, not binary"),
    "half an argument": ({(*BODY, "args"): bytes(41)}, "args has 41 bytes, not a multiple of 8"),
    "many arguments": ({(*BODY, "args"): bytes(8192)}, "args has 8192 bytes, more than 4096"),
    "half a relocation": ({(*BODY, "relocations"): bytes(39)}, "relocations has 39 bytes, not a multiple of 40"),
    "symbol that does not exist": ({(*BODY, "symbol"): "system"}, r"launch 0 \(system\): no such symbol"),
    "symbol that is no name": ({(*BODY, "symbol"): "../x"}, "symbol is '../x', not a C identifier"),
    "no grid": ({(*BODY, "grid"): DELETE}, "grid is missing"),
    "flat grid": ({(*BODY, "grid"): [1, 1]}, "grid has 2 items, outside 3 .. 3"),
    "empty grid": ({(*BODY, "grid"): [0, 1, 1]}, r"grid\[0\] is 0, outside 1 .. 2147483647"),
    "tall grid": ({(*BODY, "grid"): [1, 1 << 16, 1]}, "more than 65535 blocks along y or z"),
    "no repeat": ({("segments", 1, "repeat"): 0}, r"segments\[1\].repeat is 0, outside 1"),
    "endless repeat": ({("segments", 1, "repeat"): 1 << 40}, "repeat is 1099511627776, outside"),
    "unknown kind": (relocations(record(), record(kind=3)), r"relocations\[1\] has kind 3"),
    "unknown region": (relocations(record(region=5)), "region 5"),
    "unknown access": (relocations(record(access=4)), "access 4"),
    "reserved byte": (relocations(record(zero=1)), "reserved field"),
    "reserved word": (relocations(record(zero2=1)), "reserved field"),
    "negative offset": (relocations(record(offset=-8)), "negative offset -8"),
    "huge offset": (relocations(record(offset=HUGE - 1)), "offset 9223372036854775807"),
    "huge stride": (relocations(record(stride=HUGE)), "stride 9223372036854775808"),
    "overflowing size": (relocations(record(offset=8, size=2 * HUGE - 8)), "size 18446744073709551608"),
    "rank with a size": (relocations(record(kind=2)), "RANK has a region, access"),
    "local with a rank": (relocations(record(rank=1)), "LOCAL names rank 1"),
    "field outside the arguments": (
        relocations(record(arg_offset=40)),
        "relocation at byte 40 is not a field of the 40",
    ),
    "misaligned field": (relocations(record(arg_offset=4)), "relocation at byte 4 is not a field"),
    "field twice": (relocations(record(), record()), "two relocations of the field at byte 0"),
    "peer that does not exist": (relocations(record(kind=1, rank=2)), "points to rank 2 of 2"),
    "writable weights": (relocations(record(access=2)), "argument 0 writes to the weights"),
}
OUTSIDE: dict[str, tuple[Edit, str]] = {
    "at the end": (relocations(record(offset=EXTENT - 7)), f"bytes {EXTENT - 7} .. {EXTENT + 1} of the weights region"),
    "in the last repeat": (
        relocations(record(offset=EXTENT - 4096, stride=2048, size=8)),
        f".. {EXTENT + 8} of the weights region, which has {EXTENT}",
    ),
    "overflow by repeat times stride": (
        # 16383 repeats of the largest stride: the end exceeds 2**61, which no 32-bit sum would notice.
        {**relocations(record(stride=1 << 48)), ("segments", 1, "repeat"): 16384},
        "of the weights region",
    ),
    "outside a KV block": (relocations(record(region=3, offset=4096)), "of the kv region, which has 4096"),
    "outside io": (relocations(record(region=1, offset=256)), "of the io region, which has 256"),
    "outside scratch": (relocations(record(region=2, offset=1280)), "of the scratch region, which has 1280"),
    "outside a peer's comm": (relocations(record(kind=1, rank=1, region=4, offset=4096)), "of the comm region"),
}


def refused(victim: Path, edit: Edit, error: type[PaitonError], words: str) -> None:
    """Asserts how reading the edited plan fails."""
    edit_plan(victim, edit)
    bundle = open_bundle(victim)
    with pytest.raises(PaitonError, match=words) as caught:
        list(bundle.plans("cpu"))
    assert type(caught.value) is error
    assert caught.value.exit_code == 4
    assert "forward-t4-r2" in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", MALFORMED)
def test_plan_error(victim: Path, name: str) -> None:
    edit, words = MALFORMED[name]
    refused(victim, edit, PlanError, words)


@pytest.mark.parametrize("name", OUTSIDE)
def test_bounds_error(victim: Path, name: str) -> None:
    edit, words = OUTSIDE[name]
    refused(victim, edit, BoundsError, words)


def test_the_last_byte_is_inside(victim: Path) -> None:
    stride = (EXTENT - 8) // 2
    edit_plan(victim, relocations(record(stride=stride, size=8)))
    assert tiny.LAYERS == 3
    assert len(list(open_bundle(victim).plans("cpu"))) == 2


def test_unrolling_is_bounded(victim: Path) -> None:
    launch = {"symbol": "embed", "flags": 0, "args": b"", "relocations": b"", "grid": [1, 1, 1]}
    edit_plan(victim, {("segments",): [{"repeat": 1 << 14, "launches": [launch] * 65}]})
    with pytest.raises(PlanError, match="1064960 launches once unrolled, more than 1048576"):
        list(open_bundle(victim).plans("cpu"))
