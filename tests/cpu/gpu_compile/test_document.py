"""docs/gpu-kernels.md is of these kernels."""

from __future__ import annotations

from benchmarks.gpu_code import DOCUMENT, MARK, sources_digest
from paiton_kernels.gpu.devices import TARGETS


def test_the_document_is_fresh() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    mark = text.partition("\n")[0]
    assert mark == f"{MARK}{sources_digest()} -->", "regenerate it with `python -m benchmarks gpu_code`"
    assert all(f"## {name} " in text for name in TARGETS)
