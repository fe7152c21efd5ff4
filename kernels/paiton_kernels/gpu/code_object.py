"""What a GPU code object says of itself: arguments, registers, spills, read from the bytes that the driver will read.

An hsaco is an ELF file whose note of type NT_AMDGPU_METADATA holds a MessagePack map (LLVM, "User Guide for AMDGPU
Backend", code object V5). A cubin is an ELF file with sections ``.nv.info`` (of the file) and ``.nv.info.<kernel>``: a
sequence of attributes as ``cuobjdump --dump-elf`` prints them.

The files come out of a compiler, or out of a cache that anything may have damaged: every offset is checked against the
file, every count against a limit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack

from paiton_artifacts.errors import CompilerError

MAX_ARGS = 256

_Thing = TypeVar("_Thing")

_SECTION = struct.Struct("<IIQQQQIIQQ")
_NOTE, _NOBITS, _NV_INFO = 7, 8, 0x70000000
_NT_AMDGPU_METADATA = 32
_MAX_SECTIONS = 4096
_MAX_METADATA_BYTES = 1 << 20

_FORMAT_SIZED = 4
_FRAME_SIZE, _REQUIRED_THREADS, _KERNEL_PARAMETER, _PARAMETER_BYTES, _REGISTER_COUNT = 0x11, 0x10, 0x17, 0x19, 0x2F


@dataclass(frozen=True, slots=True)
class KernelArg:
    """One argument in the kernel's argument buffer.

    Attributes:
        name: the parameter's name; "" for what the compiler added.
        offset: bytes from the start of the buffer.
        size: bytes.
    """

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class CodeObjectFacts:
    """What a code object states about its only kernel.

    Attributes:
        symbol: name of the entry point.
        args: in order, without names.
        args_bytes: size of the argument buffer.
        registers: per thread: all vector registers of a lane on AMD, accumulation registers included.
        accumulation_registers: how many of them are AGPRs; 0 on NVIDIA.
        scalar_registers: SGPRs of a wave; 0 on NVIDIA.
        spilled_registers: registers that the compiler moved to memory; 0 on NVIDIA, where the file does not say it.
        scratch_bytes: stack ("private", "local") memory of a thread.
        max_threads: largest block that the code was compiled for.
    """

    symbol: str
    args: tuple[KernelArg, ...]
    args_bytes: int
    registers: int
    accumulation_registers: int
    scalar_registers: int
    spilled_registers: int
    scratch_bytes: int
    max_threads: int


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    content: bytes


def read_code_object(code: bytes, backend: str, what: str = "code object") -> CodeObjectFacts:
    """Reads the facts about the only kernel of a code object.

    Args:
        code: an hsaco ("hip") or a cubin ("cuda").
        backend: which of the two.
        what: names it in errors.

    Raises:
        CompilerError: the file is damaged, holds another number of kernels, or a kernel that asks for arguments which
            only a vendor's runtime could fill in.
    """
    try:
        return _read_hsaco(code, what) if backend == "hip" else _read_cubin(code)
    except (ValueError, KeyError, TypeError, struct.error, msgpack.UnpackException) as error:
        raise CompilerError(f"{what} ({len(code)} bytes) is damaged: {error!r}") from error


def _slice(content: bytes, offset: int, size: int) -> bytes:
    if offset < 0 or size < 0 or offset + size > len(content):
        raise ValueError(f"bytes {offset} to {offset + size} lie outside of {len(content)}")
    return content[offset : offset + size]


def _text(content: bytes, offset: int) -> str:
    end = content.find(b"\0", offset)
    if not 0 <= offset <= end:
        raise ValueError(f"no string at {offset}")
    return content[offset:end].decode()


def _sections(code: bytes) -> list[_Section]:
    """Returns the sections of a 64-bit little-endian ELF file."""
    if code[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", code, 40)
    entry, count, names_index = struct.unpack_from("<HHH", code, 58)
    if entry != _SECTION.size or count > _MAX_SECTIONS or names_index >= count:
        raise ValueError(f"section table of {count} entries of {entry} bytes")
    headers = list(_SECTION.iter_unpack(_slice(code, table, entry * count)))
    contents = [b"" if kind == _NOBITS else _slice(code, offset, size) for _, kind, _, _, offset, size, *_ in headers]
    return [
        _Section(_text(contents[names_index], header[0]), header[1], content)
        for header, content in zip(headers, contents, strict=True)
    ]


def _notes(content: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yields owner, type and description of the notes in a section; each part is padded to 4 bytes."""
    position = 0
    while position < len(content):
        owner_size, size, kind = struct.unpack_from("<III", content, position)
        position += 12
        owner = _slice(content, position, owner_size)
        position += (owner_size + 3) // 4 * 4
        yield owner.rstrip(b"\0"), kind, _slice(content, position, size)
        position += (size + 3) // 4 * 4


