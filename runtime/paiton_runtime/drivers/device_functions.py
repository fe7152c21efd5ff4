"""A table of C functions of a driver library: found, bound, every call checked."""

from __future__ import annotations

import ctypes
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from paiton_artifacts.errors import DeviceFaultError, DeviceNotFoundError, DriverError, OutOfMemoryError

Signature = tuple[str, tuple[Any, ...]]
"""Name of a C function that returns an error code, and its parameters' ctypes."""

# Error codes that HIP and CUDA number alike.
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NO_DEVICE = 100
UNLOADABLE = {200: "invalid image", 209: "made for another architecture", 218: "invalid PTX", 222: "unsupported PTX"}
LOSSY_QUERY = 402  # CUDA's alone
NOT_FOUND = 500
NOT_READY = 600
PEER_ACCESS_ALREADY_ENABLED = 704
NOT_SUPPORTED = 801
FAULTS = frozenset({700, 702, 710, 714, 715, 716, 717, 718, 719})
"""Illegal address, timeout, assertion, and what else stops a kernel and takes its context with it."""


class FunctionTable(ABC):
    """A driver library with the functions that are used of it.

    Raises:
        DeviceNotFoundError: it is absent, or lacks a function.
    """

    backend: ClassVar[str]
    """"hip" or "cuda": the first part of its targets' names."""
    override: ClassVar[str]
    """Environment variable that names the library's file."""
    sonames: ClassVar[Sequence[str]]
    """Names that the dynamic linker may know it by, the newest version first."""
    visibility: ClassVar[Sequence[str]]
    """Environment variables that hide devices, the driver's first choice first."""
    install_hint: ClassVar[str]
    functions: ClassVar[Mapping[str, Signature]]
    """The C function of each operation."""

    def __init__(self) -> None:
        self.library, self.path = self._load()
        self._functions: dict[str, Any] = {}
        for role, (symbol, parameters) in self.functions.items():
            try:
                function = getattr(self.library, symbol)
            except AttributeError as error:
                raise DeviceNotFoundError(f"{self.path} has no function {symbol}", hint=self.install_hint) from error
            function.argtypes, function.restype = parameters, ctypes.c_int
            self._functions[role] = function

    def _load(self) -> tuple[ctypes.CDLL, str]:
        named = os.environ.get(self.override)
        refusals = []
        for name in [named] if named else self._places():
            try:
                return ctypes.CDLL(name), name
            except OSError as error:
                refusals.append(str(error))
        hint = f"correct {self.override}" if named else f"{self.install_hint}, or set {self.override}"
        raise DeviceNotFoundError(f"the {self.backend} driver library does not load: {refusals[0]}", hint=hint)

    def _places(self) -> Sequence[str]:
        """Returns where to look for the library: names or paths."""
        return self.sonames

    def check(self, code: int, operation: str) -> None:
        """Raises what an error code means, if it is one.

        Raises:
            OutOfMemoryError: device or pinned memory is exhausted.
            DeviceFaultError: a kernel that ran before has crashed.
            DriverError: anything else.
        """
        if code == 0:
            return
        name = self.error_name(code)
        if code == OUT_OF_MEMORY:
            hint = "leave more memory to this process, or give it less to hold"
            raise OutOfMemoryError(f"{operation} failed: {name} ({code})", hint=hint)
        if code in FAULTS:
            raise DeviceFaultError(operation, name, code, hint="start this process again; a kernel has crashed")
        if code == NO_DEVICE:
            hint = f"check that the device is visible: {' and '.join(self.visibility)}, container options, permissions"
            raise DeviceNotFoundError(f"{operation} failed: {name} ({code})", hint=hint)
        raise DriverError(operation, name, code)

    @abstractmethod
    def error_name(self, code: int) -> str:
        """Returns the driver's name of an error code."""

    def _call(self, role: str, what: str, *arguments: object) -> None:
        """Calls the function of a role; `what` says in an error what was tried."""
        code = self._functions[role](*arguments)
        if code:
            self.check(code, f"{what} ({self.functions[role][0]})")

    def _create(self, role: str, what: str, *arguments: object) -> int:
        """Calls a function that writes a handle or an address to its first parameter, and returns that."""
        handle = ctypes.c_void_p()
        self._call(role, what, ctypes.byref(handle), *arguments)
        return handle.value or 0


def address_of(function: Any) -> int:  # noqa: ANN401 (ctypes has no name for the type)
    """Returns where a C function lies, for native code that calls it itself."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0
