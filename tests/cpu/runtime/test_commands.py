"""The commands as processes: what they print, how they end, and that they leave nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from paiton_runtime.ledger import STAGES

WATCHED = """
import os, sys

STARTING = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system", "pty.spawn")
CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
seen = []

def hook(event, arguments):
    if event in STARTING or event in CHANGING:
        seen.append(f"{event} {arguments}")
    elif event == "open":
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            seen.append(f"open for writing: {path}")

sys.addaudithook(hook)
from paiton_runtime.cli import main
code = main(sys.argv[1:])
for line in seen:
    print(f"SEEN {line}", file=sys.stderr)
sys.exit(code)
"""


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **extra}


def run(*words: str | Path, stdin: str = "", program: str | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-m", "paiton_runtime.cli"] if program is None else ["-c", program]
    command = [sys.executable, *start, *map(str, words)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, env=environment(), timeout=120
    )


def start(*words: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "paiton_runtime.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())


def tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Returns size, modification time and digest of every file."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_size,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def result(*words: str | Path, stdin: str = "") -> dict[str, Any]:
    done = run("generate", *words, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def test_generate_streams_text_and_shows_the_ledger(smollm2_bundle: Path) -> None:
    done = run("generate", smollm2_bundle, "The capital of France is", "--max-tokens", "8")
    assert done.returncode == 0
    assert "Paris" in done.stdout
    ledger = [line[:18].strip() for line in done.stderr.splitlines()]
    assert [line for line in ledger if line in STAGES] == list(STAGES)
    assert "8 generated at" in done.stderr
    value = result(smollm2_bundle, "The capital of France is", "--max-tokens", "8")
    assert value["text"] + "\n" == done.stdout
    assert len(value["token_ids"]) == 8
    assert value["prompt_tokens"] == 5
    assert value["prefill_tokens_per_second"] > 0
    assert value["decode_tokens_per_second"] > 0
    rows = {row["stage"]: row for row in value["ledger"]}
    assert list(rows) == list(STAGES)
    assert 0 < rows["open"]["start"] < rows["total"]["end"] < rows["first token"]["end"] < 60


def test_a_chat_prompt_is_answered(smollm2_bundle: Path) -> None:
    value = result(smollm2_bundle, "-", "--chat", "--max-tokens", "32", stdin="What is 2 + 2? Answer with the sum.")
    assert "4" in value["text"]
    assert value["prompt_tokens"] > 30


def test_a_boot_starts_no_process_and_writes_no_file(smollm2_bundle: Path, tmp_path: Path) -> None:
    """Audit events of everything that opens for writing, changes the file system or starts a process."""
    before = tree(smollm2_bundle)
    done = run("generate", smollm2_bundle, "Hi", "--chat", "--max-tokens", "2", program=WATCHED)
    assert done.returncode == 0, done.stderr
    assert "SEEN" not in done.stderr
    assert tree(smollm2_bundle) == before
    control = run(program=f"{WATCHED.partition('from paiton')[0]}\nopen({str(tmp_path / 'x')!r}, 'w')\nprint(seen)")
    assert "open for writing" in control.stdout


def test_prompts_come_from_arguments_files_and_stdin(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("abc abc")
    options = (tiny_bundle, "--max-tokens", "6", "--ignore-eos")
    values = [
        result(*options, "abc abc"),
        result(*options, "--prompt-file", file),
        result(*options, "-", stdin="abc abc"),
    ]
    assert values[0]["token_ids"] == values[1]["token_ids"] == values[2]["token_ids"]
    assert len(values[0]["token_ids"]) == 6


def test_a_seed_repeats_a_draw(tiny_bundle: Path) -> None:
    options = (tiny_bundle, "abc", "--max-tokens", "12", "--temperature", "3", "--ignore-eos")
    first = result(*options)
    assert result(*options, "--seed", str(first["seed"]))["token_ids"] == first["token_ids"]
    assert result(*options)["token_ids"] != first["token_ids"]


def test_a_prompt_beyond_the_context(tiny_bundle: Path) -> None:
    done = run("generate", tiny_bundle, "abc " * 300)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("paiton-run: error: a prompt of ")
    assert "the context of 256 tokens; hint: shorten the prompt" in done.stderr
    assert done.stderr.count("\n") == 1


def test_chat_works_when_piped(smollm2_bundle: Path) -> None:
    messages = "My name is Ada.\n\n/reset\nSay hello.\n/exit\nnever read\n"
    done = run("chat", smollm2_bundle, "--max-tokens", "4", stdin=messages)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2
    assert "/reset forgets" in done.stderr


def test_inspect_prints_what_the_manifest_says(tiny_bundle: Path) -> None:
    text = run("inspect", tiny_bundle, "--tensors", "--plan", "forward-t1-r1").stdout
    assert "2 layers, hidden 128" in text
    assert "cpu generic" in text
    assert "KV block" in text
    assert "weights layers.0.qkv_proj + i * " in text
    value = json.loads(run("inspect", tiny_bundle, "--json", "--tensors", "--plan", "forward-t1-r1").stdout)
    assert value["model"]["hidden_size"] == 128
    assert sum(1 for tensor in value["tensors"] if tensor["name"] in text) == len(value["tensors"]) > 5
    assert {launch["repeat"] for launch in value["plan"]} == {1, 2}
    assert "tensors" not in json.loads(run("inspect", tiny_bundle, "--json").stdout)
    done = run("inspect", tiny_bundle, "--plan", "forward-t3-r1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the bundle has: forward-t1-r1" in done.stderr


def test_verify_finds_what_is_damaged(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run("verify", tiny_bundle)
    assert done.returncode == 0, done.stderr
    assert "golden 0 on cpu generic" in done.stdout
    assert "FAILED" not in done.stdout
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    blob = copy / "blobs" / "rank-0.bin"
    data = bytearray(blob.read_bytes())
    data[4097] ^= 1
    blob.write_bytes(data)
    done = run("verify", copy, "--json")
    assert done.returncode == 4
    assert done.stderr.startswith("paiton-run: error: ")
    assert "rank-0.bin" in done.stderr
    value = json.loads(done.stdout)
    assert not value["ok"]
    assert [entry["name"] for entry in value["files"] if not entry["ok"]] == ["blobs/rank-0.bin"]
    assert value["goldens"] == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_quietly(smollm2_bundle: Path, number: signal.Signals, code: int) -> None:
    process = start("generate", smollm2_bundle, "Once upon a time", "--max-tokens", "8000", "--ignore-eos")
    assert process.stdout is not None
    assert process.stdout.read(1)  # it has begun to generate
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err == b""


def test_a_reader_that_goes_ends_it_quietly(smollm2_bundle: Path) -> None:
    process = start("generate", smollm2_bundle, "Once upon a time", "--max-tokens", "8000", "--ignore-eos")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1)
    process.stdout.close()
    started = time.monotonic()
    assert process.wait(timeout=30) == 141
    assert time.monotonic() - started < 20
    assert process.stderr.read() == b""
    process.stderr.close()
