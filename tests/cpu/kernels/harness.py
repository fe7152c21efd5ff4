"""Runs kernels on numpy data in memory that is followed, byte for byte, by a page that must not be touched."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.cpu.compile import compile_level
from paiton_kernels.spec import Variant

Array = NDArray[Any]

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

SHARE_BYTES = 64
"""Of a worker's record of what is taken of its share."""


class Guarded:
    """Memory whose last byte lies just before an inaccessible page; freed with the object."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self._length = -(-max(size, 1) // page) * page + page
        anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._base = _LIBC.mmap(None, self._length, mmap.PROT_READ | mmap.PROT_WRITE, anonymous, -1, 0)
        assert self._base not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())
        guard = self._base + self._length - page
        assert _LIBC.mprotect(guard, page, 0) == 0, os.strerror(ctypes.get_errno())
        self.address = guard - size

    def __del__(self) -> None:
        _LIBC.munmap(self._base, self._length)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Returns the memory as an array."""
        size = int(np.prod(shape)) * dtype.itemsize
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address)).view(dtype).reshape(shape)


class Level:
    """Compiles variants for one level as tests ask for them, and calls them."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._symbols: dict[str, Callable[..., object]] = {}

    def load(self, variants: list[Variant]) -> None:
        """Makes variants callable, all in one code object."""
        if all(variant.symbol in self._symbols for variant in variants):
            return
        code = compile_level(self.name, variants, self._folder)
        # The loader knows libraries by path, so the descriptor stays open: its number must not come round again.
        handle = os.memfd_create("kernels")
        os.write(handle, code)
        library = ctypes.CDLL(f"/proc/self/fd/{handle}", mode=os.RTLD_NOW | os.RTLD_LOCAL)
        for variant in variants:
            self._symbols[variant.symbol] = library[variant.symbol]

    def run(
        self, variant: Variant, values: Mapping[str, Array | float], *, workers: int = 1, max_tokens: int = 512
    ) -> None:
        """Calls a kernel once per worker, each in a thread of its own, with every array in guarded memory.

        Args:
            variant: what to call.
            values: arguments by name; arrays are passed by address, and hold what the kernel wrote afterwards.
            workers: how many workers share the work.
            max_tokens: sizes the scratch.
        """
        self.load([variant])
        packed: dict[str, int | float] = {}
        copies: list[tuple[Array, Array, Guarded]] = []
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                memory = Guarded(value.nbytes)
                copy = memory.array(value.shape, value.dtype)
                copy[...] = value
                copies.append((value, copy, memory))
                packed[name] = memory.address
            else:
                packed[name] = value
        size = variant.worker_scratch_bytes(max_tokens)
        scratch = Guarded(workers * size)
        if any(arg.name == "worker_scratch" for arg in variant.spec.args):
            # What a kernel leaves in its scratch must not matter: NaN as f32 and as bf16.
            scratch.array((workers * size,), np.dtype(np.uint8)).fill(0xFF)
            packed |= {"worker_scratch": scratch.address, "worker_scratch_stride": size}
        arguments = variant.pack(packed)
        function, shares = self._symbols[variant.symbol], Guarded(workers * SHARE_BYTES)
        shares.array((workers * SHARE_BYTES,), np.dtype(np.uint8)).fill(0)

        def work(worker: int) -> None:
            function(arguments, ctypes.c_uint32(worker), ctypes.c_uint32(workers), ctypes.c_void_p(shares.address))

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
        for original, copy, _ in copies:
            original[...] = copy
