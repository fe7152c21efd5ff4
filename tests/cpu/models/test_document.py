"""docs/add-a-model.md shows a file that exists, and says enough in little space."""

from __future__ import annotations

import re
from pathlib import Path

from paiton_aot.models import ARCHITECTURES
from tests.coverage_cases import MODELS

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "add-a-model.md"


def test_the_example_is_a_whole_file_that_is_tested() -> None:
    """The file itself is built and compared in test_architectures."""
    text = DOCUMENT.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert code == (ROOT / "paiton_aot" / "models" / "gemma.py").read_text(encoding="utf-8")
    assert "gemma" in MODELS
    assert len(text.splitlines()) < 100


def test_every_architecture_is_a_file_of_its_own_and_tested() -> None:
    from tests.architectures import MODELS as MADE  # noqa: PLC0415  (imports transformers)

    files = {architecture.build.__globals__["__name__"] for architecture in ARCHITECTURES.values()}
    assert len({architecture.configure.__globals__["__name__"] for architecture in ARCHITECTURES.values()}) == len(
        ARCHITECTURES
    )
    assert all(name.startswith("paiton_aot.models.") for name in files)
    tested = {f"{kind.__name__.removesuffix('Config').removesuffix('Text')}ForCausalLM" for kind, _ in MADE.values()}
    assert tested == set(ARCHITECTURES)
    assert set(MADE) == set(MODELS)
