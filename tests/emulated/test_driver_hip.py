"""The runtime's HIP library through the stand-in: every operation, and launches both ways."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paiton_artifacts.errors import DeviceNotFoundError, DriverError
from paiton_kernels.gpu.embed import EMBED
from paiton_runtime.drivers.device_launch import Arguments, HostCopy, KernelLaunch
from paiton_runtime.drivers.hip import HipLibrary
from tests.emulated.conftest import MakeHip
from tests.emulated.harness import check_outputs
from tests.emulated.standin.hip import GIB, MI300X, MI355X
from tests.emulated.standin.session import Session, compile_embed, embed_case, opened, pack


@pytest.fixture
def session(make_hip: MakeHip) -> Iterator[Session]:
    with opened(make_hip()) as running:
        yield running


def test_properties_come_from_the_struct(make_hip: MakeHip) -> None:
    make_hip(MI300X, MI355X)
    library = HipLibrary()
    library.initialise()
    assert library.device_count() == 2
    found = library.device(1)
    assert (found.name, found.target, found.memory_bytes) == ("AMD Instinct MI355X", "hip:gfx950", 288 * GIB)
    assert (found.compute_units, found.warp_size, found.shared_bytes, found.l2_bytes) == (256, 64, 160 << 10, 4 << 20)
    assert library.version() == "HIP 7.2.54321"


def test_direct_launch(session: Session) -> None:
    case = embed_case()
    launch, addresses = session.launch_of(case)
    session.library.launch(launch, session.stream)
    check_outputs(case, {"out": session.download(addresses["out"], case.arrays["out"])})


def test_blocks_that_a_compute_unit_holds(session: Session) -> None:
    launch, _ = session.launch_of(embed_case())
    library, function = session.library, launch.function
    assert library.resident_blocks(function, launch.threads, 0) == 2048 // launch.threads
    assert library.resident_blocks(function, launch.threads, 40 << 10) == 1


def test_graph_reads_its_inputs_anew_and_keeps_its_arguments(session: Session) -> None:
    """The copy node takes what pinned memory holds at each launch; arguments were copied when the graph was made."""
    case, library = embed_case(), session.library
    launch, addresses = session.launch_of(case)
    tokens = case.arrays["token_ids"]
    pinned = library.allocate_pinned(tokens.nbytes)
    session.stack.callback(library.free_pinned, pinned)
    graph = library.create_graph([HostCopy(addresses["token_ids"], pinned, tokens.nbytes), launch])
    session.stack.callback(library.destroy_graph, graph)
    ctypes.memset(launch.arguments.pointers[0] or 0, 0, 8)
    library.upload_graph(graph, session.stream)
    rows = [np.array([1, 2, 3, 0], np.int32), tokens]
    for wanted in rows:
        ctypes.memmove(pinned, wanted.ctypes.data, wanted.nbytes)
        library.launch_graph(graph, session.stream)
        out = session.download(addresses["out"], case.arrays["out"])
        if wanted is tokens:
            check_outputs(case, {"out": out})
        else:
            hidden = int(case.constants["HIDDEN"])
            assert np.array_equal(out[:3], case.arrays["table"][1:4, :hidden].astype(np.float32))


def test_graph_is_a_chain(session: Session) -> None:
    """Two nodes that write to the same place: the second one stays, though nothing but the edge orders them."""
    case, library = embed_case(), session.library
    launch, addresses = session.launch_of(case)
    tokens = case.arrays["token_ids"]
    pinned = [library.allocate_pinned(tokens.nbytes) for _ in range(2)]
    for place, wanted in zip(pinned, (np.array([1, 2, 3, 0], np.int32), tokens), strict=True):
        session.stack.callback(library.free_pinned, place)
        ctypes.memmove(place, wanted.ctypes.data, wanted.nbytes)
    copies = [HostCopy(addresses["token_ids"], place, tokens.nbytes) for place in pinned]
    graph = library.create_graph([*copies, launch])
    session.stack.callback(library.destroy_graph, graph)
    library.launch_graph(graph, session.stream)
    check_outputs(case, {"out": session.download(addresses["out"], case.arrays["out"])})


def test_native_code_launches_through_the_functions_address(session: Session) -> None:
    """What the launch loop of the host library calls."""
    case = embed_case()
    launch, addresses = session.launch_of(case)
    numbers = (*launch.grid, launch.threads, 1, 1, launch.shared_bytes)
    pointer, number = ctypes.c_void_p, ctypes.c_uint
    native = ctypes.CFUNCTYPE(ctypes.c_int, pointer, *(number,) * 7, pointer, pointer, pointer)
    function = native(session.library.launch_address)
    assert function(launch.function, *numbers, session.stream, ctypes.addressof(launch.arguments.pointers), None) == 0
    check_outputs(case, {"out": session.download(addresses["out"], case.arrays["out"])})


def test_as_many_pointers_as_the_metadata_lists(session: Session) -> None:
    """The two scratch pointers that the compiler adds are arguments too: a launcher that forgets them is found out."""
    case = embed_case()
    launch, _ = session.launch_of(case)
    kernel, _ = compile_embed(case)
    assert len(launch.arguments.pointers) == len(EMBED.args) + 2
    short = Arguments(bytes(kernel.args_bytes), [arg.offset for arg in kernel.args[:-2]])
    wrong = KernelLaunch(launch.function, launch.grid, launch.threads, launch.shared_bytes, short)
    # What lies behind the array is not ours to choose; a null pointer there is what makes a real driver crash.
    short.pointers = (ctypes.c_void_p * (len(short.pointers) + 2))(*short.pointers)
    with pytest.raises(DriverError, match=r"launching .* failed: hipErrorInvalidValue \(1\)"):
        session.library.launch(wrong, session.stream)
    assert f"argument {len(EMBED.args)} of {len(EMBED.args) + 2}" in session.standin.machine.refusals[-1]


def test_streams_and_events(session: Session) -> None:
    library = session.library
    other, start, end = library.create_stream(), library.create_event(timing=True), library.create_event(timing=True)
    session.stack.callback(library.destroy_stream, other)
    for event in (start, end):
        session.stack.callback(library.destroy_event, event)
    address = library.allocate(64)
    session.stack.callback(library.free, address)
    library.record_event(start, session.stream)
    library.fill(address, 7, 64, session.stream)
    library.record_event(end, session.stream)
    copy = library.allocate(64)
    session.stack.callback(library.free, copy)
    library.wait_event(other, end)
    library.copy_on_device(copy, address, 64, other)
    assert not library.event_done(end)
    library.synchronise_stream(other)
    assert library.event_done(end)
    library.synchronise_event(end)
    assert library.elapsed_milliseconds(start, end) >= 0
    assert session.download(copy, np.zeros(64, np.uint8)).tolist() == [7] * 64


def test_pinned_copies_are_asynchronous(session: Session) -> None:
    """What pinned memory holds when the copy happens is copied: a loader that reuses a slot too early loses data."""
    library = session.library
    pinned, address = library.allocate_pinned(16), library.allocate(16)
    session.stack.callback(library.free_pinned, pinned)
    session.stack.callback(library.free, address)
    ctypes.memset(pinned, 1, 16)
    library.copy_to_device(address, pinned, 16, session.stream)
    ctypes.memset(pinned, 2, 16)
    assert session.download(address, np.zeros(16, np.uint8)).tolist() == [2] * 16


def test_memory_info(session: Session) -> None:
    library = session.library
    free, total = library.memory_info()
    address = library.allocate(1 << 30, uncached=True)
    assert library.memory_info() == (free - (1 << 30), total)
    library.free(address)
    assert library.memory_info() == (free, total)


def test_rocm_path_is_searched(hip_library_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ROCm's packages do not tell the dynamic linker where they are."""
    monkeypatch.delenv("PAITON_HIP_LIBRARY", raising=False)
    monkeypatch.setenv("ROCM_PATH", str(tmp_path))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libamdhip64.so.6").symlink_to(hip_library_path)
    assert HipLibrary().path == f"{tmp_path}/lib/libamdhip64.so.6"


