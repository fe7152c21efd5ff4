"""Boot: from posix_spawn to the first token on stdout, golden check on, warm page cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import parser, save, smollm2_bundle, summary

PROMPT, PROMPT_TOKENS = "Why?", 32
"""SmolLM2's chat template adds a system message."""


def first_token(command: list[str]) -> float:
    """Returns seconds from posix_spawn to the first byte on the child's stdout."""
    reader, writer = os.pipe()
    devnull = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, devnull, 2), (os.POSIX_SPAWN_CLOSE, reader)]
    start = time.perf_counter()
    child = os.posix_spawn(command[0], command, environment(), file_actions=actions)
    os.close(writer)
    got = os.read(reader, 1)
    seconds = time.perf_counter() - start
    while os.read(reader, 1 << 16):
        pass
    os.close(reader)
    os.close(devnull)
    _, status = os.waitpid(child, 0)
    if not got or status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return seconds


def environment() -> dict[str, str]:
    """Returns this process's environment with byte code allowed: pip compiles what it installs, a checkout may not."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run_command(bundle: Path, *flags: str) -> list[str]:
    """Returns the command line that answers the prompt."""
    script = Path(sys.executable).with_name("paiton-run")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "paiton_runtime.cli"]
    return [*program, "generate", str(bundle), PROMPT, "--chat", *flags]


def main() -> None:
    """Measures and reports."""
    args = parser(__doc__ or "")
    args.add_argument("--runs", type=int, default=11)
    options = args.parse_args()
    bundle = smollm2_bundle()
    shown = subprocess.run(run_command(bundle, "--json", "--max-tokens", "4"), check=True, capture_output=True)
    detail: dict[str, Any] = json.loads(shown.stdout)
    if detail["prompt_tokens"] != PROMPT_TOKENS:
        raise SystemExit(f"the prompt has {detail['prompt_tokens']} tokens, not {PROMPT_TOKENS}")
    samples = [first_token(run_command(bundle, "--max-tokens", "4")) for _ in range(options.runs)]
    save(
        "startup",
        {
            "prompt_tokens": detail["prompt_tokens"],
            "seconds_to_first_token": summary(samples),
            "ledger": detail["ledger"],
        },
    )


if __name__ == "__main__":
    main()
