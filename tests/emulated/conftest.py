"""Stand-ins for driver libraries, built once, as fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CHECKPOINT_MAKER, Cache, make_checkpoints
from tests.emulated.standin.cuda import H200, CudaStandIn
from tests.emulated.standin.headers import CUDA, HIP, Headers
from tests.emulated.standin.hip import MI300X, HipStandIn
from tests.emulated.standin.library import build_library
from tests.emulated.standin.objects import DeviceModel

STANDIN = Path(__file__).parent / "standin"

MakeCuda = Callable[..., CudaStandIn]
"""`make(*models)` starts a machine with these devices, by default one H200."""

MakeHip = Callable[..., HipStandIn]
"""`make(*models)` starts a machine with these devices, by default one MI300X."""


def library_of(headers: Headers, cache: Cache) -> Path:
    """Returns the stand-in library of a vendor, compiled when its generator or a header has changed."""
    sources = (STANDIN / "headers.py", STANDIN / "library.py")
    name = f"standin-{headers.prefix}"
    folder = cache.folder(
        name, lambda made: build_library(headers, made), sources, version("triton"), version("ziglang")
    )
    return folder / headers.soname


@pytest.fixture(scope="session")
def gpu_checkpoint(cache: Cache) -> Path:
    """A small Llama with random weights and heads of 64, the smallest that attention on GPUs takes."""

    def make(folder: Path) -> None:
        make_checkpoints().tiny_llama(folder, head_dim=64)

    return cache.folder("tiny-gpu-hf", make, (CHECKPOINT_MAKER,))


@pytest.fixture(scope="session")
def gpu_static_checkpoint(cache: Cache) -> Path:
    """The same, as a static FP8 checkpoint."""

    def make(folder: Path) -> None:
        make_checkpoints().tiny_llama(folder, head_dim=64, fp8_static=True)

    return cache.folder("tiny-gpu-static-hf", make, (CHECKPOINT_MAKER,))


@pytest.fixture(scope="session")
def hip_library_path(cache: Cache) -> Path:
    """The stand-in libamdhip64."""
    return library_of(HIP, cache)


@pytest.fixture(scope="session")
def cuda_library_path(cache: Cache) -> Path:
    """The stand-in libcuda."""
    return library_of(CUDA, cache)


@pytest.fixture
def make_hip(hip_library_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeHip]:
    """Starts machines behind the library that the runtime then finds; what a test leaves allocated is an error."""
    monkeypatch.setenv("PAITON_HIP_LIBRARY", str(hip_library_path))
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")  # what a boot narrows it to does not outlive the test
    yield from machines(lambda models: HipStandIn(hip_library_path, models or (MI300X,)))


@pytest.fixture
def make_cuda(cuda_library_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeCuda]:
    """As `make_hip`, for the stand-in libcuda."""
    monkeypatch.setenv("PAITON_CUDA_LIBRARY", str(cuda_library_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    yield from machines(lambda models: CudaStandIn(cuda_library_path, models or (H200,)))


def machines(create: Callable[[tuple[DeviceModel, ...]], Any]) -> Iterator[Callable[..., Any]]:
    """Yields a function that starts machines; checks at the end that nothing was left on them."""
    made: list[Any] = []
    with ExitStack() as running:

        def make(*models: DeviceModel) -> Any:
            made.append(running.enter_context(create(models).serving()))
            return made[-1]

        yield make
    leaks = [leak for standin in made for leak in standin.machine.leaks()]
    assert not leaks, f"left behind: {', '.join(leaks)}"
