"""Builds of all architectures that share one code object: compiling it for each would take most of the tests' time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paiton_aot import build as build_module
from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.lower import lower
from paiton_aot.options import BuildOptions
from paiton_kernels.cpu.compile import compile_level
from paiton_kernels.spec import Variant
from tests.conftest import CHECKPOINT_MAKER, Cache
from tests.coverage_cases import ARCHITECTURE_CASES, EXPERT_CASES, FP8_FORMATS, OPTIONS, Case

MAKER = Path(__file__).parents[2] / "architectures.py"
FP8_MAKER = Path(__file__).parents[2] / "fp8_checkpoints.py"
LEVEL = "generic"
"""What whole models run on here; every kernel is tested on every level by itself."""


def options_of(case: Case) -> BuildOptions:
    """Returns the options of a case's build: few buckets, of which 16 tokens take the prefill forms of kernels."""
    chosen: dict[str, Any] = dict(OPTIONS.get(case.format, {}))
    cache = Path(os.environ["PAITON_CACHE"])
    return BuildOptions(tp=case.tp, max_num_batched_tokens=16, max_num_seqs=16, cache_dir=cache, **chosen)


@pytest.fixture(scope="module")
def checkpoint_of(cache: Cache) -> Callable[[str], Path]:
    """A function that returns the tiny model of a name, made once."""

    def make(name: str) -> Path:
        def fill(folder: Path) -> None:
            from tests.architectures import make  # noqa: PLC0415  (torch, where it is not made yet)

            make(name, folder)

        return cache.folder(f"architecture-{name}", fill, (MAKER, CHECKPOINT_MAKER))

    return make


@pytest.fixture(scope="module")
def source_of(cache: Cache, checkpoint_of: Callable[[str], Path]) -> Callable[[Case], Path]:
    """A function that returns what a case is built from: the tiny model, in the case's FP8 format if it has one."""
    names = {label: name for name, label in FP8_FORMATS.items()}

    def source(case: Case) -> Path:
        plain = checkpoint_of(case.model)
        if case.format not in names:
            return plain

        def fill(folder: Path) -> None:
            from tests.fp8_checkpoints import quantize  # noqa: PLC0415  (torch, where it is not made yet)

            shutil.copytree(plain, folder, dirs_exist_ok=True)
            quantize(folder, names[case.format])

        return cache.folder(
            f"architecture-{case.model}-{names[case.format]}", fill, (MAKER, CHECKPOINT_MAKER, FP8_MAKER)
        )

    return source


@pytest.fixture(scope="module")
def build(source_of: Callable[[Case], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A function that returns the bundle of a case, built once, with code for one level."""
    variants: dict[str, Variant] = {}
    for case in (*ARCHITECTURE_CASES, *EXPERT_CASES):
        with open_checkpoint(source_of(case)) as checkpoint:
            plans = lower(checkpoint, options_of(case)).cpu
        variants |= {variant.symbol: variant for variant in plans.variants}
    everything = list(variants.values())
    root = tmp_path_factory.mktemp("bundles")

    def built(case: Case) -> Path:
        path = root / case.name
        if not path.exists():
            build_module.build(source_of(case), path, options_of(case))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "LEVELS", (LEVEL,))
        patch.setattr(build_module, "compile_level", lambda level, _, folder: compile_level(level, everything, folder))
        yield built
