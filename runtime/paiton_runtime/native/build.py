"""Compiles the host library: `python runtime/paiton_runtime/native/build.py OUTPUT`.

Run by the wheel's build hook, so it imports nothing of ours. The compiler is the pinned `ziglang` wheel, for an old
glibc, so that the same bytes come out on any build machine and run on any distribution of the last decade.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = (
    *("barrier.c", "code.c", "device.c", "encoder.c", "encoder_match.c", "encoder_merge.c", "group.c", "loader.c"),
    *("memory.c", "program.c", "residency.c", "sha256.c"),
)
FLAGS = (
    *("-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64"),
    *("-std=c11", "-O2", "-g0", "-fPIC", "-shared", "-s", "-fvisibility=hidden", "-fno-sanitize=all"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Werror"),
    *("-Wl,--build-id=none", "-Wl,-soname,libpaiton_host.so", "-lpthread", "-ldl"),
)
TIMEOUT_SECONDS = 300


def build(output: Path, *, extra_flags: tuple[str, ...] = ()) -> None:
    """Compiles the host library to `output`, whose folder is made if needed.

    Args:
        output: path of the shared library; replaced atomically.
        extra_flags: further compiler flags (sanitizers, in tests).

    Raises:
        RuntimeError: the compiler is absent, fails or hangs.
    """
    sources = Path(__file__).resolve().parent
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="paiton-host-") as scratch:
        made = Path(scratch) / output.name
        # Without a home directory zig hangs looking for its cache, so it always gets one.
        environment = {"ZIG_GLOBAL_CACHE_DIR": f"{scratch}/zig", "ZIG_LOCAL_CACHE_DIR": f"{scratch}/zig"} | os.environ
        command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, *extra_flags, "-o", str(made), *SOURCES]
        try:
            done = subprocess.run(
                command,
                cwd=sources,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"compiling the host library took more than {TIMEOUT_SECONDS} s") from error
        if done.returncode != 0:
            raise RuntimeError(f"compiling the host library failed with status {done.returncode}:\n{done.stderr}")
        staged = output.with_name(f".{output.name}.{os.getpid()}")
        staged.write_bytes(made.read_bytes())
        staged.chmod(0o755)
        staged.replace(output)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: build.py OUTPUT")
    build(Path(sys.argv[1]))
