"""The GPU of this machine, and PyTorch on it; without them, tests skip and say what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.gpu.launcher import Gpu, NoGpuError, open_gpu


@pytest.fixture(scope="session")
def gpu() -> Iterator[Gpu]:
    """The first device."""
    try:
        opened = open_gpu(Path(os.environ["PAITON_CACHE"]))
    except NoGpuError as error:
        pytest.skip(f"no GPU: {error}")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def torch(gpu: Gpu) -> ModuleType:
    """PyTorch, if it was built for this machine's kind of GPU."""
    module: ModuleType = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip(f"PyTorch {module.__version__} has no support for {gpu.properties.name}")
    return module
