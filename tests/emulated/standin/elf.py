"""ELF files as far as a driver looks at them."""

from __future__ import annotations

import struct

from tests.emulated.standin.objects import INVALID_IMAGE, RefusedError


def elf_bytes(header: bytes) -> int:
    """Returns the size of an ELF file from its header: linkers put the table of sections or that of segments last."""
    if header[:6] != b"\x7fELF\x02\x01":
        raise RefusedError(INVALID_IMAGE, "the code object is no ELF file")
    segments, sections = struct.unpack_from("<QQ", header, 32)
    segment, segment_count, section, section_count = struct.unpack_from("<HHHH", header, 54)
    return int(max(segments + segment * segment_count, sections + section * section_count))
