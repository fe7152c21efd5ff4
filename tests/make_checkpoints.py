"""Makers of checkpoints for tests: tiny random Llamas, SmolLM2 in other shapes. Needs torch and transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

Tensors = dict[str, torch.Tensor]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A tensor is read once, converted once, and written to every rank.",
    "def add(left: int, right: int) -> int:\n    return left + right\n",
    "0123456789 12345 3.14159; naïve café, 你好世界 🙂",
)
FP8_MAX = 448.0


def tiny_llama(
    path: Path,
    *,
    layers: int = 2,
    hidden: int = 128,
    intermediate: int = 256,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    vocab: int = 384,
    max_position: int = 256,
    dtype: torch.dtype = torch.bfloat16,
    tied: bool = False,
    fp8_static: bool = False,
    max_shard_size: str = "5GB",
    rope_parameters: Mapping[str, object] | None = None,
    seed: int = 0,
) -> Path:
    """Writes a random LlamaForCausalLM with a byte-level BPE tokenizer and a chat template; returns `path`.

    Args:
        path: directory to write to; may exist.
        layers: number of transformer layers.
        hidden: width of the residual stream.
        intermediate: width of the MLP.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: elements per head, a multiple of 32.
        vocab: rows of the embedding; the tokenizer may have fewer tokens.
        max_position: tokens of context.
        dtype: of the stored weights.
        tied: the embedding serves as output matrix.
        fp8_static: linear layers (not lm_head) become e4m3fn with static scales; see `quantize_static`.
        max_shard_size: as transformers takes it, e.g. "100KB".
        rope_parameters: as transformers 5 takes them.
        seed: of the weights.
    """
    path.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_position_embeddings=max_position,
        tie_word_embeddings=tied,
        rope_parameters=dict(rope_parameters or {"rope_type": "default", "rope_theta": 10_000.0}),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            # Weights of 0.02 make logits that differ by less than bf16 shows; norms of 1 hide a missing weight.
            for name, parameter in model.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.uniform_(0.5, 1.5)
                else:
                    parameter.normal_(0.0, 2.0 / parameter.shape[1] ** 0.5)
    torch.nn.Module.to(model, dtype)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    write_tokenizer(path, vocab)
    if fp8_static:
        rewrite(path, quantize_static)
        edit_json(path / "config.json", quantization_config=FP8_STATIC)
    return path


def write_tokenizer(path: Path, vocab: int) -> None:
    """Writes tokenizer.json (byte-level BPE of at most `vocab` tokens), its configuration and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[1],
        "eos_token": SPECIAL_TOKENS[2],
        "pad_token": SPECIAL_TOKENS[0],
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(configuration, indent=2))


FP8_STATIC = {
    "quant_method": "fp8",
    "activation_scheme": "static",
    "ignored_layers": ["lm_head"],
    "kv_cache_scheme": "static",
}
"""quantization_config of AutoFP8 and of Quark's fp8 mode."""


def quantize_static(tensors: Tensors) -> Tensors:
    """Returns the tensors with linear layers (not lm_head) in the static FP8 format, as AutoFP8 writes it.

    Each has `weight` e4m3fn, `weight_scale` of shape [] and `input_scale` of shape [1]; each layer a `kv_scale`. The
    activation scales are guesses that suit the tiny random models, not calibrated.
    """
    quantized: Tensors = {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            quantized[name] = tensor
            continue
        module = name.removesuffix(".weight")
        values = tensor.float()
        scale = values.abs().max() / FP8_MAX
        quantized[name] = (values / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        quantized[f"{module}.weight_scale"] = scale
        quantized[f"{module}.input_scale"] = torch.tensor([0.03125])
        if module.endswith("k_proj"):
            quantized[f"{module.removesuffix('.k_proj')}.kv_scale"] = torch.tensor(0.0625)
    return quantized


def dequantize_static(tensors: Tensors) -> Tensors:
    """Returns plain f32 weights of a static FP8 checkpoint: the reference that transformers can load."""
    scales = ("weight_scale", "input_scale", "kv_scale", "k_scale", "v_scale", "output_scale")
    plain = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith(scales)}
    for name, scale in tensors.items():
        if name.endswith(".weight_scale"):
            plain[name.removesuffix("_scale")] *= scale.float()
    return plain


def load_tensors(path: Path) -> Tensors:
    """Returns all tensors of a Hugging Face directory, through the safetensors library."""
    tensors: Tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def rewrite(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Replaces the weights of a Hugging Face directory by `change(weights)`, in a single file."""
    tensors = {name: tensor.contiguous() for name, tensor in change(load_tensors(path)).items()}
    for file in path.glob("model*.safetensors*"):
        file.unlink()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, **changes: object) -> None:
    """Sets fields of a JSON file; None removes a field."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}, indent=2))


def save_gguf_as_hf(gguf: Path, path: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Writes a GGUF file as a Hugging Face directory, dequantised by transformers; returns `path`."""
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers notes where the weights came from, and would refuse to save them; they are no longer quantised.
    del model.config.quantization_config, model.hf_quantizer
    torch.nn.Module.to(model, dtype)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(path)
    return path


def pad_heads(source: Path, path: Path, *, heads: int = 12, kv_heads: int = 4) -> Path:
    """Copies a Hugging Face directory with more heads, whose weights are zero: the logits stay the same.

    Each new KV head comes with its group of query heads, so that old heads keep theirs; the columns of o_proj that
    read the new heads are zero. Returns `path`.
    """
    config = json.loads((source / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if heads * config["num_key_value_heads"] != kv_heads * config["num_attention_heads"]:
        raise ValueError(f"{heads} / {kv_heads} heads change the size of a group")
    shutil.copytree(source, path, dirs_exist_ok=True)
    rows = {"q_proj": heads * head_dim, "k_proj": kv_heads * head_dim, "v_proj": kv_heads * head_dim}

    def pad(tensors: Tensors) -> Tensors:
        padded = dict(tensors)
        for name, tensor in tensors.items():
            projection = name.split(".")[-2]
            if projection in rows:
                padded[name] = torch.nn.functional.pad(tensor, (0, 0, 0, rows[projection] - tensor.shape[0]))
            elif projection == "o_proj":
                padded[name] = torch.nn.functional.pad(tensor, (0, rows["q_proj"] - tensor.shape[1]))
        return padded

    rewrite(path, pad)
    edit_json(path / "config.json", num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim)
    return path
