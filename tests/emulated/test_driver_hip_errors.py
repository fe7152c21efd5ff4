"""What can go wrong with a HIP device: each is an error that names the operation, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paiton_artifacts.errors import (
    CodeObjectError,
    DeviceFaultError,
    DeviceNotFoundError,
    DriverError,
    OutOfMemoryError,
    PaitonError,
)
from paiton_runtime.drivers.device_launch import Arguments, KernelLaunch
from paiton_runtime.drivers.hip import HipLibrary
from tests.emulated.conftest import MakeHip
from tests.emulated.standin.hip import GIB, MI300X, MI355X, HipStandIn
from tests.emulated.standin.session import Session, compile_embed, embed_case, opened, pack


@pytest.fixture
def session(make_hip: MakeHip) -> Iterator[Session]:
    with opened(make_hip()) as running:
        yield running


def test_out_of_memory(session: Session) -> None:
    with pytest.raises(OutOfMemoryError, match=r"allocating \d+ bytes .*hipErrorOutOfMemory \(2\)"):
        session.library.allocate(193 * GIB)


def test_absent_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAITON_HIP_LIBRARY", "/nowhere/libamdhip64.so")
    with pytest.raises(DeviceNotFoundError, match=r"hip driver library does not load: /nowhere") as caught:
        HipLibrary()
    assert caught.value.hint == "correct PAITON_HIP_LIBRARY"


def test_library_without_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAITON_HIP_LIBRARY", "libc.so.6")
    with pytest.raises(DeviceNotFoundError, match=r"libc\.so\.6 has no function hipInit"):
        HipLibrary()


def test_no_library_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAITON_HIP_LIBRARY", raising=False)
    monkeypatch.setattr(HipLibrary, "sonames", ("libabsent-hip.so.7",))
    with pytest.raises(DeviceNotFoundError, match=r"libabsent-hip\.so\.7") as caught:
        HipLibrary()
    assert caught.value.hint == "install ROCm 6 or later, or set PAITON_HIP_LIBRARY"


def test_missing_device(session: Session) -> None:
    with pytest.raises(DriverError, match=r"choosing device 1 \(hipSetDevice\)") as caught:
        session.library.set_device(1)
    assert (caught.value.name, caught.value.code) == ("hipErrorInvalidDevice", 101)


def test_no_device(make_hip: MakeHip, hip_library_path: Path) -> None:
    with HipStandIn(hip_library_path, ()).serving():
        library = HipLibrary()
        with pytest.raises(DeviceNotFoundError, match=r"hipErrorNoDevice \(100\)") as caught:
            library.initialise()
    assert "HIP_VISIBLE_DEVICES" in caught.value.hint
    del make_hip


def test_damaged_code(session: Session) -> None:
    with pytest.raises(CodeObjectError, match=r"code object broken does not load: hipErrorInvalidImage \(200\)"):
        session.library.load_module("broken", bytes(64))


def test_code_of_another_architecture(make_hip: MakeHip) -> None:
    kernel, _ = compile_embed(embed_case())
    with (
        opened(make_hip(MI355X)) as session,
        pytest.raises(CodeObjectError, match=r"hipErrorNoBinaryForGpu \(209\), made for another architecture"),
    ):
        session.load(kernel)


def test_missing_symbol(session: Session) -> None:
    kernel, _ = compile_embed(embed_case())
    session.standin.code.register(kernel.code, kernel.assembly)
    module = session.library.load_module("embed", kernel.code)
    session.stack.callback(session.library.unload_module, module)
    with pytest.raises(CodeObjectError, match=r"kernel embed_of_nothing is absent: hipErrorNotFound \(500\)"):
        session.library.function(module, "embed_of_nothing")


def test_wrong_block(session: Session) -> None:
    launch, _ = session.launch_of(embed_case())
    wrong = KernelLaunch(launch.function, launch.grid, launch.threads // 2, launch.shared_bytes, launch.arguments)
    with pytest.raises(DriverError, match="hipErrorInvalidValue"):
        session.library.launch(wrong, session.stream)


def test_too_much_shared_memory(session: Session) -> None:
    launch, _ = session.launch_of(embed_case())
    session.library.allow_shared_bytes(launch.function, 64 << 10)
    wrong = KernelLaunch(launch.function, launch.grid, launch.threads, (64 << 10) + 1, launch.arguments)
    with pytest.raises(DriverError, match="hipErrorInvalidValue"):
        session.library.launch(wrong, session.stream)


def crash(session: Session, **changed: int) -> DeviceFaultError:
    """Launches embed with pointers replaced, and returns the error that waiting raises."""
    case = embed_case()
    kernel, grid = compile_embed(case)
    addresses = {name: session.upload(array) for name, array in case.arrays.items()} | changed
    launch = KernelLaunch(session.load(kernel), grid, kernel.threads, 0, pack(kernel, addresses))
    session.library.launch(launch, session.stream)
    with pytest.raises(DeviceFaultError) as caught:
        session.library.synchronise_stream(session.stream)
    with pytest.raises(DeviceFaultError):  # and so does everything after it
        session.library.memory_info()
    session.stack.pop_all()  # the process is lost: nothing can be freed any more
    session.standin.machine.forget()
    return caught.value


def test_fault_of_a_kernel(session: Session) -> None:
    """The output is too small: the kernel itself leaves it."""
    error = crash(session, out=session.upload(np.zeros(16, np.float32)))
    assert (error.name, error.code) == ("hipErrorIllegalAddress", 700)
    assert "start this process again" in error.hint


def test_use_after_free(session: Session) -> None:
    address = session.library.allocate(4096)
    session.library.free(address)
    assert crash(session, out=address).code == 700
    assert "which was freed" in session.standin.machine.refusals[-1]


def test_unaligned_pointer(session: Session) -> None:
    address = session.upload(np.zeros((5, 576), np.float32))
    assert crash(session, out=address + 4).code == 700
    assert "not a multiple of 16" in session.standin.machine.refusals[-1]


def test_memory_of_another_device(make_hip: MakeHip) -> None:
    with opened(make_hip(MI300X, MI300X)) as session:
        session.library.set_device(1)
        address = session.library.allocate(1 << 16)
        session.library.set_device(0)
        assert crash(session, out=address).code == 700


def test_kernel_of_another_device(make_hip: MakeHip) -> None:
    """A function belongs to the device that its module was loaded onto."""
    with opened(make_hip(MI300X, MI300X)) as session:
        launch, _ = session.launch_of(embed_case())
        session.library.set_device(1)
        stream = session.library.create_stream()
        session.stack.callback(session.library.destroy_stream, stream)
        with pytest.raises(DriverError, match="hipErrorInvalidHandle"):
            session.library.launch(launch, stream)


def test_uninitialised_driver(make_hip: MakeHip) -> None:
    make_hip()
    with pytest.raises(DriverError, match=r"hipErrorNotInitialized \(3\)"):
        HipLibrary().device_count()


def test_double_free(session: Session) -> None:
    address = session.library.allocate(16)
    session.library.free(address)
    with pytest.raises(DriverError, match=r"freeing device memory \(hipFree\) failed: hipErrorInvalidValue"):
        session.library.free(address)


def test_leaks_are_found(session: Session) -> None:
    machine = session.standin.machine
    before = machine.leaks()
    address = session.library.allocate(16)
    assert len(machine.leaks()) == len(before) + 1
    session.library.free(address)
    assert machine.leaks() == before


def test_offsets_outside_of_the_arguments() -> None:
    with pytest.raises(PaitonError, match="leaves 16 bytes"):
        Arguments(bytes(16), [0, 8, 16])
