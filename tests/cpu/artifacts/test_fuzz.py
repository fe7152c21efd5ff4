"""Whatever bytes come in: a value or an error of the tree, nothing else, and no hang."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paiton_artifacts import container
from paiton_artifacts.errors import PaitonError
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import check_plan, decode_plan, encode_plan
from paiton_artifacts.schema import Manifest
from paiton_artifacts.validate import parse_manifest
from tests.cpu.artifacts import tiny
from tests.cpu.artifacts.forge import frame, squeeze

SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.sampled_from([0, 1, 255, 256, 1 << 21, 1 << 32, 1 << 48, 1 << 63])
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=80)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def parse(data: bytes) -> Manifest:
    """Parses the bytes of a manifest file."""
    return parse_manifest(container.unpack(container.MANIFEST, data, "fuzzed"), "fuzzed")


def read_plan(data: bytes) -> None:
    """Decodes and checks the bytes of a plan file."""
    check_plan(decode_plan(data), dict.fromkeys(Region, 1 << 20), 2, tiny.SYMBOLS)


@functools.cache
def good_manifest() -> bytes:
    """Returns the manifest file of the tiny bundle."""
    with tempfile.TemporaryDirectory() as folder:
        return (tiny.write(Path(folder) / "bundle") / "manifest.msgpack").read_bytes()


def raw(kind: container.Kind, data: bytes) -> Any:
    """Returns a container's value with lists that can be edited."""
    return msgpack.unpackb(msgpack.packb(container.unpack(kind, data, "good")))


def survive(read: Callable[[bytes], object], data: bytes) -> None:
    """Reads; only errors of the tree may come out, with one-line messages of bounded length."""
    message = ""
    try:
        read(data)
    except PaitonError as error:
        message = error.message
    assert "\n" not in message
    assert len(message) < 1000


def positions(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the positions of all values inside a value."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += positions(inner, (*path, key))
    return found


@SETTINGS
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    survive(parse, data)
    survive(read_plan, data)


@SETTINGS
@given(st.binary(max_size=300), st.integers(0, 2**64 - 1))
def test_any_payload(payload: bytes, size: int) -> None:
    survive(parse, frame(payload, raw=size))
    survive(read_plan, frame(payload, raw=size, magic=b"PAITONPL"))


@SETTINGS
@given(st.binary(max_size=300))
def test_any_msgpack_bytes(data: bytes) -> None:
    survive(parse, squeeze(data))
    survive(read_plan, squeeze(data, magic=b"PAITONPL"))


@SETTINGS
@given(st.data())
def test_any_byte_of_the_file_changed(data: st.DataObject) -> None:
    changed = bytearray(good_manifest())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    survive(parse, bytes(changed))


@SETTINGS
@given(st.data())
def test_any_value_of_the_manifest_changed(data: st.DataObject) -> None:
    changed(data, raw(container.MANIFEST, good_manifest()), parse, b"PAITONMF")


@SETTINGS
@given(st.data())
def test_any_value_of_a_plan_changed(data: st.DataObject) -> None:
    changed(data, raw(container.PLAN, encode_plan(tiny.plan())), read_plan, b"PAITONPL")


def changed(data: st.DataObject, value: Any, read: Callable[[bytes], object], magic: bytes) -> None:
    """Replaces up to three values anywhere, and reads the result."""
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(positions(value)[1:]))
        inner = value
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = data.draw(VALUES)
    survive(read, squeeze(msgpack.packb(value), magic=magic))
