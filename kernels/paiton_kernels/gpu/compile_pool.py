"""Worker processes that fill the cache of compiled kernels, each kernel with a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from paiton_artifacts.errors import CompilerError
from paiton_artifacts.temporary import LockedDirectory, remove_stale
from paiton_kernels.gpu.compile_job import PINNED_ENVIRONMENT, CompileJob
from paiton_kernels.gpu.compile_worker import request_line

_INTERPRETER_VARIABLES = ("LD_LIBRARY_PATH", "PYTHONHOME")
"""What an interpreter may need to start at all; nothing that the compiler reads."""

_LOG_LINES = 4


class _Worker:
    """A process that compiles one kernel after the other.

    Args:
        folder: of the cache.
        scratch: to create; for everything else that the process writes.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        scratch.mkdir()
        self._log = scratch / "log"
        environment = {name: os.environ[name] for name in _INTERPRETER_VARIABLES if name in os.environ}
        environment |= PINNED_ENVIRONMENT | {
            "PYTHONPATH": os.pathsep.join(str(Path(path or ".").resolve()) for path in sys.path),
            "PYTHONHASHSEED": "0",
            **dict.fromkeys(("HOME", "TMPDIR"), str(scratch)),
        }
        command = [sys.executable, "-P", "-s", "-m", "paiton_kernels.gpu.compile_worker", str(folder), str(scratch)]
        with self._log.open("wb") as log:
            # A session of its own: killing its group also ends the assembler, and Ctrl-C reaches us only.
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=scratch,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._requests = cast("IO[bytes]", self._process.stdin)
        self.answers = cast("IO[bytes]", self._process.stdout)

    def give(self, key: str, job: CompileJob) -> None:
        """Starts on a job."""
        with contextlib.suppress(BrokenPipeError):  # it died: reading its answer finds out, and says why
            self._requests.write(request_line(job, key))
            self._requests.flush()

    def finish(self, job: CompileJob) -> CompilerError | None:
        """Takes the answer to a job: what went wrong.

        Raises:
            CompilerError: the process died.
        """
        answer = self.answers.readline()
        if answer:
            message = json.loads(answer)["error"]
            return CompilerError(message + self._last_words()) if message else None
        status = self._process.wait()
        raise CompilerError(
            f"the compiler died with status {status} on kernel {job.symbol} for {job.target}{self._last_words()}"
        )

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line.strip() for line in lines if "error" in line.lower()][-_LOG_LINES:]
        return f" ({'; '.join(told)})" if told else ""

    def kill(self) -> None:
        """Ends the process and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._requests, self.answers):
            with contextlib.suppress(BrokenPipeError):  # a request that nobody reads any more
                pipe.close()


def compile_into(
    folder: Path,
    jobs: Mapping[str, CompileJob],
    processes: int,
    timeout: float,
    advance: Callable[[int], object],
    failures: dict[str, CompilerError] | None,
) -> None:
    """Compiles jobs into the cache.

    Args:
        folder: of the cache; exists.
        jobs: by key.
        processes: how many workers at most.
        timeout: seconds for one kernel, the start of the interpreter included.
        advance: called with 1 for each kernel done.
        failures: receives the errors of kernels that do not compile, by symbol; None raises the first.

    Raises:
        CompilerError: a kernel does not compile, not in time, or not without killing the compiler. No worker is left
            running, whatever is raised.
    """
    remove_stale(folder / "compile")  # what killed builds left
    temporary = LockedDirectory(folder / "compile")
    workers: list[_Worker] = []
    try:
        while len(workers) < min(processes, len(jobs)):
            workers.append(_Worker(folder.resolve(), temporary.path.resolve() / f"worker{len(workers)}"))
        for symbol, error in _served(workers, jobs, timeout):
            if error is not None:
                if failures is None:
                    raise error
                failures[symbol] = error
            advance(1)
    finally:
        for worker in workers:
            worker.kill()
        temporary.remove()


def _served(
    workers: list[_Worker], jobs: Mapping[str, CompileJob], timeout: float
) -> Iterator[tuple[str, CompilerError | None]]:
    """Yields symbols as their jobs are done, with what went wrong."""
    waiting = iter(jobs.items())
    busy: dict[_Worker, tuple[CompileJob, float]] = {}  # the job, and when it must be done
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.answers, selectors.EVENT_READ, worker)
        idle = list(workers)
        while True:
            for worker in idle:
                if following := next(waiting, None):
                    key, job = following
                    worker.give(key, job)
                    busy[worker] = job, time.monotonic() + timeout
                else:
                    selector.unregister(worker.answers)
            if not busy:
                return
            job, deadline = min(busy.values(), key=lambda item: item[1])
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise CompilerError(
                    f"compiling kernel {job.symbol} for {job.target} took more than {timeout:g} s",
                    hint="free CPU time on this machine and try again",
                )
            idle = [item.data for item, _ in ready]
            for worker in idle:
                job, _ = busy.pop(worker)
                yield job.symbol, worker.finish(job)
