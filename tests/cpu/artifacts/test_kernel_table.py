"""Kernel tables of GPU targets: what is written can be read, what lies is refused, and plans must fit the kernels."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from paiton_artifacts.errors import BoundsError, CodeObjectError, PaitonError, PlanError
from paiton_artifacts.kernel_table import (
    Kernel,
    KernelArgument,
    KernelTable,
    check_launches,
    decode_kernel_table,
    encode_kernel_table,
    pack_arguments,
    unpack_argument,
)
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Access, Launch, LaunchFlag, Plan, Relocation, RelocationKind, Segment
from tests.cpu.artifacts.forge import DELETE, Edit, edited, squeeze
from tests.independent_reader import read_container

CODE_BYTES = 4096
ARGUMENTS = (
    KernelArgument("x", "pointer", 0, 8, 16),
    KernelArgument("stride", "integer", 8, 8, 16),
    KernelArgument("count", "integer", 16, 4, 1),
    KernelArgument("scale", "float", 20, 4, 1),
    KernelArgument("", "pointer", 24, 8, 1),
)
FIRST = Kernel("embed_h64", 0, 1000, 256, 0, 32, ARGUMENTS, "only")
SECOND = Kernel("norm_h64", 1024, 3072, 64, 65536, 8, ARGUMENTS[:1], "recorded")
TABLE = KernelTable("hip:gfx942", (FIRST, SECOND))
ARGS = struct.pack("<QqifQ", 0, 64, -7, 0.5, 0)
POINTER = Relocation(0, RelocationKind.LOCAL, Region.SCRATCH, Access.READ, 0, 256, 512, 100)


def test_what_is_written_can_be_read() -> None:
    data = encode_kernel_table(TABLE, CODE_BYTES)
    assert decode_kernel_table(data, CODE_BYTES) == TABLE
    value = read_container(data, b"PAITONKT")
    assert [kernel["symbol"] for kernel in value["kernels"]] == ["embed_h64", "norm_h64"]
    assert value["kernels"][0]["arguments"][3] == {
        "name": "scale",
        "kind": "float",
        "offset": 20,
        "size": 4,
        "divisor": 1,
    }


KERNEL = ("kernels", 0)
ARGUMENT = (*KERNEL, "arguments", 1)
MALFORMED: Mapping[str, tuple[Edit, type[PaitonError], str]] = {
    "unknown field": ({("x",): 1}, CodeObjectError, "has the unknown field 'x'"),
    "missing field": ({(*KERNEL, "threads"): DELETE}, CodeObjectError, r"kernels\[0\].threads is missing"),
    "unknown tuning": ({(*KERNEL, "tuning"): "guess"}, CodeObjectError, "tuning is 'guess', not one of"),
    "symbol that is no name": ({(*KERNEL, "symbol"): "a b"}, CodeObjectError, "'a b', not a C identifier"),
    "symbols out of order": ({(*KERNEL, "symbol"): "z"}, CodeObjectError, "symbols are out of order or twice"),
    "symbol twice": ({(*KERNEL, "symbol"): "norm_h64"}, CodeObjectError, "symbols are out of order or twice"),
    "misaligned image": ({(*KERNEL, "offset"): 128}, CodeObjectError, "starts at byte 128, not a multiple of 256"),
    "image beyond the archive": ({(*KERNEL, "size"): 4097}, BoundsError, "ends at byte 4097 of 4096"),
    "no threads": ({(*KERNEL, "threads"): 0}, CodeObjectError, "threads is 0, outside 1 .. 1024"),
    "much shared memory": ({(*KERNEL, "shared_bytes"): 1 << 20}, CodeObjectError, "shared_bytes is 1048576"),
    "arguments that overlap": ({(*ARGUMENT, "offset"): 0}, CodeObjectError, "argument 'stride', .* at byte 0"),
    "misaligned argument": ({(*ARGUMENT, "offset"): 12}, CodeObjectError, "argument 'stride', .* at byte 12"),
    "narrow pointer": ({(*KERNEL, "arguments", 0, "size"): 4}, CodeObjectError, "argument 'x', a pointer of 4 bytes"),
    "argument of three bytes": ({(*ARGUMENT, "size"): 3}, CodeObjectError, "'stride', a integer of 3 bytes"),
    "arguments beyond their bytes": ({(*KERNEL, "args_bytes"): 31}, BoundsError, "arguments end at byte 32 of 31"),
    "unknown kind": ({(*ARGUMENT, "kind"): "double"}, CodeObjectError, "kind is 'double', not one of"),
    "many arguments": ({(*KERNEL, "arguments"): [0] * 200}, CodeObjectError, "arguments has 200 items"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_table_is_refused(name: str) -> None:
    edit, error, words = MALFORMED[name]
    value: Any = edited(read_container(encode_kernel_table(TABLE, CODE_BYTES), b"PAITONKT"), edit)
    with pytest.raises(error, match=words) as caught:
        decode_kernel_table(squeeze(msgpack.packb(value), magic=b"PAITONKT"), CODE_BYTES, "the table")
    assert str(caught.value).startswith("the table")
    assert caught.value.hint


def test_arguments_are_packed_where_the_kernel_wants_them() -> None:
    packed = pack_arguments(FIRST, {"stride": 64, "count": -7, "scale": 0.5})
    assert packed == ARGS
    assert [unpack_argument(argument, packed) for argument in ARGUMENTS] == [0, 64, -7, 0.5, 0]
    for values in ({"rows": 1}, {"count": 1 << 31}, {"count": 0.5}):
        with pytest.raises(PlanError, match="bug in the planner"):
            pack_arguments(FIRST, values)


def _plan(launch: Launch) -> Plan:
    return Plan("hip:gfx942", "mi300x", "forward", 1, 1, (Segment(2, (launch,)),))


LAUNCH = Launch("embed_h64", LaunchFlag.NONE, ARGS, (POINTER,), (1, 1, 1))
MISFITS: Mapping[str, tuple[Launch, str]] = {
    "too few arguments": (replace(LAUNCH, args=ARGS[:24]), "24 bytes of arguments, the kernel takes 32"),
    "odd stride": (replace(LAUNCH, args=struct.pack("<QqifQ", 0, 65, 0, 0, 0)), "stride is 65, not a multiple of 16"),
    "odd address": (replace(LAUNCH, relocations=(replace(POINTER, offset=8),)), "offset 8 and stride 512, not multip"),
    "odd steps": (replace(LAUNCH, relocations=(replace(POINTER, stride=8),)), "offset 256 and stride 8"),
    "relocation of a number": (
        replace(LAUNCH, relocations=(replace(POINTER, arg_offset=16),)),
        "count has 4 bytes and a relocation",
    ),
    "relocation of nothing": (
        replace(LAUNCH, symbol="norm_h64", args=bytes(8), relocations=(replace(POINTER, arg_offset=8),)),
        "a relocation at byte 8 is no argument",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_plan_must_fit_its_kernels(name: str) -> None:
    launch, words = MISFITS[name]
    kernels = {kernel.symbol: kernel for kernel in TABLE.kernels}
    check_launches(_plan(LAUNCH), kernels)
    with pytest.raises(PlanError, match=words) as caught:
        check_launches(_plan(launch), kernels)
    assert "forward-t1-r1: segment 0, launch 0" in str(caught.value)
