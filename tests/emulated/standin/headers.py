"""What the vendors' headers declare, by asking the compiler: prototypes, enumerators, sizes and offsets."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from paiton_artifacts.user_cache import user_cache_dir

LETTERS = {
    "P": ctypes.c_void_p,
    "b": ctypes.c_int8,
    "B": ctypes.c_uint8,
    "H": ctypes.c_uint16,
    "i": ctypes.c_int32,
    "I": ctypes.c_uint32,
    "q": ctypes.c_int64,
    "Q": ctypes.c_uint64,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}
"""ctypes of the letters that stand for parameters."""

_PLAIN = {
    "char": "b",
    "unsigned char": "B",
    "unsigned short": "H",
    "int": "i",
    "unsigned int": "I",
    "long": "q",
    "unsigned long": "Q",
    "long long": "q",
    "unsigned long long": "Q",
    "float": "f",
    "double": "d",
}


@dataclass(frozen=True, slots=True)
class Prototype:
    """A C function: its result and parameters as written, and the parameters with typedefs resolved."""

    result: str
    parameters: tuple[str, ...]
    resolved: tuple[str, ...]

    def letters(self) -> str:
        """Returns a letter for each parameter: "P" for every pointer, "?" for a structure by value."""
        return "".join(_letter(type_) for type_ in self.resolved)


def _letter(resolved: str) -> str:
    if any(mark in resolved for mark in "*(["):
        return "P"
    plain = resolved.removeprefix("const ").strip()
    return "I" if plain.startswith("enum ") else _PLAIN.get(plain, "?")


@dataclass(frozen=True)
class Headers:
    """A vendor's headers in the Triton wheel.

    Attributes:
        folder: include path below triton/backends.
        preamble: what makes the declarations visible.
        prefix: of the functions' names.
        soname: of the library.
    """

    folder: str
    preamble: str
    prefix: str
    soname: str

    @property
    def include(self) -> Path:
        """The include path."""
        spec = importlib.util.find_spec("triton")
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent / "backends" / self.folder / "include"

    def compile(self, folder: Path, source: str, output: str, *flags: str) -> Path:
        """Compiles C source that begins with the preamble to `output` in `folder`."""
        (folder / "source.c").write_text(self.preamble + source, encoding="utf-8")
        zig(folder, "cc", "-w", f"-I{self.include}", *flags, "source.c", "-o", output)
        return folder / output

    @cached_property
    def _declarations(self) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            # In two steps, because `zig cc` wants an object file to come out and `zig clang` knows no system headers.
            self.compile(folder, "", "source.i", "-E")
            tree = zig(
                folder, "clang", "-x", "cpp-output", "-w", "-fsyntax-only", "-Xclang", "-ast-dump=json", "source.i"
            )
        declarations: list[dict[str, Any]] = json.loads(tree)["inner"]
        return declarations

    @cached_property
    def prototypes(self) -> Mapping[str, Prototype]:
        """Every function, by name."""
        found = {}
        for item in self._declarations:
            if item["kind"] == "FunctionDecl" and item["name"].startswith(self.prefix):
                types = [part["type"] for part in item.get("inner", ()) if part["kind"] == "ParmVarDecl"]
                found[item["name"]] = Prototype(
                    result=item["type"]["qualType"].partition(" (")[0],
                    parameters=tuple(type_["qualType"] for type_ in types),
                    resolved=tuple(type_.get("desugaredQualType", type_["qualType"]) for type_ in types),
                )
        return found

    def enumerators(self, *, holding: str) -> list[str]:
        """Returns the names in the enumeration that has the enumerator `holding`."""
        for item in self._declarations:
            if item["kind"] == "EnumDecl":
                names = [part["name"] for part in item.get("inner", ()) if part["kind"] == "EnumConstantDecl"]
                if holding in names:
                    return names
        raise KeyError(holding)

    def values(self, names: Iterable[str]) -> dict[str, int]:
        """Returns the values of integer expressions, such as enumerators, sizeof and offsetof."""
        names = list(names)
        lines = "".join(f'printf("%lld\\n", (long long)({name}));\n' for name in names)
        source = f"#include <stdio.h>\n#include <stddef.h>\nint main(void) {{\n{lines}return 0;\n}}\n"
        with tempfile.TemporaryDirectory() as scratch:
            program = self.compile(Path(scratch), source, "probe")
            output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
        return dict(zip(names, map(int, output.split()), strict=True))


HIP = Headers("amd", "#define __HIP_PLATFORM_AMD__ 1\n#include <hip/hip_runtime_api.h>\n", "hip", "libamdhip64.so")
CUDA = Headers("nvidia", "#define __CUDA_API_VERSION_INTERNAL 1\n#include <cuda.h>\n", "cu", "libcuda.so.1")
"""With the functions of earlier versions, which the library goes on to export."""


def zig(folder: Path, *arguments: str) -> str:
    """Runs zig in a folder and returns what it printed; its own cache is that of the kernels for the CPU."""
    cache = str(user_cache_dir().resolve() / "zig")
    environment = {"PATH": os.defpath, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    command = [sys.executable, "-m", "ziglang", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout
