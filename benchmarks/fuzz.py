"""A coverage-guided fuzzer on what reads a manifest: no crash, no memory blow-up, nothing raised but our errors.

    pip install atheris
    python -m benchmarks fuzz --seconds 600

libFuzzer's mutations do not get past a SHA-256, a zstd frame and msgpack, so an input is one of four things, as its
first byte says: a whole file, the payload of a container with a fitting header, msgpack that is compressed for it, or
an OCI manifest. msgpack is mutated value by value half of the time.
"""

from __future__ import annotations

import argparse
import dis
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import msgpack
import zstandard

from paiton_artifacts import consistency, container, rules, validate
from paiton_artifacts.errors import PaitonError, UnsupportedVersionError, VerificationError
from paiton_artifacts.store.oci import artifact
from paiton_artifacts.trust import bounded_json
from tests.cpu.artifacts import tiny

MODULES = (container, rules, validate, consistency, artifact, bounded_json)
RSS_LIMIT_MB = 600
"""Of the whole fuzzer, corpus included; a manifest may take 16 MiB decompressed."""

SECONDS_EACH = 5
MAX_INPUT = 1 << 16
_CHILD = """
import atheris
with atheris.instrument_imports(include=["paiton_artifacts"]):
    import benchmarks.fuzz
benchmarks.fuzz.main()
"""
_EDGES = (0, 1, -1, 127, 255, 256, 1 << 16, 1 << 21, (1 << 31) - 1, 1 << 32, 1 << 48, (1 << 63) - 1, (1 << 64) - 1)
_SCALARS: tuple[object, ...] = (
    None,
    True,
    False,
    "",
    "x" * 300,
    "../x",
    b"",
    b"\xff" * 40,
    0.0,
    -1.0,
    1e308,
    float("nan"),
    (),
    {},
)


def read(data: bytes) -> None:
    """Reads an input as its first byte says.

    Raises:
        Exception: anything that is not the error of a reader; there is none, or that is a bug.
    """
    kind, rest = (data[0] % 4, data[1:]) if data else (0, b"")
    try:
        if kind == 3:
            artifact.read_artifact(rest, "fuzzed")
            return
        if kind == 2:
            rest = zstandard.ZstdCompressor(level=1, write_content_size=True).compress(rest)
        if kind:
            rest = _with_header(rest)
        validate.parse_manifest(container.unpack(container.MANIFEST, rest, "fuzzed"), "fuzzed")
    except (VerificationError, UnsupportedVersionError) as error:
        _check_message(error)


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Returns an input that differs in one value, or in a few bytes where it holds no values."""
    if data and data[0] % 4 == 2:
        try:
            value = msgpack.unpackb(data[1:], strict_map_key=False, use_list=True)
            return data[:1] + bytes(msgpack.packb(_edit(value, dice)))
        except (ValueError, msgpack.UnpackException, OverflowError, RecursionError, TypeError):
            pass
    edited = bytearray(data or b"\2")
    for _ in range(dice.randrange(1, 4)):
        edited[dice.randrange(len(edited))] = dice.randrange(256)
    return bytes(edited)


def seeds() -> list[bytes]:
    """Returns good inputs of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        file = (tiny.write(Path(folder) / "bundle") / "manifest.msgpack").read_bytes()
    manifest = validate.parse_manifest(container.unpack(container.MANIFEST, file, "good"), "good")
    payload = file[container.HEADER.size :]
    raw = zstandard.ZstdDecompressor().decompress(payload)
    companion = {"model.sig": artifact.Layer("0" * 64, 10)}
    oci = artifact.write_artifact(manifest, file, companion)[0]
    return [b"\0" + file, b"\1" + payload, b"\2" + raw, b"\3" + oci]


def _with_header(payload: bytes) -> bytes:
    """Returns a container around a payload, whose header says the size that the payload itself declares."""
    try:
        size = zstandard.get_frame_parameters(payload).content_size
    except zstandard.ZstdError:
        size = 0
    size = min(size, 1 << 63)
    digest = hashlib.sha256(payload).digest()
    return container.HEADER.pack(container.MANIFEST.magic, 1, 0, len(payload), size, digest) + payload


def _check_message(error: PaitonError) -> None:
    """Checks that an error fits on a terminal: one line, whatever the input put into it."""
    text = str(error)
    if "\n" in text or len(text) > 2000 or not error.hint:
        raise AssertionError(f"no message for people: {text[:200]!r}")


