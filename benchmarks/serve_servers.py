"""The servers that the serving benchmarks drive: ours, llama.cpp's and vLLM's CPU build, each with so many threads."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.common import our_environment, our_program, smollm2_hf
from benchmarks.peers import LLAMA, VLLM, clean_environment, llama_model, llama_program, version, vllm_program
from benchmarks.serve_client import Client, ClientError, Reply, parse_completion

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


def paiton(bundle: Path, threads: int, *flags: str) -> Server:
    """Returns our server, with more of its flags."""
    common = ("--served-model-name", MODEL, "--threads", str(threads))

    def command(port: int) -> list[str]:
        return [*our_program(), "serve", str(bundle), *address(port), *common, *flags]

    return Server("paiton", "FP8 weights", command)


def llama(directory: Path, threads: int) -> Server:
    """Returns llama.cpp's server with weights of 8 bits, as ours have; for the start alone it gets a single slot.

    Raises:
        PeerError: it is not installed.
    """
    program, model = llama_program(directory, "llama-server"), llama_model(directory)
    what = f"{LLAMA} {version(directory, 'llama', LLAMA)}, Q8_0"

    def server(slots: int, boot_like: Server | None) -> Server:
        def command(port: int) -> list[str]:
            flags = ["-np", str(slots), "-c", str(slots * CONTEXT), "-t", str(threads), "--no-ui", "--log-disable"]
            return [str(program), "-m", str(model), *address(port), *flags]

        return Server("llama.cpp", what, command, boot_like=boot_like)

    return server(32, server(1, None))


def vllm(directory: Path, threads: int, *flags: str) -> Server:
    """Returns vLLM's CPU build in bf16, the checkpoint dequantised, with more of its flags.

    Raises:
        PeerError: it is not installed.
    """
    program, model = vllm_program(directory), smollm2_hf()

    def command(port: int) -> list[str]:
        common = ["--dtype", "bfloat16", "--max-model-len", str(CONTEXT), "--max-num-seqs", "32"]
        return [str(program), "serve", str(model), *address(port), "--served-model-name", MODEL, *common, *flags]

    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    what = f"{VLLM} {version(directory, 'vllm', VLLM)}, bf16"
    return Server("vllm", what, command, environment, boot_timeout=600.0)


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
        environment = our_environment() if self.server.name == "paiton" else clean_environment()
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
