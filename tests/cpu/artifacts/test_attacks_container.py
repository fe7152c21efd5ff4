"""Hostile manifest files: each is refused with the right error, before it costs memory."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
import zstandard

from paiton_artifacts import container
from paiton_artifacts.errors import (
    DigestMismatchError,
    FileSizeError,
    ManifestError,
    PaitonError,
    PlanError,
    UnsupportedVersionError,
)
from paiton_artifacts.limits import MAX_MANIFEST_BYTES, MAX_MANIFEST_COMPRESSED, MAX_PLAN_BYTES
from paiton_artifacts.reader import open_bundle
from tests.cpu.artifacts.forge import frame, squeeze

FRAME_OF_ZEROS = zstandard.ZstdCompressor(level=3).compress(bytes(64 << 20))
UNSIZED = zstandard.ZstdCompressor(level=3, write_content_size=False).compress(b"\x80")
TWO_FRAMES = zstandard.ZstdCompressor(level=3).compress(b"\x80") * 2
WIDE_MAP = msgpack.packb({str(n): None for n in range(200)})

ATTACKS: dict[str, tuple[Callable[[bytes], bytes], type[PaitonError], str]] = {
    "empty": (lambda _: b"", ManifestError, "0 bytes are too few"),
    "header only half": (lambda good: good[:40], ManifestError, "40 bytes are too few"),
    "truncated": (lambda good: good[:-1], ManifestError, "the header declares"),
    "trailing byte": (lambda good: good + b"\0", ManifestError, "the header declares"),
    "bad magic": (lambda good: b"GGUF" + good[4:], ManifestError, "magic is b'GGUFONMF'"),
    "magic of a plan": (lambda good: b"PAITONPL" + good[8:], ManifestError, "magic is b'PAITONPL'"),
    "newer major": (lambda good: frame(good[64:], major=2), UnsupportedVersionError, "format version 2, .* knows 1"),
    "older major": (lambda good: frame(good[64:], major=0), UnsupportedVersionError, "format version 0"),
    "reserved field": (lambda good: frame(good[64:], zero=7), ManifestError, "reserved header field is 7"),
    "lying length": (lambda good: frame(good[64:], size=1), ManifestError, "the header declares 1"),
    "huge length": (lambda good: frame(good[64:], size=1 << 63), ManifestError, f"limit {MAX_MANIFEST_COMPRESSED}"),
    "huge decompressed length": (
        lambda good: frame(good[64:], raw=(1 << 64) - 1),
        ManifestError,
        f"18446744073709551615 bytes exceeds the limit {MAX_MANIFEST_BYTES}",
    ),
    "zstd bomb": (lambda _: frame(FRAME_OF_ZEROS, raw=1000), ManifestError, "declares 67108864 bytes, the header 1000"),
    "honest zstd bomb": (lambda _: frame(FRAME_OF_ZEROS, raw=64 << 20), ManifestError, "exceeds the limit"),
    "no content size": (lambda _: frame(UNSIZED, raw=1), ManifestError, "declares no number of bytes"),
    "two frames": (lambda _: frame(TWO_FRAMES, raw=1), ManifestError, "does not decompress"),
    "not zstd": (lambda _: frame(b"hello", raw=5), ManifestError, "does not decompress"),
    "empty payload": (lambda _: frame(b"", raw=0), ManifestError, "does not decompress"),
    "flipped digest": (lambda good: frame(good[64:], digest=bytes(32)), DigestMismatchError, "at offset 64"),
    "flipped payload": (lambda good: good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], DigestMismatchError, "SHA-256"),
    "not msgpack": (lambda _: squeeze(b"\xc1"), ManifestError, "not valid msgpack"),
    "two values": (lambda _: squeeze(b"\x80\x80"), ManifestError, "not valid msgpack: unpack.* extra data"),
    "deep nesting": (lambda _: squeeze(b"\x91" * 100_000 + b"\xc0"), ManifestError, "nested too deeply"),
    "deep nesting of maps": (lambda _: squeeze(b"\x81\xa1a" * 100_000 + b"\xc0"), ManifestError, "nested too deeply"),
    "promised array": (lambda _: squeeze(b"\xdd\xff\xff\xff\xff"), ManifestError, "4294967295 exceeds max_array_len"),
    "promised map": (lambda _: squeeze(b"\xdf\xff\xff\xff\xff"), ManifestError, "4294967295 exceeds max_map_len"),
    "long string": (lambda _: squeeze(msgpack.packb("a" * 5000)), ManifestError, "5000 exceeds max_str_len"),
    "long binary": (lambda _: squeeze(msgpack.packb(bytes(2 << 20))), ManifestError, "exceeds max_bin_len"),
    "extension": (lambda _: squeeze(b"\xd6\xff\0\0\0\0"), ManifestError, "exceeds max_ext_len"),
    "maps within maps": (
        lambda _: squeeze(b"\x95" + (b"\xdc\xff\xff" + b"\x80" * 65535) * 5),
        ManifestError,
        "more than 262144 maps",
    ),
    "repeated key": (lambda _: squeeze(b"\x82\xa1a\x01\xa1a\x02"), ManifestError, "key 'a' appears twice"),
    "integer key": (lambda _: squeeze(b"\x81\x01\x01"), ManifestError, "int is not allowed for map key"),
    "invalid UTF-8": (lambda _: squeeze(b"\xa1\xff"), ManifestError, "not valid msgpack"),
    "a list": (lambda _: squeeze(b"\x90"), ManifestError, "content is a list, not a map"),
    "no fields": (lambda _: squeeze(b"\x80"), ManifestError, "format_minor is missing"),
    "many fields": (lambda _: squeeze(WIDE_MAP), ManifestError, "has 200 fields, more than 64"),
    "too large to read": (lambda good: good + bytes(MAX_MANIFEST_COMPRESSED), FileSizeError, "more than"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_manifest_is_refused(victim: Path, name: str) -> None:
    attack, error, words = ATTACKS[name]
    file = victim / "manifest.msgpack"
    file.write_bytes(attack(file.read_bytes()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PaitonError, match=words) as caught:
        open_bundle(victim)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert type(caught.value) is error
    assert caught.value.exit_code == (3 if error is UnsupportedVersionError else 4)
    assert str(file) in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert grown < 100 << 10, f"{grown} KiB were allocated"


def test_plans_have_their_own_error_and_limits() -> None:
    with pytest.raises(PlanError, match=f"limit {MAX_PLAN_BYTES}"):
        container.unpack(container.PLAN, frame(b"x", raw=MAX_PLAN_BYTES + 1, magic=b"PAITONPL"), "a.plan")
    with pytest.raises(PlanError, match=r"a\.plan: magic is b'PAITONMF', not b'PAITONPL'"):
        container.unpack(container.PLAN, frame(b"x"), "a.plan")


def test_pack_refuses_what_unpack_would() -> None:
    with pytest.raises(PlanError, match="exceeds the limits"):
        container.pack(container.PLAN, bytes(MAX_PLAN_BYTES))
