"""Loads to devices: through slots that are not touched before their copy is done, whatever else goes wrong.

The driver library is slow_driver.c, whose copies happen late and out of order; tests/emulated has the real functions'
prototypes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from paiton_artifacts.errors import (
    DeviceFaultError,
    DigestMismatchError,
    DriverError,
    FileSizeError,
    OutOfMemoryError,
    PaitonError,
)
from paiton_runtime.drivers.hip import HipLibrary
from paiton_runtime.drivers.hip_functions import FUNCTIONS
from paiton_runtime.host import Stop
from paiton_runtime.loader import (
    Destination,
    DeviceDestination,
    HostDestination,
    LoadStoppedError,
    ReadSettings,
    load,
)
from tests.cpu.runtime.weights import CHUNK, make_weights

SOURCE = Path(__file__).with_name("slow_driver.c")
SLOT = 64 << 10
SIZE = 40 * SLOT + 12345
USED = (
    *("set_device", "create_stream", "destroy_stream", "synchronise_stream", "create_event", "destroy_event"),
    *("record_event", "query_event", "allocate_pinned", "free_pinned", "copy_to_device"),
)


class SlowLibrary(HipLibrary):
    """slow_driver.c as the runtime sees it; functions that a load does not use are absent."""

    functions = {name: FUNCTIONS[name] for name in USED} | dict.fromkeys(
        ("launch_kernel", "launch_graph"), ("slow_unused", ())
    )

    def get(self, name: str) -> int:
        """Returns one of the driver's counters."""
        return int((ctypes.c_uint64 if "pinned" in name else ctypes.c_int).in_dll(self.library, name).value)

    def set(self, name: str, value: int) -> None:
        """Sets one of the driver's switches."""
        ctypes.c_int.in_dll(self.library, name).value = value


@pytest.fixture(scope="session")
def slow_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled driver."""
    folder = tmp_path_factory.mktemp("slow-driver")
    output = folder / "libslow.so"
    zig = {"ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    flags = ["-O1", "-g0", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-lpthread"]
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.17", *flags]
    subprocess.run([*command, "-o", output, SOURCE], env=zig | os.environ, check=True, timeout=300)
    return output


@pytest.fixture
def driver(slow_driver: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowLibrary]:
    """The driver; what a load leaves behind, or frees under a copy, is an error."""
    monkeypatch.setenv("PAITON_HIP_LIBRARY", str(slow_driver))
    library = SlowLibrary()
    library.set("slow_copies", 0)
    yield library
    for name in ("slow_refuse_copy", "slow_refuse_record", "slow_break_copy"):
        library.set(name, -1)
    assert (library.get("slow_objects"), library.get("slow_pinned"), library.get("slow_errors")) == (0, 0, 0)


class DeviceMemory:
    """Memory that plays a device's."""

    def __init__(self, library: SlowLibrary, size: int, ordinal: int = 0) -> None:
        self.pages = mmap.mmap(-1, size)
        self._anchor = ctypes.c_char.from_buffer(self.pages)
        self.destination = DeviceDestination(library, ordinal, ctypes.addressof(self._anchor))


