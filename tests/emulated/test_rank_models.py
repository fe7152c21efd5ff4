"""Tiny models of every architecture shared by emulated MI300X, against transformers on the same dequantised weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from paiton_runtime.boot import BootOptions, boot
from tests import architectures
from tests.conftest import CHECKPOINT_MAKER, Cache
from tests.coverage_cases import EMULATED_RANK_CASES, Case
from tests.cpu.models.test_architectures import IDS
from tests.emulated.conftest import MakeHip
from tests.emulated.standin.hip import MI300X
from tests.emulated.test_boot import register
from tests.emulated.test_models import check
from tests.model_reference import model_reference
from tests.reference import reference_logits
from tests.teacher_forced import logits_of

MAKER = Path(architectures.__file__ or "")
FLAGS = ("--candidates", "1", "--max-num-batched-tokens", "16")


@pytest.mark.parametrize("case", EMULATED_RANK_CASES, ids=lambda case: case.name)
def test_ranks_share_an_architecture(
    case: Case, build_bundle: Callable[..., Path], cache: Cache, make_hip: MakeHip
) -> None:
    def save(folder: Path) -> None:
        architectures.make(case.model, folder)

    checkpoint = cache.folder(f"architecture-{case.model}", save, (MAKER, CHECKPOINT_MAKER))  # as the cpu tests ask
    name = case.name.replace(":", "-")
    bundle = build_bundle(name, checkpoint, "--target", case.target, *FLAGS, "--tp", f"{case.tp}")
    whole = build_bundle(f"{name}-whole", checkpoint, "--max-num-batched-tokens", "16")
    expected = reference_logits(model_reference(checkpoint, whole), IDS)
    register(make_hip(*[MI300X] * case.tp))
    with boot(bundle, BootOptions(executor="launch", kv_tokens=96, golden_check=False)) as model:
        assert f"{case.tp} rank(s)" in model.ledger.rows["device"].note
        check(logits_of(model, IDS), expected, "bf16")