def test_visibility_is_narrowed(make_hip: MakeHip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices are chosen among those that the user left visible."""
    make_hip(*[MI300X] * 8)
    library = HipLibrary()
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "4,5,7")
    library.initialise([0, 2])
    assert os.environ["HIP_VISIBLE_DEVICES"] == "4,7"
    with pytest.raises(DeviceNotFoundError, match="HIP_VISIBLE_DEVICES=4,7"):
        library.initialise([2])


def test_an_image_outlives_its_caller(session: Session) -> None:
    """A driver may go on reading the bytes that a module was loaded from, so the library keeps them."""
    kernel, _ = compile_embed(embed_case())
    session.standin.code.register(kernel.code, kernel.assembly)
    modules, others = [], []
    for _ in range(8):
        modules.append(session.library.load_module("embed", bytes(bytearray(kernel.code))))
        others.append(b"\xff" * len(kernel.code))  # takes the place of bytes that nobody kept
        session.stack.callback(session.library.unload_module, modules[-1])
    assert all(session.library.function(module, kernel.symbol) for module in modules)


def test_peers(make_hip: MakeHip) -> None:
    case = embed_case()
    with opened(make_hip(MI300X, MI300X)) as session:
        library = session.library
        assert library.can_access_peer(0, 1)
        assert not library.can_access_peer(0, 0)
        library.enable_peer_access(1)
        library.enable_peer_access(1)
        library.set_device(1)
        there = session.upload(case.arrays["out"])
        library.set_device(0)
        kernel, grid = compile_embed(case)
        addresses = {name: session.upload(array) for name, array in case.arrays.items()} | {"out": there}
        launch = KernelLaunch(session.load(kernel), grid, kernel.threads, 0, pack(kernel, addresses))
        library.launch(launch, session.stream)
        check_outputs(case, {"out": session.download(there, case.arrays["out"])})


def test_the_device_is_the_threads(make_hip: MakeHip) -> None:
    with opened(make_hip(MI300X, MI355X)) as session:
        session.library.set_device(1)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(session.library.memory_info()[1]))
        thread.start()
        thread.join()
        assert seen == [192 * GIB]
        assert session.library.memory_info()[1] == 288 * GIB
