"""`paiton-build eval`: perplexity and divergence beside numpy on transformers' logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from paiton_aot.cli import main
from paiton_aot.eval_measure import perplexity, windows
from paiton_artifacts.reader import open_bundle
from paiton_runtime.text import TextCodec
from tests.conftest import ROOT
from tests.reference import load_reference, reference_logits
from tests.reference import perplexity as reference_perplexity

WINDOW = 100


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((ROOT / "tests" / "data" / "alice.txt").read_text()[:700])
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["eval", *map(str, words)])
    done = capsys.readouterr()
    return code, done.out, done.err


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def test_perplexity_and_divergence_are_those_of_numpy(
    tiny_bundle: Path, tiny_checkpoint: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--window", WINDOW, "--tokens", 250, "--target", "cpu", "--json")
    code, out, _ = run(capsys, tiny_bundle, "--text", text, "--checkpoint", tiny_checkpoint, *flags)
    assert code == 0
    result = json.loads(out)
    ids = TextCodec(open_bundle(tiny_bundle)).encode(text.read_text())[:250]
    parts = [ids[i : i + WINDOW] for i in range(0, 250, WINDOW)]
    assert list(windows(ids, [], WINDOW)) == parts
    source = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    bundle = load_reference(tiny_bundle)  # the bundle's weights and rounding, computed by transformers
    nll, source_nll, divergence, same = [], [], [], []
    for part in parts:
        p, q = (log_softmax(reference_logits(model, part))[:-1] for model in (source, bundle))
        rows = np.arange(len(part) - 1)
        nll += (-q[rows, part[1:]]).tolist()
        source_nll += (-p[rows, part[1:]]).tolist()
        divergence += (np.exp(p) * (p - q)).sum(1).tolist()
        same += (p.argmax(1) == q.argmax(1)).tolist()
    assert (result["tokens"], result["rated_tokens"]) == (250, len(nll)) == (250, 247)
    assert result["perplexity"] == pytest.approx(np.exp(np.mean(nll)), rel=2e-3)
    assert result["source"]["perplexity"] == pytest.approx(np.exp(np.mean(source_nll)), rel=1e-6)
    assert result["perplexity_ratio"] == pytest.approx(np.exp(np.mean(nll) - np.mean(source_nll)), rel=2e-3)
    assert result["kl_divergence"]["mean"] == pytest.approx(np.mean(divergence), rel=0.02)
    assert result["kl_divergence"]["max"] == pytest.approx(np.max(divergence), rel=0.1)
    assert result["same_top_token"] == pytest.approx(np.mean(same), abs=0.03)
    assert result["target"] == "cpu"


def test_without_a_source_the_device_rates(tiny_bundle: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, tiny_bundle, "--text", text, "--window", 64, "--tokens", 64, "--target", "cpu")
    assert code == 0
    ids = TextCodec(open_bundle(tiny_bundle)).encode(text.read_text())[:64]
    expected = reference_perplexity(reference_logits(load_reference(tiny_bundle), ids), ids)
    shown = float(next(line.split()[1] for line in out.splitlines() if line.startswith("perplexity")))
    assert shown == pytest.approx(expected, rel=2e-3)
    assert "63 tokens rated in windows of 64 on cpu" in out


def test_limits_decide_the_exit_code(
    tiny_bundle: Path, tiny_checkpoint: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--text", text, "--tokens", 40, "--target", "cpu")
    assert run(capsys, tiny_bundle, *flags, "--max-perplexity", 1e6)[0] == 0
    code, out, err = run(capsys, tiny_bundle, *flags, "--max-perplexity", 2)
    assert (code, "perplexity" in out, "above 2" in err) == (4, True, True)
    code, _, err = run(capsys, tiny_bundle, *flags, "--checkpoint", tiny_checkpoint, "--max-kl", 1e-9)
    assert code == 4
    assert "mean KL divergence" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--text", "absent.txt"), 2, "No such file"),
        (("--tokens", "0"), 2, "not a positive number"),
        (("--tokens", "1"), 2, "too few to rate"),
        (("--window", "1"), 2, "not within 2 .. 256"),
        (("--window", "257"), 2, "not within 2 .. 256"),
        (("--max-kl", "1"), 2, "add --checkpoint"),
        (("--checkpoint", "absent"), 6, "no checkpoint at absent"),
        (("--target", "cuda:sm_90"), 3, "cuda:sm_90"),
    ],
)
def test_what_cannot_be_evaluated(
    tiny_bundle: Path, text: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, message: str
) -> None:
    found, _, err = run(capsys, tiny_bundle, "--text", text, *words)
    assert (found, message in err) == (code, True), err


def test_a_quantised_source_is_refused(
    tiny_bundle: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    code, _, err = run(capsys, tiny_bundle, "--text", text, "--checkpoint", tmp_path)
    assert (code, "is quantised" in err) == (3, True)


def test_perplexity_of_certainty_is_one() -> None:
    assert perplexity([0.0, 0.0]) == 1.0
    assert perplexity([np.log(2.0), np.log(8.0)]) == pytest.approx(4.0)
