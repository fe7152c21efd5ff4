"""The runtime's CUDA library through the stand-in libcuda: no device runs the code, everything else happens."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from paiton_artifacts.errors import CodeObjectError, DeviceNotFoundError, DriverError
from paiton_kernels.gpu.compile import CompiledKernel, compile_kernel
from paiton_kernels.gpu.devices import TARGETS
from paiton_kernels.gpu.embed import EMBED
from paiton_kernels.gpu.spec import Config
from paiton_runtime.drivers.cuda import CudaLibrary
from paiton_runtime.drivers.device_launch import Arguments, HostCopy, KernelLaunch
from paiton_runtime.drivers.device_library import open_library
from tests.emulated.conftest import MakeCuda
from tests.emulated.standin.cuda import H200, CudaStandIn


def compile_embed(target: str) -> CompiledKernel:
    variant = EMBED.variant(Config.of(4, 1, BLOCK=1024), HIDDEN=576, ROW_STRIDE=576)
    return compile_kernel(variant, TARGETS[target])


@contextmanager
def opened(make_cuda: MakeCuda, *models: object) -> Iterator[tuple[CudaStandIn, CudaLibrary, ExitStack, int]]:
    """One device in use, and a stream of it."""
    standin = make_cuda(*models)
    library = CudaLibrary()
    library.initialise()
    with ExitStack() as stack:
        stack.callback(library.close)
        library.set_device(0)
        stream = library.create_stream()
        stack.callback(library.destroy_stream, stream)
        yield standin, library, stack, stream


def test_properties(make_cuda: MakeCuda) -> None:
    make_cuda()
    library = open_library("cuda")
    library.initialise()
    assert library.device_count() == 1
    found = library.device(0)
    assert (found.name, found.target, found.memory_bytes) == ("NVIDIA H200", "cuda:sm_90", H200.memory_bytes)
    assert (found.compute_units, found.warp_size, found.shared_bytes, found.l2_bytes) == (132, 32, 227 << 10, 50 << 20)
    assert library.version() == "CUDA 13.1"


def test_kernels_load_with_their_module(make_cuda: MakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_MODULE_LOADING", raising=False)
    make_cuda()
    CudaLibrary().initialise()
    assert os.environ["CUDA_MODULE_LOADING"] == "EAGER"


def test_memory_copies_and_events(make_cuda: MakeCuda) -> None:
    with opened(make_cuda) as (_, library, stack, stream):
        address = library.allocate(64, uncached=True)
        stack.callback(library.free, address)
        copy = library.allocate(64)
        stack.callback(library.free, copy)
        pinned = library.allocate_pinned(64)
        stack.callback(library.free_pinned, pinned)
        events = [library.create_event(timing=True) for _ in range(2)]
        for event in events:
            stack.callback(library.destroy_event, event)
        library.record_event(events[0], stream)
        library.fill(address, 9, 32, stream)
        ctypes.memset(pinned, 5, 32)
        library.copy_to_device(address + 32, pinned, 32, stream)
        library.copy_on_device(copy, address, 64, stream)
        library.copy_to_host(pinned, copy, 64, stream)
        library.record_event(events[1], stream)
        assert not library.event_done(events[1])
        library.wait_event(stream, events[1])
        library.synchronise()
        assert ctypes.string_at(pinned, 64) == bytes([9] * 32 + [5] * 32)
        assert library.elapsed_milliseconds(*events) >= 0
        assert library.memory_info()[1] == H200.memory_bytes


def test_launches_both_ways(make_cuda: MakeCuda) -> None:
    """Directly and as nodes of a graph, the device gets the same grid, shared memory and argument bytes."""
    kernel = compile_embed("cuda:sm_90")
    with opened(make_cuda) as (standin, library, stack, stream):
        module = library.load_module("embed", kernel.code)
        stack.callback(library.unload_module, module)
        function = library.function(module, kernel.symbol)
        library.allow_shared_bytes(function, 100 << 10)
        assert library.resident_blocks(function, kernel.threads, 100 << 10) == 2
        packed = bytes(range(kernel.args_bytes))
        launch = KernelLaunch(
            function, (3, 2, 1), kernel.threads, 100 << 10, Arguments(packed, [arg.offset for arg in kernel.args])
        )
        library.launch(launch, stream)
        pinned, address = library.allocate_pinned(16), library.allocate(16)
        stack.callback(library.free_pinned, pinned)
        stack.callback(library.free, address)
        graph = library.create_graph([HostCopy(address, pinned, 16), launch, launch])
        stack.callback(library.destroy_graph, graph)
        library.upload_graph(graph, stream)
        ctypes.memset(pinned, 3, 16)
        library.launch_graph(graph, stream)
        out = np.zeros(16, np.uint8)
        library.copy_to_host(out.ctypes.data, address, 16, stream)
        assert out.tolist() == [3] * 16
        assert len(standin.launches) == 3
        for recorded in standin.launches:
            assert (recorded.symbol, recorded.grid, recorded.shared_bytes) == (kernel.symbol, (3, 2, 1), 100 << 10)
            for arg in kernel.args:
                end = arg.offset + arg.size
                assert recorded.arguments[arg.offset : end] == packed[arg.offset : end]


def test_shared_memory_beyond_48_kib_must_be_allowed(make_cuda: MakeCuda) -> None:
    kernel = compile_embed("cuda:sm_90")
    with opened(make_cuda) as (_, library, stack, stream):
        module = library.load_module("embed", kernel.code)
        stack.callback(library.unload_module, module)
        function = library.function(module, kernel.symbol)
        arguments = Arguments(bytes(kernel.args_bytes), [arg.offset for arg in kernel.args])
        with pytest.raises(DriverError, match="CUDA_ERROR_INVALID_VALUE"):
            library.launch(KernelLaunch(function, (1, 1, 1), kernel.threads, 49 << 10, arguments), stream)
        with pytest.raises(
            DriverError, match=r"allowing a kernel 232449 bytes of shared memory \(cuFuncSetAttribute\)"
        ):
            library.allow_shared_bytes(function, (227 << 10) + 1)


def test_code_of_another_architecture(make_cuda: MakeCuda) -> None:
    kernel = compile_embed("cuda:sm_80")
    with (
        opened(make_cuda) as (_, library, _, _),
        pytest.raises(CodeObjectError, match=r"CUDA_ERROR_NO_BINARY_FOR_GPU \(209\)"),
    ):
        library.load_module("embed", kernel.code)


def test_peers(make_cuda: MakeCuda) -> None:
    with opened(make_cuda, H200, H200) as (standin, library, _, _):
        assert library.can_access_peer(0, 1)
        library.enable_peer_access(1)
        library.enable_peer_access(1)
        assert standin.machine.devices[0].peers == {1}
        assert standin.machine.devices[1].peers == set()


def test_a_thread_without_a_device(make_cuda: MakeCuda) -> None:
    make_cuda()
    library = CudaLibrary()
    library.initialise()
    with pytest.raises(DriverError, match=r"CUDA_ERROR_INVALID_CONTEXT \(201\)"):
        library.create_stream()


def test_absent_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAITON_CUDA_LIBRARY", raising=False)
    monkeypatch.setattr(CudaLibrary, "sonames", ("libabsent-cuda.so.1",))
    with pytest.raises(DeviceNotFoundError, match=r"cuda driver library does not load: libabsent-cuda") as caught:
        CudaLibrary()
    assert caught.value.hint.startswith("install an NVIDIA driver")
    assert caught.value.exit_code == 7


def test_visibility_starts_with_the_machines_devices(make_cuda: MakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cuda()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    CudaLibrary().initialise([3])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
