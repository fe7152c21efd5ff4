"""Loads to devices behind the stand-ins: the vendors' own prototypes, and streams that do nothing until asked."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from pathlib import Path

import pytest

from paiton_artifacts.errors import DriverError
from paiton_runtime.drivers.cuda import CudaLibrary
from paiton_runtime.drivers.device_library import DeviceLibrary
from paiton_runtime.drivers.hip import HipLibrary
from paiton_runtime.loader import DeviceDestination, ReadSettings, load
from tests.cpu.runtime.weights import make_weights
from tests.emulated.conftest import MakeCuda, MakeHip
from tests.emulated.standin.cuda import H200
from tests.emulated.standin.hip import MI300X

SLOT = 64 << 10
SIZES = [9 * SLOT + 4097, 300_000]
SETTINGS = ReadSettings(threads=2, slot_bytes=SLOT)


@pytest.fixture(params=["hip", "cuda"])
def library(request: pytest.FixtureRequest) -> DeviceLibrary:
    """Two devices of either vendor, and the runtime's library for them."""
    if request.param == "hip":
        make_hip: MakeHip = request.getfixturevalue("make_hip")
        make_hip(MI300X, MI300X)
        return HipLibrary()
    make_cuda: MakeCuda = request.getfixturevalue("make_cuda")
    make_cuda(H200, H200)
    return CudaLibrary()


@pytest.mark.parametrize("verify", [False, True])
def test_two_ranks_arrive_on_their_devices(library: DeviceLibrary, tmp_path: Path, verify: bool) -> None:
    library.initialise()
    with ExitStack() as stack:
        stack.callback(library.close)
        weights = [stack.enter_context(make_weights(tmp_path / f"{n}", size)) for n, size in enumerate(SIZES)]
        destinations = []
        for ordinal, size in enumerate(SIZES):
            library.set_device(ordinal)
            address = library.allocate(size)
            stack.callback(library.free, address)
            destinations.append(DeviceDestination(library, ordinal, address))
        report = load([item.file for item in weights], destinations, verify=verify, settings=SETTINGS)
        assert report.bytes == sum(SIZES)
        for ordinal, (item, destination) in enumerate(zip(weights, destinations, strict=True)):
            assert fetch(library, ordinal, destination.address, item.file.size) == item.content


def test_a_copy_that_leaves_the_device_is_refused(library: DeviceLibrary, tmp_path: Path) -> None:
    library.initialise()
    with ExitStack() as stack:
        stack.callback(library.close)
        library.set_device(0)
        address = library.allocate(SIZES[0] - 8192)
        stack.callback(library.free, address)
        weights = stack.enter_context(make_weights(tmp_path / "blob", SIZES[0]))
        with pytest.raises(DriverError, match=r"starting a copy to the device, with .*blob loaded up to offset"):
            load([weights.file], [DeviceDestination(library, 0, address)], settings=SETTINGS)


def fetch(library: DeviceLibrary, ordinal: int, address: int, size: int) -> bytes:
    """Returns bytes of device memory."""
    library.set_device(ordinal)
    content = bytearray(size)
    anchor = (ctypes.c_char * size).from_buffer(content)
    library.copy_to_host(ctypes.addressof(anchor), address, size, 0)
    return bytes(content)