def _edit(value: Any, dice: random.Random) -> Any:  # noqa: ANN401  (anything that msgpack holds)
    """Returns a value with one node of it replaced, removed or doubled."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        if dice.random() < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: _edit(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.9:
        index = dice.randrange(len(value))
        if dice.random() < 0.1:
            return value[:index] + value[index:] * 2
        return [*value[:index], _edit(value[index], dice), *value[index + 1 :]]
    if isinstance(value, int) and dice.random() < 0.7:
        return max(-(1 << 63), min((1 << 64) - 1, dice.choice((value + 1, value - 1, -value, *_EDGES))))
    if isinstance(value, str) and value and dice.random() < 0.5:
        at = dice.randrange(len(value))
        return value[:at] + chr(dice.randrange(1, 0x300)) + value[at + dice.randrange(2) :]
    return dice.choice((*_EDGES, *_SCALARS))


def fuzz(corpus: Path, seconds: int, seed: int) -> None:
    """Runs the fuzzer in this process, which ends with it: with status 0 unless it found something."""
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: PLC0415  (129 MB, for this alone)

    def mutator(data: bytes, max_size: int, mutation_seed: int) -> bytes:
        dice = random.Random(mutation_seed)  # noqa: S311  (repeatable)
        made = mutate(data, dice) if dice.random() < 0.5 else atheris.Mutate(data, len(data) + 64)
        return bytes(made[:max_size])

    options = [
        f"-max_total_time={seconds}",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        f"-timeout={SECONDS_EACH}",
        f"-max_len={MAX_INPUT}",
        f"-seed={seed}",
        "-print_final_stats=1",
        "-verbosity=1",
        f"-artifact_prefix={corpus.parent}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], read, custom_mutator=mutator, enable_python_coverage=True)
    atheris.Fuzz()


def covered(inputs: list[bytes], run: Callable[[bytes], None] = read) -> dict[str, tuple[int, int]]:
    """Returns, for each module, how many of the lines in its functions some inputs reach, and how many there are."""
    files = {str(module.__file__): module.__name__ for module in MODULES}
    hit: dict[str, set[int]] = {path: set() for path in files}

    def trace(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401  (itself)
        lines = hit.get(frame.f_code.co_filename)
        if lines is None:
            return None
        if event == "line":
            lines.add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    try:
        for data in inputs:
            run(data)
    finally:
        sys.settrace(None)
    found = {}
    for path, name in files.items():
        lines = set(_lines(compile(Path(path).read_text(), path, "exec"), inside=False))
        found[name] = (len(lines & hit[path]), len(lines))
    return found


def _lines(code: CodeType, *, inside: bool) -> Iterator[int]:
    """Yields the lines of the functions in a module; those that run on import are not among them."""
    if inside:
        first = code.co_firstlineno
        yield from (line for _, line in dis.findlinestarts(code) if line is not None and line > first)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            is_class = "__qualname__" in constant.co_names
            yield from _lines(constant, inside=not is_class)


def main() -> None:
    """Fuzzes, then says what the corpus reaches."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fuzz", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--corpus", type=Path, help="directory to begin with and to add to (default: good inputs alone)"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        fuzz(args.corpus, args.seconds, args.seed)
    if find_spec("atheris") is None:
        parser.error("pip install atheris")
    with tempfile.TemporaryDirectory() as folder:
        corpus = args.corpus or Path(folder) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for index, data in enumerate(seeds()):
            (corpus / f"good-{index}").write_bytes(data)
        command = [sys.executable, "-c", _CHILD, "--child", "--corpus", str(corpus)]
        command += ["--seconds", str(args.seconds), "--seed", str(args.seed)]
        start = time.monotonic()
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        report = [line for line in done.stderr.splitlines() if line.startswith("stat::")]
        print(*(report or done.stderr.splitlines()[-40:]), sep="\n")
        inputs = [path.read_bytes() for path in sorted(corpus.iterdir())]
        print(f"{time.monotonic() - start:.0f} s, {len(inputs)} inputs in the corpus, exit status {done.returncode}")
        for name, (hit, lines) in covered(inputs).items():
            print(f"{name:40} {hit:4} of {lines:4} lines in functions reached")
        if done.returncode:
            sys.exit(1)
