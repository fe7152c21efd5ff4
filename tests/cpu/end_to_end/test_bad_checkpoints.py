"""Bad input to `paiton-build`: one line that names the thing, the exit code of its class, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paiton_aot.cli import main

Tensors = dict[str, torch.Tensor]
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, copy)
    return copy


def _edit_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _expect(
    folder: Path, capsys: pytest.CaptureFixture[str], code: int, *words: str, flags: tuple[str, ...] = ()
) -> None:
    """Builds, and checks the exit code, the one line on stderr and that nothing else happened."""
    output = folder.parent / "out" / "bundle"
    assert main([str(folder), "-o", str(output), *flags]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("paiton-build: ")]
    assert "Traceback" not in captured.err
    for word in ("error: ", "hint: ", *words):
        assert word in line
    assert not output.parent.exists()


def test_missing_tensor(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _edit_tensors(checkpoint, lambda tensors: tensors.pop(DOWN))
    _expect(checkpoint, capsys, 6, DOWN)


def test_misshaped_tensor(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _edit_tensors(checkpoint, lambda tensors: tensors.update({DOWN: tensors[DOWN][:, :-1].contiguous()}))
    _expect(checkpoint, capsys, 6, DOWN)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensor_that_is_not_finite(value: float, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _edit_tensors(checkpoint, lambda tensors: tensors[DOWN].view(-1)[-1:].fill_(value))
    _expect(checkpoint, capsys, 6, DOWN)


def test_tensor_in_two_shards(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = checkpoint / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    save_file(tensors, checkpoint / "model-00001-of-00002.safetensors")
    save_file({DOWN: tensors[DOWN]}, checkpoint / "model-00002-of-00002.safetensors")
    index = dict.fromkeys(tensors, "model-00001-of-00002.safetensors") | {DOWN: "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    _expect(checkpoint, capsys, 6, DOWN)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_safetensors(share: float, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint / "model.safetensors"
    os.truncate(path, int(path.stat().st_size * share))
    _expect(checkpoint, capsys, 6, "model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_gguf(share: float, smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    with smollm2_gguf.open("rb") as whole:
        path.write_bytes(whole.read(int(smollm2_gguf.stat().st_size * share)))
    _expect(path, capsys, 6, "model.gguf")


def test_unknown_architecture(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _edit_config(checkpoint, architectures=["MambaForCausalLM"], model_type="mamba")
    _expect(checkpoint, capsys, 3, "MambaForCausalLM", "LlamaForCausalLM")


def test_unknown_quantisation(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _edit_config(checkpoint, quantization_config={"quant_method": "gptq", "bits": 4})
    _expect(checkpoint, capsys, 3, "gptq")


def test_absent_tokenizer(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "tokenizer.json").unlink()
    _expect(checkpoint, capsys, 6, "tokenizer.json")


def test_configuration_that_is_not_json(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "config.json").write_text("{")
    _expect(checkpoint, capsys, 6, "config.json")


def test_absent_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _expect(tmp_path / "nothing", capsys, 6, "nothing")


def test_rank_count_that_does_not_divide(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _expect(checkpoint, capsys, 2, "--tp 3", "1, 2", flags=("--tp", "3"))


def test_context_longer_than_the_models(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _expect(checkpoint, capsys, 2, "--max-model-len 99999999", flags=("--max-model-len", "99999999"))


def test_unknown_target(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _expect(checkpoint, capsys, 3, "hip:gfx906", "cpu", flags=("--target", "hip:gfx906"))


def test_output_that_exists(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bundle"
    assert main([str(checkpoint), "-o", str(output), "-q"]) == 0
    before = (output / "manifest.msgpack").read_bytes()
    assert main([str(checkpoint), "-o", str(output), "-q"]) == 2
    assert f"{output} exists" in capsys.readouterr().err
    assert main([str(checkpoint), "-o", str(output), "-q", "--force"]) == 0
    assert (output / "manifest.msgpack").read_bytes() == before
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert main([str(checkpoint), "-o", str(precious), "-q", "--force"]) == 2
    assert (precious / "thesis.txt").exists()


def test_full_disk(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges that this process lacks")
    try:
        assert main([str(tiny_checkpoint), "-o", str(small / "bundle")]) == 7
        error = capsys.readouterr().err
        assert "no space left" in error
        assert str(small / "bundle") in error
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_terminated_build_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TERMINATE_ITSELF, str(tiny_checkpoint), "-o", str(tmp_path / "bundle"), "-q"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 143, done.stderr
    assert list(tmp_path.glob("*bundle*/*")) == []


_TERMINATE_ITSELF = """
import os, signal, sys
from paiton_aot import cli, convert
write = convert.pwrite_all
def terminate(*args):
    write(*args)
    os.kill(os.getpid(), signal.SIGTERM)
convert.pwrite_all = terminate
sys.exit(cli.main())
"""
