"""One stand-in device in use, for tests: memory, modules and launches that go when a test ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.gpu.compile import CompiledKernel, compile_kernel
from paiton_kernels.gpu.devices import TARGETS
from paiton_kernels.gpu.embed import EMBED
from paiton_kernels.gpu.spec import Case
from paiton_runtime.drivers.device_launch import Arguments, KernelLaunch
from paiton_runtime.drivers.hip import HipLibrary
from tests.emulated.harness import configs_of, profile_of
from tests.emulated.standin.hip import HipStandIn

GFX942 = TARGETS["hip:gfx942"]


def embed_case() -> Case:
    """Returns a small case."""
    return next(iter(EMBED.cases(GFX942)))


def compile_embed(case: Case) -> tuple[CompiledKernel, tuple[int, int, int]]:
    """Returns the kernel of a case and its grid."""
    config = configs_of(EMBED, case, GFX942)[0]
    variant = EMBED.variant(config, **case.constants)
    return compile_kernel(variant, GFX942), EMBED.grid(variant.values, case.step, profile_of(GFX942))


class Session:
    """One device in use: what is created here goes when the test ends."""

    def __init__(self, standin: HipStandIn, library: HipLibrary, stack: ExitStack) -> None:
        self.standin = standin
        self.library = library
        self.stack = stack
        self.stream = library.create_stream()
        stack.callback(library.destroy_stream, self.stream)

    def upload(self, array: NDArray[Any]) -> int:
        """Returns the address of a copy on the thread's device."""
        address = self.library.allocate(max(array.nbytes, 1))
        self.stack.callback(self.library.free, address)
        self.library.copy_to_device(address, array.ctypes.data, array.nbytes, self.stream)
        return address

    def download(self, address: int, like: NDArray[Any]) -> NDArray[Any]:
        """Returns what lies at an address, once the stream is done."""
        out = np.empty_like(like)
        self.library.copy_to_host(out.ctypes.data, address, out.nbytes, self.stream)
        self.library.synchronise_stream(self.stream)
        return out

    def load(self, kernel: CompiledKernel) -> int:
        """Returns the function of a kernel."""
        self.standin.code.register(kernel.code, kernel.assembly)
        module = self.library.load_module("embed", kernel.code)
        self.stack.callback(self.library.unload_module, module)
        return self.library.function(module, kernel.symbol)

    def launch_of(self, case: Case) -> tuple[KernelLaunch, dict[str, int]]:
        """Returns the launch of a case, and where its arrays lie."""
        kernel, grid = compile_embed(case)
        addresses = {name: self.upload(array) for name, array in case.arrays.items()}
        arguments = pack(kernel, addresses)
        return KernelLaunch(self.load(kernel), grid, kernel.threads, kernel.shared_bytes, arguments), addresses


def pack(kernel: CompiledKernel, addresses: dict[str, int]) -> Arguments:
    """Returns the arguments of a kernel that takes pointers only."""
    packed = bytearray(kernel.args_bytes)
    for arg in kernel.args:
        packed[arg.offset : arg.offset + arg.size] = addresses.get(arg.name, 0).to_bytes(arg.size, "little")
    return Arguments(bytes(packed), [arg.offset for arg in kernel.args])


@contextmanager
def opened(standin: HipStandIn) -> Iterator[Session]:
    """Opens a machine's first device."""
    library = HipLibrary()
    library.initialise()
    library.set_device(0)
    with ExitStack() as stack:
        yield Session(standin, library, stack)
