"""Which instruction-set levels this processor executes, whatever /proc/cpuinfo admits.

Hypervisors hide flags of instructions that work. A child process executes those of each level, so that a missing one
costs a signal there and not here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

PROBES = {
    "generic": "",
    "x86-64-v3": "vfmadd231ps %%ymm0, %%ymm0, %%ymm0; vcvtph2ps %%xmm0, %%ymm0; shlx %%eax, %%eax, %%eax",
    "x86-64-v4": "vcvtph2ps %%ymm0, %%zmm0; vpxorq %%xmm16, %%xmm16, %%xmm16",
    "x86-64-v4-bf16-vbmi": "vpermi2b %%zmm0, %%zmm0, %%zmm0; vdpbf16ps %%zmm0, %%zmm0, %%zmm0",
}
"""Instructions that a level needs. They are executed, since /proc/cpuinfo may hide what the processor has."""


@cache
def runs_here(level: str, folder: Path) -> bool:
    """Returns whether this processor executes a level's instructions, by doing so in a process of its own."""
    source, library = folder / f"probe-{level}.c", folder / f"probe-{level}.so"
    source.write_text(f'void probe(void) {{ __asm__ volatile("{PROBES[level]}" ::: "memory"); }}\n', encoding="utf-8")
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    target = ["-target", "x86_64-linux-gnu", "-mcpu=x86_64_v4+avx512vbmi+avx512bf16"]
    arguments = ["-m", "ziglang", "cc", "-shared", "-nostdlib", *target, str(source), "-o", str(library)]
    subprocess.run([sys.executable, *arguments], check=True, env=environment, timeout=120)
    call = f"import ctypes; ctypes.CDLL({str(library)!r}).probe()"
    return subprocess.run([sys.executable, "-c", call], check=False, timeout=60).returncode == 0
