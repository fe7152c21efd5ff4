"""What a build writes: reproducible, readable by anyone, complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.torch import load_file

from paiton_aot import goldens
from paiton_aot.cli import main
from paiton_artifacts.errors import PaitonError
from paiton_artifacts.reader import open_bundle
from paiton_runtime.levels import cpu_flags, runnable_levels
from tests.independent_reader import read_bundle
from tests.reference import dequantized

KILLS = 50


def _digests(bundle: Path) -> dict[str, str]:
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    return {str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _build(*arguments: str | Path, cwd: Path | None = None, prefix: tuple[str, ...] = ()) -> None:
    command = [*prefix, sys.executable, "-m", "paiton_aot.cli", *map(str, arguments), "-q"]
    subprocess.run(command, check=True, cwd=cwd)


def test_same_inputs_give_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Other directories, another clock, another kernel cache: compiled anew, and equal to the last byte."""
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("the command faketime is not installed (Debian package faketime)")
    elsewhere = tmp_path / "some where" / "else"
    elsewhere.mkdir(parents=True)
    copy = elsewhere / "copied"
    shutil.copytree(tiny_checkpoint, copy)
    _build(tiny_checkpoint, "-o", tmp_path / "a", "--cache-dir", tmp_path / "cache-a")
    clock = (faketime, "2031-05-06 07:08:09")
    _build(copy, "-o", elsewhere / "b", "--cache-dir", elsewhere / "cache", cwd=elsewhere, prefix=clock)
    assert _digests(tmp_path / "a") == _digests(elsewhere / "b")


@pytest.mark.parametrize("flags", [(), ("--lm-head", "int8"), ("--weights", "bf16"), ("--tp", "2", "--kv", "fp8")])
def test_an_independent_reader_finds_every_tensor(
    tiny_checkpoint: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Dequantised by a reader that knows FORMAT.md alone, every row equals the checkpoint's within its dtype."""
    assert main([str(tiny_checkpoint), "-o", str(tmp_path / "b"), "-q", *flags]) == 0
    bundle = read_bundle(tmp_path / "b")
    source = {name: tensor.float().numpy() for name, tensor in load_file(tiny_checkpoint / "model.safetensors").items()}
    seen: set[str] = set()
    for tensor in bundle.manifest["tensors"]:
        for rank in range(bundle.manifest["tp"]):
            values = dequantized(bundle, tensor["name"], rank)
            seen |= _compare(tensor, values, source, rank)
    assert seen == set(source)


_RELATIVE_ERROR = {"bf16": 2.0**-8, "fp8_e4m3fn": 2.0**-4, "int8": 0.0, "f32": 0.0}
_STEPS = {"fp8_e4m3fn": 2.0**-10 / 448, "int8": 0.5 / 127}
"""Besides the relative error, half of the smallest step, in units of the row's largest magnitude."""


def _compare(tensor: dict[str, Any], values: Any, source: dict[str, Any], rank: int) -> set[str]:
    """Compares the rows that come from the checkpoint; returns the sources that were compared."""
    seen = set()
    for part in tensor["parts"]:
        if not part["source"]:
            continue
        whole = np.atleast_2d(source[part["source"]].T).T
        row, col = part["source_row"][rank], part["source_col"][rank]
        wanted = whole[row : row + part["rows"], col : col + part["cols"]]
        mine = np.atleast_2d(values.T).T[part["row"] : part["row"] + len(wanted)]
        peak = np.abs(whole[row : row + part["rows"]]).max(axis=1, keepdims=True)
        allowed = _RELATIVE_ERROR[tensor["dtype"]] * np.abs(wanted) + _STEPS.get(tensor["dtype"], 0) * peak * 1.001
        assert (np.abs(mine - wanted) <= allowed).all(), tensor["name"]
        seen.add(part["source"])
    return seen


def test_bf16_weights_are_kept_bit_for_bit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert main([str(tiny_checkpoint), "-o", str(tmp_path / "b"), "-q", "--weights", "bf16"]) == 0
    bundle = read_bundle(tmp_path / "b")
    source = load_file(tiny_checkpoint / "model.safetensors")
    dtype, shape, raw = bundle.tensor(0, "layers.0.down_proj")
    assert dtype == "bf16"
    wanted = source["model.layers.0.mlp.down_proj.weight"].float().numpy().astype(ml_dtypes.bfloat16)
    assert np.frombuffer(raw, ml_dtypes.bfloat16).reshape(shape).tobytes() == wanted.tobytes()


def test_plan_needs_no_weights(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes and kernels follow from headers: a sparse file, which has no data, differs in the build key alone."""
    copy = tmp_path / "headers"
    shutil.copytree(tiny_checkpoint, copy)
    weights = copy / "model.safetensors"
    size = weights.stat().st_size
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    os.truncate(weights, header)
    os.truncate(weights, size)
    assert main([str(tiny_checkpoint), "--plan-only", "--json"]) == 0
    full = json.loads(capsys.readouterr().out)
    assert main(["plan", str(copy), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    same = {"model": "", "key": "", "components": {}}
    assert {**plan, **same} == {**full, **same}
    differs = {name for name, value in plan["components"].items() if full["components"][name] != value}
    assert differs == {"checkpoint/model.safetensors"}
    assert plan["kernels"]
    assert plan["memory_per_rank"]["weights"] == plan["blob_bytes_per_rank"]
    assert main([str(copy), "--plan-only"]) == 0
    assert plan["kernels"][0] in capsys.readouterr().out


def test_json_result(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_checkpoint), "-o", str(tmp_path / "b"), "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["bytes"] == sum(path.stat().st_size for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert "verify" in result["seconds"]
    assert str(tmp_path / "b") in captured.err


def test_killed_builds_leave_nothing_that_opens(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments: the output is absent or whole, and the next build clears what was left."""
    output = tmp_path / "bundle"
    command = [sys.executable, "-m", "paiton_aot.cli", str(tiny_checkpoint), "-o", str(output), "-q"]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    whole, expected = time.perf_counter() - start, _digests(output)
    shutil.rmtree(output)
    rng = random.Random(0)
    finished = 0
    for _ in range(KILLS):
        child = subprocess.Popen(command)
        try:
            child.wait(rng.uniform(0.3, 1.05) * whole)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        if output.exists():
            finished += 1
            assert _digests(output) == expected
            shutil.rmtree(output)
        else:
            with pytest.raises(PaitonError):
                open_bundle(output)
    assert finished < KILLS
    subprocess.run(command, check=True)
    assert _digests(output) == expected
    assert list(tmp_path.iterdir()) == [output]


def test_levels_that_run_here_are_held_to_the_reference(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no tolerance at all, another order of the same sums is a mismatch, and a mismatch stops the build."""
    assert main([str(tiny_checkpoint), "-o", str(tmp_path / "good"), "--json"]) == 0
    levels = json.loads(capsys.readouterr().out)["verified_levels"]
    assert levels[0] == "generic"
    assert set(levels[1:]) == set(runnable_levels(cpu_flags())) - {"generic"}
    if levels == ["generic"]:
        pytest.skip("this processor executes the reference level only")
    monkeypatch.setattr(goldens, "TOLERANCE", {"bf16": 0.0})
    assert main([str(tiny_checkpoint), "-o", str(tmp_path / "bad")]) == 4
    assert f"level {levels[1]}, golden 0" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