def _only(things: Sequence[_Thing], what: str) -> _Thing:
    if len(things) != 1:
        raise ValueError(f"{len(things)} {what} where there must be one")
    return things[0]


def _number(value: object, limit: int = 1 << 32) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{value!r} is not a size")
    return value


def _checked(args: list[KernelArg], args_bytes: int) -> tuple[KernelArg, ...]:
    """Checks that arguments ascend, do not overlap and lie in their buffer."""
    end = 0
    for arg in args:
        if arg.offset < end or arg.size < 1:
            raise ValueError(f"argument of {arg.size} bytes at {arg.offset} overlaps what ends at {end}")
        end = arg.offset + arg.size
    if end > args_bytes or len(args) > MAX_ARGS:
        raise ValueError(f"{len(args)} arguments end at {end} in a buffer of {args_bytes} bytes")
    return tuple(args)


def _read_hsaco(code: bytes, what: str) -> CodeObjectFacts:
    notes = [note for section in _sections(code) if section.kind == _NOTE for note in _notes(section.content)]
    metadata = _only(
        [body for owner, kind, body in notes if (owner, kind) == (b"AMDGPU", _NT_AMDGPU_METADATA)], "metadata notes"
    )
    if len(metadata) > _MAX_METADATA_BYTES:
        raise ValueError(f"{len(metadata)} bytes of metadata")
    document = msgpack.unpackb(metadata, strict_map_key=True, max_array_len=4 * MAX_ARGS, max_map_len=256)
    kernel: Mapping[str, Any] = _only(list(document["amdhsa.kernels"]), "kernels")
    args = []
    for arg in kernel.get(".args", ()):
        if arg[".value_kind"] not in ("global_buffer", "by_value"):
            raise CompilerError(
                f"{what} has an argument of kind {arg['.value_kind']}, which no plan can fill in",
                hint="remove device prints, assertions and tl.num_programs from the kernel",
            )
        args.append(KernelArg("", _number(arg[".offset"]), _number(arg[".size"])))
    args_bytes = _number(kernel[".kernarg_segment_size"])
    return CodeObjectFacts(
        symbol=str(kernel[".name"]),
        args=_checked(args, args_bytes),
        args_bytes=args_bytes,
        registers=_number(kernel[".vgpr_count"]),
        accumulation_registers=_number(kernel.get(".agpr_count", 0)),
        scalar_registers=_number(kernel[".sgpr_count"]),
        spilled_registers=_number(kernel[".vgpr_spill_count"]) + _number(kernel[".sgpr_spill_count"]),
        scratch_bytes=_number(kernel[".private_segment_fixed_size"]),
        max_threads=_number(kernel[".max_flat_workgroup_size"]),
    )


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields kind and payload of the attributes of an ``.nv.info`` section.

    An attribute is its format, its kind, and either two bytes of value or their size and as many bytes.
    """
    position = 0
    while position < len(content):
        form, kind, value = struct.unpack_from("<BBH", content, position)
        position += 4
        if form == _FORMAT_SIZED:
            yield kind, _slice(content, position, value)
            position += value
        else:
            yield kind, value.to_bytes(2, "little")


def _read_cubin(code: bytes) -> CodeObjectFacts:
    sections = {section.name: section for section in _sections(code)}
    infos = [name for name, section in sections.items() if section.kind == _NV_INFO and name.startswith(".nv.info.")]
    symbol = _only(infos, "kernels").removeprefix(".nv.info.")
    whole = dict(_attributes(sections[".nv.info"].content))  # of one kernel: each attribute appears once
    own = list(_attributes(sections[f".nv.info.{symbol}"].content))
    args_by_ordinal = {}
    for kind, payload in own:
        if kind == _KERNEL_PARAMETER:
            _, ordinal, offset, flags = struct.unpack("<IHHI", payload)
            args_by_ordinal[ordinal] = KernelArg("", offset, flags >> 18)
    if sorted(args_by_ordinal) != list(range(len(args_by_ordinal))):
        raise ValueError(f"arguments {sorted(args_by_ordinal)}")
    single = dict(own)
    args_bytes = int.from_bytes(single[_PARAMETER_BYTES], "little")
    x, y, z = struct.unpack("<III", single[_REQUIRED_THREADS])
    return CodeObjectFacts(
        symbol=symbol,
        args=_checked([args_by_ordinal[n] for n in sorted(args_by_ordinal)], args_bytes),
        args_bytes=args_bytes,
        registers=struct.unpack("<II", whole[_REGISTER_COUNT])[1],
        accumulation_registers=0,
        scalar_registers=0,
        spilled_registers=0,
        scratch_bytes=struct.unpack("<II", whole[_FRAME_SIZE])[1],
        max_threads=x * y * z,
    )
