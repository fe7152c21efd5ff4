"""Hatchling hook: compiles the host library and puts it into the wheel.

The library is C behind ctypes, linked against glibc 2.17 symbols only, so one wheel per architecture serves every
Python: `py3-none-manylinux_2_17_x86_64`. An editable install gets the library in the source tree, where git ignores it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILE_SCRIPT = Path("runtime/paiton_runtime/native/build.py")
LIBRARY_IN_PACKAGE = "paiton_runtime/_native/libpaiton_host.so"
WHEEL_TAG = "py3-none-manylinux_2_17_x86_64"


class HostLibraryHook(BuildHookInterface[Any]):
    """Adds the compiled host library and the platform tag to every wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles the library before hatchling collects files.

        Args:
            version: "standard", or "editable" for `pip install -e`.
            build_data: hatchling's mutable description of the wheel.

        Raises:
            SystemExit: this machine cannot run what would be built.
        """
        require_supported_host()
        root = Path(self.root)
        build_data["pure_python"] = False
        build_data["tag"] = WHEEL_TAG
        if version == "editable":
            compile_library(root, root / "runtime" / LIBRARY_IN_PACKAGE)
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="paiton-wheel-")
        library = Path(self._scratch.name) / "libpaiton_host.so"
        compile_library(root, library)
        build_data["force_include"][str(library)] = LIBRARY_IN_PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes the compiled copy, which the finished wheel at `artifact_path` now holds."""
        del build_data, artifact_path
        if version != "editable":
            self._scratch.cleanup()


def require_supported_host() -> None:
    """Refuses, in one line, a machine whose processor or C library the host library does not fit.

    Raises:
        SystemExit: not x86-64 Linux with glibc.
    """
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        sys.exit(f"paiton-aot builds on x86_64 Linux only, and this is {machine} {system}")
    try:
        glibc = os.confstr("CS_GNU_LIBC_VERSION")
    except ValueError:  # musl does not know the name
        glibc = None
    if not glibc:
        sys.exit("paiton-aot needs the GNU C library, and this Linux has another one (musl?)")


def compile_library(root: Path, output: Path) -> None:
    """Runs the compile script of the checkout or unpacked sdist at `root`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    load_script(root / COMPILE_SCRIPT).build(output)


def load_script(path: Path) -> ModuleType:
    """Imports a script by path: none of our packages is importable while the wheel is being built."""
    spec = importlib.util.spec_from_file_location("paiton_native_build", path)
    if spec is None or spec.loader is None:
        sys.exit(f"the source tree is incomplete: {path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
