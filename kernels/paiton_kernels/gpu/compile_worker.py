"""``python -m paiton_kernels.gpu.compile_worker FOLDER SCRATCH``: compiles jobs from stdin into the cache.

A job is a line of JSON; the answer is a line of JSON on stdout, `{"error": ""}` when the cache has the entry. The
worker ends when stdin does, hence also when the process that started it dies.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from paiton_artifacts.errors import PaitonError
from paiton_kernels.gpu import compile_cache
from paiton_kernels.gpu.compile_job import CompileJob, run


def request_line(job: CompileJob, key: str) -> bytes:
    """Returns the line that asks a worker for a job."""
    return json.dumps({"key": key, "job": dataclasses.asdict(job)}).encode() + b"\n"


def _job(fields: dict[str, Any]) -> CompileJob:
    """Returns a job from what JSON made of it: tuples became lists."""
    pairs = {name: tuple(tuple(pair) for pair in fields[name]) for name in ("signature", "constants", "options")}
    return CompileJob(**{**fields, **pairs, "divisible": tuple(fields["divisible"])})


def _answer(line: bytes, folder: Path, scratch: Path) -> str:
    request = json.loads(line)
    job = _job(request["job"])
    try:
        function = job.resolve()
        if job.key(function) != request["key"]:
            return f"sources of kernel {job.symbol} changed while it was being compiled"
        compile_cache.store(folder, request["key"], run(job, function, scratch), scratch)
    except PaitonError as error:
        return error.message
    except Exception as error:  # noqa: BLE001 - whatever it is, the builder reports it and stops
        return f"compiling kernel {job.symbol} for {job.target} failed: {error!r}"
    return ""


def main() -> None:
    """Serves until stdin ends."""
    folder, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever the compiler prints must not look like an answer
    for line in sys.stdin.buffer:
        answers.write(json.dumps({"error": _answer(line, folder, scratch)}).encode() + b"\n")


if __name__ == "__main__":
    main()
