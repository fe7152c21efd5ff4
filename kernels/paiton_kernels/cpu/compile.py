"""Compiles kernel variants into one code object per CPU level, reproducibly.

The compiler is the ``ziglang`` wheel (clang and lld in one package, no system headers or libraries). A code object is a
freestanding ELF shared object: it needs no library and leaves no symbol undefined, so that it loads wherever the level
runs. One translation unit holds every variant of a level; the families' bodies are inlined into each with their
parameters constant, and the micro-kernels below them are shared.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from paiton_artifacts.errors import CompilerError
from paiton_artifacts.temporary import LockedDirectory, remove_stale
from paiton_kernels.cache_file import write_atomically
from paiton_kernels.cpu.elf import check_standalone
from paiton_kernels.spec import Variant

LEVELS = ("generic", "x86-64-v3", "x86-64-v4", "x86-64-v4-bf16-vbmi")
"""Levels from the least to the most demanding."""

_MCPU = {
    "generic": "x86_64",
    "x86-64-v3": "x86_64_v3",
    "x86-64-v4": "x86_64_v4",
    "x86-64-v4-bf16-vbmi": "x86_64_v4+avx512vbmi+avx512bf16",
}

_VECTORS = {
    "generic": "vec_generic.h",
    "x86-64-v3": "vec_avx2.h",
    "x86-64-v4": "vec_avx512.h",
    "x86-64-v4-bf16-vbmi": "vec_bf16.h",
}

_FLAGS = (
    "-std=c11",
    "-O3",
    "-g0",  # debug information would hold the installation's path
    "-target",
    "x86_64-linux-gnu.2.17",
    "-fPIC",
    "-shared",
    "-ffreestanding",
    "-nostdlib",
    "-ffp-contract=off",  # products and sums fuse where the sources say so, hence alike in every form of a kernel
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-fno-sanitize=all",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    "-ffunction-sections",
    "-fdata-sections",
    "-mprefer-vector-width=512",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wl,--build-id=none",
    "-Wl,-s",
    "-Wl,--gc-sections",
    "-Wl,-z,noexecstack",
    "-Wl,-z,relro",
    "-Wl,-z,now",
)

COMPILER = f"ziglang {importlib.metadata.version('ziglang')}"
"""Name and version of the compiler, for the manifest."""

_SOURCES = Path(__file__).parent


def translation_unit(level: str, variants: Sequence[Variant]) -> str:
    """Returns the C source of a level's code object: the families in use and one definition per variant."""
    specs = {variant.spec.family: variant.spec for variant in variants}
    lines = ['#include "prelude.h"', f'#include "{_VECTORS[level]}"', '#include "dots.h"', '#include "team.h"']
    for family in sorted(specs):
        lines += [specs[family].struct_source(), f'#include "{family}.c"']
    return "\n".join([*lines, *(variant.source() for variant in sorted(variants, key=lambda v: v.symbol))])


def compile_level(level: str, variants: Sequence[Variant], cache_dir: Path, timeout: float = 300.0) -> bytes:
    """Compiles the variants for one level.

    Args:
        level: one of :data:`LEVELS`.
        variants: what to compile; duplicates are dropped. The result depends on the set only, not on its order.
        cache_dir: where results and the compiler's own cache live; created if absent.
        timeout: seconds after which the compiler is killed.

    Returns:
        The bytes of the ELF shared object.

    Raises:
        CompilerError: the compiler is absent, fails, hangs, or its output is not standalone.
    """
    unit = translation_unit(level, sorted(set(variants), key=lambda variant: variant.symbol))
    sources = {path.name: path.read_bytes() for path in sorted(_SOURCES.iterdir()) if path.suffix in (".c", ".h")}
    flags = [*_FLAGS, f"-mcpu={_MCPU[level]}"]
    digest = hashlib.sha256(repr((COMPILER, flags, unit, sources)).encode()).hexdigest()
    cached = cache_dir / "cpu" / f"{digest}.so"
    if cached.is_file():
        code = cached.read_bytes()
        check_standalone(code, f"cached code object for level {level}")
        return code
    code = _run_compiler(level, unit, sources, flags, cache_dir, timeout)
    check_standalone(code, f"code object for level {level}")
    write_atomically(cached, code)
    return code


def _run_compiler(
    level: str, unit: str, sources: dict[str, bytes], flags: list[str], cache_dir: Path, timeout: float
) -> bytes:
    cache_dir.mkdir(parents=True, exist_ok=True)
    remove_stale(cache_dir / "compile")  # what killed builds left
    zig_cache = str((cache_dir / "zig").resolve())
    environment = {
        "PATH": os.defpath,
        "HOME": zig_cache,
        "ZIG_GLOBAL_CACHE_DIR": zig_cache,
        "ZIG_LOCAL_CACHE_DIR": zig_cache,
    }
    temporary = LockedDirectory(cache_dir / "compile")
    work = temporary.path
    try:
        for name, content in sources.items():
            (work / name).write_bytes(content)
        (work / "kernels.c").write_text(unit, encoding="utf-8")
        command = [sys.executable, "-m", "ziglang", "cc", *flags, "kernels.c", "-o", "kernels.so"]
        result = subprocess.run(
            command,
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if result.returncode:
            raise CompilerError(f"compiling level {level} failed: {_first_error(result.stderr)}")
        return (work / "kernels.so").read_bytes()
    except subprocess.TimeoutExpired:
        raise CompilerError(
            f"compiling level {level} took more than {timeout:g} s", hint="free CPU time on this machine and try again"
        ) from None
    finally:
        temporary.remove()


def _first_error(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").splitlines() or ["no message"]
    return next((line for line in lines if "error:" in line), lines[0]).strip()