@pytest.mark.parametrize("settings", [(1, 1), (1, 2), (2, 1), (3, 2), (4, 5)])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("verify", [False, True])
def test_every_byte_arrives_through_the_ring(
    tmp_path: Path, driver: SlowLibrary, settings: tuple[int, int], direct: bool, verify: bool
) -> None:
    threads, slots = settings
    memory = DeviceMemory(driver, SIZE)
    with make_weights(tmp_path / "blob", SIZE) as weights:
        report = load(
            [weights.file],
            [memory.destination],
            verify=verify,
            settings=ReadSettings(threads=threads, slot_bytes=SLOT, slots=slots, direct=direct),
        )
    assert memory.pages[:] == weights.content
    assert report.bytes == SIZE
    pieces = [min(CHUNK, SIZE - at) for at in range(0, SIZE, CHUNK)] if verify else [SIZE]
    assert driver.get("slow_copies") == sum(-(-piece // SLOT) for piece in pieces)


def test_the_ring_is_all_the_pinned_memory(tmp_path: Path, driver: SlowLibrary) -> None:
    """Devices share the readers out, but each has one."""
    for threads, devices, readers in ((3, 1, 3), (5, 2, 6), (1, 3, 3)):
        ctypes.c_uint64.in_dll(driver.library, "slow_pinned_most").value = 0
        memories = [DeviceMemory(driver, SIZE, ordinal) for ordinal in range(devices)]
        destinations = [memory.destination for memory in memories]
        with make_weights(tmp_path / "blob", SIZE) as weights:
            settings = ReadSettings(threads=threads, slot_bytes=SLOT, slots=2)
            load([weights.file] * devices, destinations, settings=settings)
        assert driver.get("slow_pinned_most") == readers * 2 * SLOT


def test_ranks_on_several_devices_and_one_device_with_two(tmp_path: Path, driver: SlowLibrary) -> None:
    """The driver refuses calls of a thread that has another device than its stream."""
    ordinals, sizes = [5, 0, 5, 2, 3], [SIZE, 3 * SLOT, 7 * SLOT + 1, 0, 1]
    memories = [DeviceMemory(driver, max(size, 1), ordinal) for size, ordinal in zip(sizes, ordinals, strict=True)]
    with ExitStack() as stack:
        weights = [stack.enter_context(make_weights(tmp_path / f"{n}", size)) for n, size in enumerate(sizes)]
        files, destinations = [item.file for item in weights], [memory.destination for memory in memories]
        report = load(files, destinations, verify=True, settings=ReadSettings(threads=2, slot_bytes=SLOT))
    for memory, item in zip(memories, weights, strict=True):
        assert memory.pages[: item.file.size] == item.content
    assert report.bytes == sum(sizes)


def test_host_and_device_destinations_do_not_mix(tmp_path: Path, driver: SlowLibrary) -> None:
    with make_weights(tmp_path / "blob", 1) as weights:
        destinations: list[Destination] = [HostDestination(0), DeviceDestination(driver, 0, 0)]
        with pytest.raises(PaitonError, match="one load goes either"):
            load([weights.file, weights.file], destinations)


# What goes wrong


def fails(tmp_path: Path, driver: SlowLibrary, verify: bool = False) -> PaitonError:
    """Returns the error of a load."""
    memory = DeviceMemory(driver, SIZE)
    with make_weights(tmp_path / "blob", SIZE) as weights, pytest.raises(PaitonError) as caught:
        load([weights.file], [memory.destination], verify=verify, settings=ReadSettings(threads=2, slot_bytes=SLOT))
    return caught.value


@pytest.mark.parametrize("number", [0, 7, 40])
@pytest.mark.parametrize(
    ("switch", "what"),
    [
        ("slow_refuse_copy", "starting a copy to the device"),
        ("slow_refuse_record", "recording the end of a copy to the device"),
    ],
)
def test_a_call_that_the_driver_refuses(
    tmp_path: Path, driver: SlowLibrary, switch: str, what: str, number: int
) -> None:
    driver.set(switch, number)
    error = fails(tmp_path, driver)
    assert isinstance(error, DriverError)
    assert (error.name, error.code) == ("hipErrorInvalidValue", 1)
    offset = error.operation.rpartition(" ")[2]
    assert error.operation == f"{what}, with {tmp_path / 'blob'} loaded up to offset {offset}"
    assert int(offset) % SLOT == 0
    assert int(offset) // SLOT <= number + 1  # of two threads, one may have fallen behind the other


@pytest.mark.parametrize("number", [0, 20, 40])
def test_a_copy_that_crashes(tmp_path: Path, driver: SlowLibrary, number: int) -> None:
    """The last one is noticed as well: by waiting for the stream."""
    driver.set("slow_break_copy", number)
    error = fails(tmp_path, driver)
    assert isinstance(error, DeviceFaultError)
    assert error.name == "hipErrorLaunchFailure"
    assert error.operation.startswith("copying to the device")


def test_a_device_that_is_not_there(tmp_path: Path, driver: SlowLibrary) -> None:
    with make_weights(tmp_path / "blob", SIZE) as weights, pytest.raises(DriverError, match="choosing device 9"):
        load([weights.file], [DeviceDestination(driver, 9, 0)])


def test_pinned_memory_that_there_is_not(tmp_path: Path, driver: SlowLibrary) -> None:
    with make_weights(tmp_path / "blob", SIZE) as weights, pytest.raises(OutOfMemoryError, match="pinned"):
        load([weights.file], [DeviceDestination(driver, 0, 0)], settings=ReadSettings(slot_bytes=1 << 30))


def test_a_wrong_digest(tmp_path: Path, driver: SlowLibrary) -> None:
    memory = DeviceMemory(driver, SIZE)
    with make_weights(tmp_path / "blob", SIZE) as weights:
        with (tmp_path / "blob").open("r+b") as file:
            file.seek(3 * CHUNK)
            file.write(bytes([weights.content[3 * CHUNK] ^ 0x80]))
        with pytest.raises(DigestMismatchError, match=f"{CHUNK} bytes at offset {3 * CHUNK} is"):
            load([weights.file], [memory.destination], verify=True, settings=ReadSettings(slot_bytes=SLOT))


# While copies are held up: the first two slots of the only reader are on their way, and it waits for the first


@pytest.fixture
def held(tmp_path: Path, driver: SlowLibrary) -> Iterator[Callable[[Stop, list[Exception]], threading.Thread]]:
    """A function that starts a load in a thread, and returns once it can go no further."""
    memory = DeviceMemory(driver, SIZE)
    driver.set("slow_held", 1)
    threads: list[threading.Thread] = []
    with make_weights(tmp_path / "blob", SIZE) as weights:

        def start(stop: Stop, errors: list[Exception]) -> threading.Thread:
            def work() -> None:
                settings = ReadSettings(threads=1, slot_bytes=SLOT, direct=False)
                try:
                    load([weights.file], [memory.destination], stop=stop, settings=settings)
                except PaitonError as error:
                    errors.append(error)

            thread = threading.Thread(target=work)
            threads.append(thread)
            thread.start()
            deadline = time.monotonic() + 30
            while driver.get("slow_copies") < 2:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            return thread

        try:
            yield start
        finally:
            driver.set("slow_held", 0)
            for thread in threads:
                thread.join()


def test_a_stop_waits_for_copies_under_way(
    driver: SlowLibrary, held: Callable[[Stop, list[Exception]], threading.Thread]
) -> None:
    """Their slots must not be freed under them; nothing new is begun."""
    stop, errors = Stop(), list[Exception]()
    thread = held(stop, errors)
    thread.join(0.05)
    assert thread.is_alive()
    stop.set()
    thread.join(0.05)
    assert thread.is_alive()
    driver.set("slow_held", 0)
    thread.join(30)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [LoadStoppedError]
    assert driver.get("slow_copies") == 2


def test_a_file_that_shrinks_while_it_is_read(
    tmp_path: Path, driver: SlowLibrary, held: Callable[[Stop, list[Exception]], threading.Thread]
) -> None:
    errors: list[Exception] = []
    thread = held(Stop(), errors)
    end = 5 * SLOT + 100
    os.truncate(tmp_path / "blob", end)
    driver.set("slow_held", 0)
    thread.join(30)
    (error,) = errors
    assert isinstance(error, FileSizeError)
    assert error.message == f"{tmp_path / 'blob'} ended at {end} instead of {SIZE} while it was read"
