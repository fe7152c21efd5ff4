"""Writes docs/gpu-kernels.md: what the kernels of well-known models take on every GPU target, from their code alone."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.common import ROOT, WORK
from paiton_kernels.gpu.compile import COMPILER, CompiledKernel, compile_all
from paiton_kernels.gpu.compile_job import source_digest
from paiton_kernels.gpu.devices import DEFAULT_PROFILES, PROFILES, TARGETS, Profile, Target
from paiton_kernels.gpu.families import FAMILIES
from paiton_kernels.gpu.ranking import VERSION, hottest_loop, isa_of, predict
from paiton_kernels.gpu.spec import GpuVariant, Step
from paiton_kernels.gpu.tuning import Request, bucket_of, choose
from paiton_kernels.gpu.tuning_shapes import kernel_requests, models_for
from paiton_kernels.gpu.tuning_table import RECORDED

DOCUMENT = ROOT / "docs" / "gpu-kernels.md"
STEPS = (Step(1, 1), Step(1024, 16))
MARK = "<!-- from sources with digest "

_HEAD = """# GPU kernels: what their code objects say

One request decoding with a context of 1,024 tokens (bucket of 1 token) and a prompt (1,024 tokens of 16 requests), for
the models in `paiton_kernels/gpu/tuning_shapes.py` and the usual profile of each target. Nothing here was measured on a
device: registers, shared memory and spills are those that the code objects state, occupancy follows from them
(`gpu/resources.py`), instructions are counted in the assembly of the hottest loop (`gpu/isa.py`), and times are the
static ranking's predictions (`gpu/ranking.py`), good for comparing configurations and no more.

- *registers*: of a thread; *LDS*: shared memory of a block, KiB; *blocks*: that a compute unit holds, and what limits
  them.
- *loop*: instructions of one pass through the hottest loop, of them matrix instructions, and the KiB that a warp loads.
- *bound*: what is predicted to take longest, and the predicted microseconds of a launch.

Regenerate with `python -m benchmarks gpu_code` after a change of a kernel.
"""


def sources_digest() -> str:
    """Returns a digest of the kernels' sources, the compiler's version and what else the document follows from."""
    kernels = [(family, source_digest(spec.function)) for family, spec in sorted(FAMILIES.items())]
    tables = [(path.name, path.read_bytes()) for path in sorted(RECORDED.glob("*.json"))]
    return hashlib.sha256(repr((COMPILER, VERSION, kernels, tables)).encode()).hexdigest()


def main() -> None:
    """Compiles the kernels and writes the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu_code", description=__doc__)
    parser.add_argument("--candidates", type=int, default=4, metavar="N", help="configurations ranked (default: 4)")
    parser.add_argument("--cache-dir", type=Path, default=WORK / "kernels", metavar="DIR", help="compiled kernels")
    args = parser.parse_args()
    lines = [f"{MARK}{sources_digest()} -->", _HEAD]
    for target in TARGETS.values():
        lines += _section(target, PROFILES[DEFAULT_PROFILES[target.name]], args.cache_dir, args.candidates)
    DOCUMENT.write_text("\n".join(lines), encoding="utf-8")
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")


def _section(target: Target, profile: Profile, cache_dir: Path, candidates: int) -> Iterator[str]:
    """Yields the lines about a target: a table per step."""
    yield f"## {target.name} ({profile.name})\n"
    for step in STEPS:
        requests = dict.fromkeys(
            replace(request, step=bucket_of(request, profile)[1])
            for model in models_for(target)
            for request in kernel_requests(model, step)
        )
        choices = choose(list(requests), target, profile, cache_dir, candidates=candidates)
        variants = {request: request.variant(choice.config) for request, choice in choices.items()}
        kernels = compile_all(variants.values(), target, cache_dir)
        yield f"### {step.tokens} token{'s' if step.tokens > 1 else ''}\n"
        yield "| kernel | configuration | registers | LDS | blocks | loop | bound |"
        yield "|---|---|--:|--:|--:|--:|--:|"
        for request, variant in variants.items():
            yield _row(request, variant, kernels[variant.symbol], profile)
        yield ""


def _row(request: Request, variant: GpuVariant, kernel: CompiledKernel, profile: Profile) -> str:
    facts = isa_of(kernel)
    prediction = predict(variant, kernel, facts, request.step, profile)
    held, loop = prediction.occupancy, hottest_loop(facts)
    inside = "-"
    if loop is not None:
        inside = f"{loop.instructions}, {sum(loop.matrix.values())}, {loop.load_bytes / 1024:.1f}"
    named = f"{request.spec.family}_{request.shape}"
    cells = (
        named,
        variant.symbol.removeprefix(f"{named}_").replace("_", " "),
        str(kernel.registers),
        f"{kernel.shared_bytes / 1024:.0f}",
        f"{held.blocks} ({held.limit})",
        inside,
        f"{prediction.bound} {prediction.seconds * 1e6:.1f}",
    )
    return f"| {' | '.join(cells)} |"
