"""A libamdhip64 that runs nothing, built from null_hip.c: what a boot takes beside it is the runtime's own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from paiton_artifacts.kernel_table import Kernel
from paiton_runtime.drivers.hip_functions import FUNCTIONS
from tests.emulated.standin.headers import HIP

SOURCE = Path(__file__).with_name("null_hip.c")


def build_null_driver(folder: Path) -> Path:
    """Compiles the library against AMD's headers; functions that it does not serve return hipErrorNotSupported."""
    served = SOURCE.read_text(encoding="utf-8")
    names = set(re.findall(r"^hipError_t (hip\w+)\(", served, re.MULTILINE))
    stubs = []
    for name, _ in FUNCTIONS.values():
        if name not in names:
            prototype = HIP.prototypes[name]
            parameters = ", ".join(f"__typeof__({type_}) a{i}" for i, type_ in enumerate(prototype.parameters))
            stubs.append(f"{prototype.result} {name}({parameters or 'void'}) {{ return hipErrorNotSupported; }}\n")
    folder.mkdir(parents=True, exist_ok=True)
    return HIP.compile(folder, served + "".join(stubs), HIP.soname, "-O2", "-shared", "-fPIC")


def environment_of(library: Path, kernels: Iterable[Kernel], devices: int) -> dict[str, str]:
    """Returns the environment variables that make a process boot on `devices` of the library's devices.

    The kernels' argument lists, which a driver finds in their images, go to a file beside the library.
    """
    listed = library.with_name(f"kernels-{devices}.txt")
    lines = (f"{kernel.symbol} {' '.join(str(a.size) for a in kernel.arguments)}\n" for kernel in kernels)
    listed.write_text("".join(lines), encoding="ascii")
    return {
        "PAITON_HIP_LIBRARY": str(library),
        "NULL_HIP_DEVICES": str(devices),
        "NULL_HIP_KERNELS": str(listed),
        "HIP_VISIBLE_DEVICES": "",
    }
