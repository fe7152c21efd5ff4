"""GGUF files of Gemma and Phi-3, as llama.cpp's converter lays them out: the same checkpoints as their directories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf as gguf_library
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from tokenizers import Tokenizer
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from paiton_aot.checkpoint import open_checkpoint
from paiton_aot.checkpoint.base import ModelConfig
from paiton_artifacts.errors import CheckpointFormatError, UnsupportedError
from tests.architectures import MODELS, SIZES, save_random
from tests.cpu.checkpoint.gguf_maker import NAMES, Weights, write_gguf
from tests.make_checkpoints import load_tensors

Writer = gguf_library.GGUFWriter

AROUND = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
FUSED = NAMES | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
HEAD = {"query_pre_attn_scalar": 32}
"""No key says it: files imply the head size, which these models have."""


def plus_one(weights: Weights) -> Weights:
    return {name: values + 1 if name.endswith("norm.weight") else values for name, values in weights.items()}


def gemma2_keys(writer: Writer, config: Mapping[str, Any]) -> None:
    writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])


def gemma3_keys(writer: Writer, config: Mapping[str, Any]) -> None:
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    writer.add_rope_scaling_type(gguf_library.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(config["rope_parameters"]["full_attention"]["factor"])


def phi3_keys(writer: Writer, config: Mapping[str, Any]) -> None:
    del writer.kv_data[0]["phi3.attention.key_length"]
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    writer.add_sliding_window(config["sliding_window"] or 0)
    writer.add_pad_token_id(0)
    rope = config["rope_parameters"]
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_attn_factors(rope["attention_factor"])
        for kind in ("long", "short"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.asarray(rope[f"{kind}_factor"], np.float32))


@dataclass(frozen=True)
class Kind:
    """How files of one architecture differ."""

    model: str
    name: str
    keys: Callable[[Writer, Mapping[str, Any]], None] = lambda _writer, _config: None
    names: Mapping[str, str] = field(default_factory=lambda: NAMES)
    change: Callable[[Weights], Weights] = plus_one
    config: Mapping[str, Any] = field(default_factory=dict)


KINDS = (
    Kind("gemma", "gemma"),
    Kind("gemma2", "gemma2", gemma2_keys, AROUND, config=HEAD),
    Kind("gemma3", "gemma3", gemma3_keys, AROUND, config=HEAD),
    Kind("phi3", "phi3", phi3_keys, FUSED, lambda weights: weights),
    Kind("phi4", "phi3", phi3_keys, FUSED, lambda weights: weights),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], tuple[Path, Path]]:
    """A function that returns directory and GGUF file of a random model, made once."""
    known: dict[str, tuple[Path, Path]] = {}

    def make(kind: Kind) -> tuple[Path, Path]:
        if kind.model in known:
            return known[kind.model]
        root = tmp_path_factory.mktemp(kind.model)
        config_class, changes = MODELS[kind.model]
        facts = {name: value for name, value in {**SIZES, **changes, **kind.config}.items() if value is not None}
        if kind.model == "phi4":
            facts["rope_parameters"] = {**facts["rope_parameters"], "attention_factor": 1.1875}
        config = config_class(**facts)
        source = save_random(config, root / "hf")
        known[kind.model] = source, write(kind, source, root / "x.gguf")
        return known[kind.model]

    return make


def write(
    kind: Kind, source: Path, path: Path, extra: Callable[[Writer], None] = lambda _: None, model: str = "gpt2"
) -> Path:
    """Writes a directory as a GGUF file, with a tokenizer of the kind `model`."""
    config = AutoConfig.from_pretrained(source).to_dict()

    def keys(writer: Writer) -> None:
        kind.keys(writer, config)
        extra(writer)

    return write_gguf(
        source,
        path,
        kind=GGMLQuantizationType.BF16,
        architecture=kind.name,
        extra=keys,
        change=kind.change,
        permuted=False,
        names=kind.names,
        model=model,
    )


def as_stored(config: ModelConfig) -> ModelConfig:
    """Returns a configuration as a file holds it, in f32."""
    return replace(config, rms_norm_eps=float(np.float32(config.rms_norm_eps)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.model)
def test_a_file_is_the_same_checkpoint_as_its_directory(kind: Kind, made: Callable[[Kind], tuple[Path, Path]]) -> None:
    source, path = made(kind)
    with open_checkpoint(path) as ours, open_checkpoint(source) as reference:
        assert ours.config == as_stored(reference.config)
        assert set(ours.names()) == set(reference.names())
        for name in reference.names():
            tensor, expected = ours.tensor(name), reference.tensor(name)
            rows = tensor.read_rows(0, tensor.rows).astype(np.float32)
            assert np.array_equal(rows, expected.read_rows(0, expected.rows).astype(np.float32)), name


@pytest.mark.parametrize("kind", KINDS[1:4], ids=lambda kind: kind.model)
def test_transformers_reads_the_same_files(kind: Kind, made: Callable[[Kind], tuple[Path, Path]]) -> None:
    """So these files are laid out as those of others."""
    source, path = made(kind)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    found = model.state_dict()
    for name, tensor in load_tensors(source).items():
        assert torch.equal(found[name], tensor.float()), name


def test_what_files_leave_out(tmp_path: Path, made: Callable[[Kind], tuple[Path, Path]]) -> None:
    """llama.cpp's own defaults: every sixth layer of Gemma 3 sees everything, every second one of Gemma 2."""
    source, _ = made(KINDS[2])

    def extra(writer: Writer) -> None:
        for key in ("attention.sliding_window_pattern", "rope.scaling.type", "rope.scaling.factor"):
            del writer.kv_data[0][f"gemma3.{key}"]

    with open_checkpoint(write(KINDS[2], source, tmp_path / "x.gguf", extra)) as checkpoint:
        assert checkpoint.config.windows == (20, 20, 20)
        assert (checkpoint.config.rope_scaling, checkpoint.config.local_rope_theta) == (None, 10_000.0)


