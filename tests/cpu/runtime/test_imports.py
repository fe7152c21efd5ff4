"""The runtime is thin: every module imports with the heavy packages absent, and a boot needs few."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = ("torch", "triton", "numpy", "safetensors", "transformers", "ml_dtypes", "gguf", "jinja2", "ziglang")
BUILD_SIDE = ("paiton_aot", "paiton_kernels")

IMPORT_ALL = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not part of the base install")

sys.meta_path.insert(0, Blocker())
count = 0
for top in ("paiton_artifacts", "paiton_runtime"):
    package = importlib.import_module(top)
    for module in pkgutil.walk_packages(package.__path__, top + "."):
        importlib.import_module(module.name)
        count += 1
print(count)
"""

HEAVY = ("asyncio", "subprocess", "multiprocessing", "ctypes.util", "email", "http", "ssl", "logging", "unittest")


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_every_module_imports_without_the_heavy_packages() -> None:
    done = python(IMPORT_ALL.format(blocked=BLOCKED + BUILD_SIDE))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_the_blocker_blocks() -> None:
    """The test above can fail."""
    done = python(IMPORT_ALL.format(blocked=("msgpack",)))
    assert "msgpack is not part of the base install" in done.stderr


@pytest.mark.parametrize("module", ["paiton_runtime.boot", "paiton_runtime.commands.generate"])
def test_the_boot_path_stays_light(module: str) -> None:
    done = python(f"import sys; sys.path_hooks; import {module}; print(*sys.modules)")
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & {*BLOCKED, *BUILD_SIDE}
    bare = set(python("import sys; print(*sys.modules)").stdout.split())  # what the interpreter's site brings
    assert not (loaded - bare) & set(HEAVY)


def test_a_boot_does_without_the_tokenizers_library(tiny_bundle: Path) -> None:
    arguments = ["generate", str(tiny_bundle), "hello", "--max-tokens", "2"]
    blocked = "import sys; sys.modules['tokenizers'] = None; from paiton_runtime.cli import main; "
    done = python(f"{blocked}sys.exit(main({arguments!r}))")
    assert done.returncode == 0, done.stderr
    assert "2 generated" in done.stderr
