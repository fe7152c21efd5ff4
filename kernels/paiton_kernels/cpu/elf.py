"""Reads just enough of an ELF file to say whether it stands alone."""

from __future__ import annotations

import struct

from paiton_artifacts.errors import CompilerError

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ = 1, 5, 6, 10
_SYMBOL = struct.Struct("<IBBHQQ")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


def dynamic_symbols(code: bytes) -> tuple[list[str], list[str], int]:
    """The dynamic interface of a 64-bit little-endian ELF shared object.

    Returns:
        Names that it defines, names that it leaves undefined, and how many libraries it needs.

    Raises:
        ValueError: the bytes are not such a file.
    """
    if code[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    table, count = struct.unpack_from("<Q", code, 32)[0], struct.unpack_from("<H", code, 56)[0]
    headers = [_PROGRAM_HEADER.unpack_from(code, table + _PROGRAM_HEADER.size * i) for i in range(count)]
    loads = [(address, offset, size) for kind, _, offset, address, _, size, _, _ in headers if kind == _PT_LOAD]

    def file_offset(address: int) -> int:
        for start, offset, size in loads:
            if start <= address < start + size:
                return int(address - start + offset)
        raise ValueError(f"address {address:#x} is not in the file")

    dynamic: dict[int, int] = {}
    needed = 0
    for kind, _, offset, _, _, size, _, _ in headers:
        if kind == _PT_DYNAMIC:
            for tag, value in struct.iter_unpack("<qQ", code[offset : offset + size // 16 * 16]):
                needed += tag == _DT_NEEDED
                dynamic.setdefault(tag, value)
    strings, symbols = file_offset(dynamic[_DT_STRTAB]), file_offset(dynamic[_DT_SYMTAB])
    text = code[strings : strings + dynamic[_DT_STRSZ]]
    defined: list[str] = []
    undefined: list[str] = []
    for index in range(1, _symbol_count(code)):
        name, _, _, section, _, _ = _SYMBOL.unpack_from(code, symbols + _SYMBOL.size * index)
        (defined if section else undefined).append(text[name : text.index(b"\0", name)].decode())
    return defined, undefined, needed


def _symbol_count(code: bytes) -> int:
    """Returns the entries of the dynamic symbol table, by the section headers (SHT_DYNSYM is 11)."""
    table, size, count = struct.unpack_from("<Q", code, 40)[0], *struct.unpack_from("<HH", code, 58)
    for index in range(count):
        fields = struct.unpack_from("<IIQQQQIIQQ", code, table + size * index)
        if fields[1] == 11:
            return int(fields[5] // fields[9])
    raise ValueError("no dynamic symbol table")


def check_standalone(code: bytes, what: str) -> list[str]:
    """Returns the symbols that a code object exports.

    Raises:
        CompilerError: it needs a library or imports a symbol, or is not an ELF shared object.
    """
    try:
        defined, undefined, needed = dynamic_symbols(code)
    except (ValueError, KeyError, struct.error) as error:
        raise CompilerError(f"{what} is not an ELF shared object: {error}") from error
    if undefined or needed:
        raise CompilerError(f"{what} is not standalone: imports {', '.join(undefined) or f'{needed} libraries'}")
    return defined
