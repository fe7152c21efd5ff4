"""The cache of compiled kernels that these tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `cache_dir`, filled as the tests go."""
    return tmp_path_factory.mktemp("gpu-kernels")
