"""Which instruction-set levels this processor executes, whatever /proc/cpuinfo admits.

Hypervisors hide flags of instructions that work. A child process runs one instruction of each level, so that a missing
one costs a signal there and not here.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

from paiton_kernels.cpu.compile import LEVELS

_PROBES = {
    "x86-64-v3": ("x86_64_v3", "__m256 a = _mm256_set1_ps(x); x = _mm256_cvtss_f32(_mm256_fmadd_ps(a, a, a));"),
    "x86-64-v4-vbmi": (
        "x86_64_v4+avx512vbmi",
        "__m512i a = _mm512_set1_epi8((char)x); x = (float)_mm512_cvtsi512_si32(_mm512_permutexvar_epi8(a, a));",
    ),
    "x86-64-v4-bf16-vbmi": (
        "x86_64_v4+avx512vbmi+avx512bf16",
        "__m512 a = _mm512_set1_ps(x); __m512bh b = (__m512bh)a; x = _mm512_cvtss_f32(_mm512_dpbf16_ps(a, b, b));",
    ),
}


@functools.cache
def runnable_levels() -> frozenset[str]:
    """Returns the levels whose instructions execute here; `generic` always does."""
    with tempfile.TemporaryDirectory() as scratch:
        return frozenset(level for level in LEVELS if level == "generic" or _runs(level, Path(scratch)))


def _runs(level: str, scratch: Path) -> bool:
    cpu, body = _PROBES[level]
    source, program = scratch / "probe.c", scratch / level
    source.write_text(
        f"#include <immintrin.h>\nint main(int n, char **v) {{ float x = n; {body} return x == 77.f; }}\n"
    )
    target = ["-target", "x86_64-linux-musl", f"-mcpu={cpu}", "-O1"]
    caches = {f"ZIG_{kind}_CACHE_DIR": str(scratch / "zig") for kind in ("GLOBAL", "LOCAL")}
    compiler = [sys.executable, "-m", "ziglang", "cc", *target, str(source), "-o", str(program)]
    subprocess.run(compiler, check=True, env={"PATH": "/usr/bin:/bin", **caches}, timeout=300)
    return subprocess.run([program], check=False).returncode in (0, 1)
