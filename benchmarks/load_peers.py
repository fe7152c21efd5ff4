"""Loaders of others beside ours: safetensors, fastsafetensors, runai-model-streamer, flashpack, on the same bytes.

Each is a process that loads again and again, once for each line that it is sent; it times itself, so that the pipe
between us costs it nothing. After every load the bytes in its memory are compared with the file's.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import numpy as np

from benchmarks.load_child import LOADERS, STRIDE
from benchmarks.peers import PeerError, clean_environment, python

CHILD = Path(__file__).with_name("load_child.py")
TENSOR_BYTES = 16 << 20


def write_safetensors(path: Path, size: int) -> None:
    """Writes random bytes as a safetensors file of BF16 tensors, `size` bytes (whole pages) in all."""
    sizes = [min(TENSOR_BYTES, size - start) for start in range(0, size, TENSOR_BYTES)]
    header = {
        f"tensor.{i}": {"dtype": "BF16", "shape": [n // 2], "data_offsets": [i * TENSOR_BYTES, i * TENSOR_BYTES + n]}
        for i, n in enumerate(sizes)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = os.urandom(TENSOR_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for n in sizes:
            file.write(block[:n])
        file.flush()
        os.fsync(file.fileno())


def checksum_of_file(path: Path, size: int) -> int:
    """Returns what `load_child.checksum` must find in memory: `size` bytes of tensors end the file."""
    words = np.memmap(path, np.uint8, "r", path.stat().st_size - size, (size,))
    return sum(int(words[start : start + 8].view(np.int64)[0]) for start in range(0, size, 8 * STRIDE)) % 2**64


class PeerLoader:
    """A loader of others in a process of its own: a context manager.

    Args:
        name: one of `load_child.LOADERS`.
        directory: of the peers' environments.
        path: a safetensors file.
        expected: the checksum of its tensors.

    Attributes:
        path: of the file that it reads, which is the file or its tensors in another format.
        destination: see `load_child.Loader`.
        version: of its package.

    Raises:
        PeerError: it cannot run here.
    """

    def __init__(self, name: str, directory: Path, path: Path, expected: int) -> None:
        self.name = name
        self._expected = expected
        self._source = path
        self.path = path
        command = [str(python(directory, "loaders")), str(CHILD), name, str(path)]
        pipe, environment = subprocess.PIPE, clean_environment()
        self._child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment, text=True
        )
        self._orders, self._answers = cast("IO[str]", self._child.stdin), cast("IO[str]", self._child.stdout)
        try:
            hello = self._answer()
        except PeerError:
            self.close()
            raise
        self.path, self.destination, self.version = Path(hello["path"]), hello["destination"], hello["version"]

    def load(self) -> float:
        """Loads once and returns the seconds.

        Raises:
            PeerError: it failed, or other bytes lie in its memory than in the file.
        """
        with suppress(BrokenPipeError):  # it ended: why is in its answer
            self._orders.write("load\n")
            self._orders.flush()
        answer = self._answer()
        if answer["checksum"] != self._expected:
            raise PeerError(f"{self.name} loaded other bytes than the file has")
        return float(answer["seconds"])

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"ended with {self._child.wait()}"}
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process, and removes the file that it wrote."""
        with suppress(BrokenPipeError):
            self._orders.close()
        self._answers.close()
        self._child.wait()
        if self.path != self._source:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start_loaders(directory: Path, path: Path, size: int) -> tuple[list[PeerLoader], dict[str, str]]:
    """Returns the loaders that run here, and why the others do not."""
    expected = checksum_of_file(path, size)
    running: list[PeerLoader] = []
    absent: dict[str, str] = {}
    for name in LOADERS:
        try:
            running.append(PeerLoader(name, directory, path, expected))
        except PeerError as error:
            absent[name] = str(error)
    return running, absent