def test_special_tokens_of_phi_3_take_the_whitespace_behind_them(
    tmp_path: Path, made: Callable[[Kind], tuple[Path, Path]]
) -> None:
    """As in its own tokenizer.json, where they have "rstrip"; <s>, for one, has not."""
    source, _ = made(KINDS[3])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "<|user|>"]
    kinds = [2, 3, 4, *[6] * 256, *[1] * 4, 3]

    def extra(writer: Writer) -> None:
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges", "phi3.vocab_size"):
            del writer.kv_data[0][key]
        padding = 320 - len(tokens)
        writer.add_vocab_size(320)
        writer.add_token_list([*tokens, *(f"[PAD{index}]" for index in range(padding))])
        writer.add_token_types([*kinds, *[5] * padding])
        writer.add_token_scores([0.0] * 320)

    path = write(KINDS[3], source, tmp_path / "x.gguf", extra, model="llama")
    with open_checkpoint(path) as checkpoint:
        tokenizer = Tokenizer.from_buffer(checkpoint.tokenizer().tokenizer_json)
    ids = tokenizer.encode("<|user|>\n a</s> b<s> b", add_special_tokens=False).ids
    assert [tokens[id_] for id_ in ids] == ["<|user|>", "a", "</s>", "b", "<s>", "▁", "b"]


def put(key: str, value: float | str) -> Callable[[Writer], None]:
    def extra(writer: Writer) -> None:
        writer.kv_data[0].pop(key, None)
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)  # type: ignore[operator]

    return extra


@pytest.mark.parametrize(
    ("index", "key", "value", "error", "message"),
    [
        (2, "gemma3.attention.sliding_window_pattern", "x", CheckpointFormatError, "sliding_window_pattern 'x'"),
        (2, "gemma3.rope.scaling.type", "yarn", UnsupportedError, "rope.scaling.type 'yarn'"),
        (1, "gemma2.final_logit_softcapping", -1.0, CheckpointFormatError, "final_logit_softcapping -1.0"),
        (4, "phi3.rope.dimension_count", 7, CheckpointFormatError, "7 elements of heads of 32"),
        (4, "phi3.rope.scaling.attn_factor", 0.0, CheckpointFormatError, "attention_factor|attn_factor"),
    ],
)
def test_files_that_are_refused(
    tmp_path: Path,
    made: Callable[[Kind], tuple[Path, Path]],
    index: int,
    key: str,
    value: float | str,
    error: type[Exception],
    message: str,
) -> None:
    source, _ = made(KINDS[index])
    path = write(KINDS[index], source, tmp_path / "x.gguf", put(key, value))
    with pytest.raises(error, match=message):
        open_checkpoint(path)
