"""The text model of a multimodal checkpoint, as transformers saves it and as the hub has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma3Config, Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3ForCausalLM, Gemma3ForConditionalGeneration

from paiton_aot.build import tell_left_out
from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.multimodal import text_config, text_name, text_names
from paiton_aot.checkpoint.transformers_config import parse_config
from paiton_aot.eval_source import open_source
from paiton_aot.progress import Progress
from paiton_artifacts.errors import CheckpointFormatError, DuplicateTensorError
from tests.architectures import MODELS, SIZES
from tests.make_checkpoints import Tensors, edit_json, load_tensors, rewrite

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Gemma 3 with a vision tower, and its text model."""
    root = tmp_path_factory.mktemp("gemma3")
    text = Gemma3TextConfig(**{**SIZES, **MODELS["gemma3"][1]})
    config = Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=5)
    torch.manual_seed(0)
    whole, alone = Gemma3ForConditionalGeneration(config), Gemma3ForCausalLM(text)
    for model in (whole, alone):
        torch.nn.Module.to(model, torch.bfloat16)
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    whole.save_pretrained(root / "whole")
    alone.save_pretrained(root / "alone")
    return root / "whole", root / "alone"


def as_on_the_hub(tensors: Tensors) -> Tensors:
    """Names as releases have them, which transformers' first classes wrote."""
    found = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("model.")
        own = short.startswith(("vision_tower.", "multi_modal_projector."))
        found[short if own else f"language_model.{text_name(name)}"] = tensor
    return found


@pytest.mark.parametrize("layout", ["saved", "hub"])
def test_it_is_the_checkpoint_of_the_text_model(saved: tuple[Path, Path], tmp_path: Path, layout: str) -> None:
    whole, alone = shutil.copytree(saved[0], tmp_path / "whole"), saved[1]
    if layout == "hub":
        rewrite(whole, as_on_the_hub)
    with open_checkpoint(whole) as ours, open_checkpoint(alone) as reference:
        assert ours.config == reference.config
        assert (ours.left_out > 10, reference.left_out) == (True, 0)
        assert set(ours.names()) == set(reference.names())
        for name in reference.names():
            tensor, expected = ours.tensor(name), reference.tensor(name)
            assert tensor.name == name
            rows = tensor.read_rows(0, tensor.rows).astype(np.float32)
            assert np.array_equal(rows, expected.read_rows(0, expected.rows).astype(np.float32)), name


def test_its_index_is_enough_to_plan(saved: tuple[Path, Path], tmp_path: Path) -> None:
    whole = shutil.copytree(saved[0], tmp_path / "whole")
    weight_map = dict.fromkeys(load_tensors(whole), "model-00001-of-00001.safetensors")
    (whole / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (whole / "model.safetensors").unlink()
    with open_checkpoint(whole, outline=True) as ours, open_checkpoint(saved[1]) as reference:
        shapes = {name: ours.tensor(name).shape for name in ours.names()}
        assert shapes == {name: reference.tensor(name).shape for name in reference.names()}


def test_what_is_left_out_is_said(saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with open_checkpoint(saved[0]) as checkpoint:
        tell_left_out(checkpoint, Progress(enabled=True, events=True))
    event = json.loads(capsys.readouterr().err)
    assert (event["event"], event["tensors"]) == ("left-out", checkpoint.left_out)


def test_fields_that_releases_leave_out() -> None:
    """Gemma 3 4B's text_config; what it does not say is in transformers' class."""
    text: dict[str, Any] = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    stated = {"architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106], "text_config": text}
    config = parse_config(text_config(stated, "it"), {}, "it")
    expected = parse_config(Gemma3TextConfig(**text).to_dict() | {"architectures": ["Gemma3ForCausalLM"]}, {}, "it")
    assert config.eos_token_ids == (1, 106)
    assert (config.attention_heads, config.kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262_208)
    for name in (
        "max_position",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "windows",
        "score_scale",
        "bos_token_id",
    ):
        assert getattr(config, name) == getattr(expected, name), name


def test_modules_that_a_quantisation_names() -> None:
    quantization = {"ignore": ["language_model.lm_head", "re:vision_tower.*"], "quant_method": "compressed-tensors"}
    stated = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {},
        "quantization_config": quantization,
    }
    found = text_config(stated, "it")["quantization_config"]
    assert found == {"ignore": ["lm_head", "re:vision_tower.*"], "quant_method": "compressed-tensors"}


def test_transformers_computes_its_text_model_for_an_evaluation(saved: tuple[Path, Path]) -> None:
    whole, alone = (open_source(str(path), Progress(enabled=False)).logits([1, 7, 9]) for path in saved)
    assert np.allclose(whole, alone, rtol=1e-5, atol=1e-5)


def test_two_names_of_one_tensor_are_refused() -> None:
    with pytest.raises(DuplicateTensorError, match=r"model.norm.weight is stored as language_model.model.norm.weight"):
        text_names(["language_model.model.norm.weight", "model.language_model.norm.weight"])


def test_without_a_text_config_it_is_refused(saved: tuple[Path, Path], tmp_path: Path) -> None:
    whole = shutil.copytree(saved[0], tmp_path / "whole")
    edit_json(whole / "config.json", text_config=None)
    with pytest.raises(CheckpointFormatError, match="has no text_config"):
        open_checkpoint(whole)
